"""Deliveries with a saboteur in between: a naive script falls for each fault.

Hardened scripts are tried with the capstone's exercises, and with the chapter's solution.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import elsewhere
import psutil
import pytest

from labapp.attacks import delivery
from labapp.attacks.delivery import RELEASE, REPOSITORY, STEPS, Judgement, PipelineRun
from labapp.attacks.forging import marker
from labapp.attacks.journal import Journal, remove_names, undo
from labapp.bench import Bench
from labapp.errors import NotInRegistry
from labapp.journey.bases import SLIM
from labapp.machine.ports import wait_until
from labapp.registry.manifests import digest_of

DOCKERFILE = """\
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /src
COPY . .
RUN python3 -m pip install -q --no-index --no-deps --find-links=wheels -r requirements.txt
USER 10001
CMD ["python3", "-c", "import blinker, http.server as h; h.test(h.SimpleHTTPRequestHandler)"]
"""

NAIVE = """\
case "$1" in
build)
    docker build --build-arg BASE="$LAB_BASE" -t "$LAB_IMAGE" "$LAB_APP"
    ;;
push)
    docker push "$LAB_IMAGE"
    ;;
deploy)
    docker pull "$LAB_IMAGE"
    docker run -d --name "$LAB_SERVICE" -p 127.0.0.1::8000 "$LAB_IMAGE"
    ;;
esac
true
"""

BUILD = 'docker build --build-arg BASE="$LAB_BASE" -t "$LAB_IMAGE" "$LAB_APP"'
BUILD_BY_SDK = f"""{sys.executable} -c '
import docker
from os import environ as lab
base = {{"BASE": lab["LAB_BASE"]}}
docker.from_env().images.build(path=lab["LAB_APP"], tag=lab["LAB_IMAGE"], buildargs=base)
'"""


@pytest.fixture(scope="module")
def own(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench with a work folder of these tests, and in it an application."""
    own = replace(bench, work=tmp_path_factory.mktemp("sabotage"))
    [wheel] = (own.application / "wheels").glob("blinker-*.whl")
    (own.work / "app" / "wheels").mkdir(parents=True)
    shutil.copy(wheel, own.work / "app" / "wheels")
    requirements = f"blinker=={wheel.name.split('-')[1]}\n"
    (own.work / "app" / "requirements.txt").write_text(requirements)
    (own.work / "app" / "Dockerfile").write_text(DOCKERFILE)
    yield own
    undo(own)
    assert Journal(own.state).changes() == []
    remove_names(own, f"{own.registry.address}/{REPOSITORY}")
    for repository in {"team/base", REPOSITORY} & set(own.registry.repositories()):
        for tag in own.registry.tags(repository):
            # Two tags may name one image.
            with contextlib.suppress(NotInRegistry):
                digest = own.registry.resolve(repository, tag)
                own.registry.delete_manifest(repository, digest)


def write(own: Bench, text: str, name: str = "deliver.sh") -> Path:
    """Write a script beside the application."""
    undo(own)
    (own.work / name).write_text(text)
    return own.work / name


def deliver(own: Bench, text: str, *faults: str) -> tuple[PipelineRun, Judgement]:
    run = delivery.run_pipeline(own, write(own, text), faults=faults)
    return run, delivery.judge(run)


def survived(judgement: Judgement) -> dict[str, bool | None]:
    return {each.fault: each.survived for each in judgement.faults}


def test_without_a_fault_it_delivers(own: Bench) -> None:
    run, judgement = deliver(own, NAIVE)
    assert judgement.ok
    assert [(step.name, step.code) for step in run.steps] == [(name, 0) for name in STEPS]
    # An honest mirror hands out the very manifest, and not one converted to an older kind.
    assert all(run.pushed.digest in run.output(step) for step in ("push", "deploy"))
    # The server has never seen the image: what is this delivery's alone comes by the mirror.
    assert run.fetched(run.pushed.signs[run.release])


def app_of(own: Bench) -> dict[Path, bytes]:
    """What is in the application; the release is no attack: it names the last delivery."""
    files = [path for path in (own.work / "app").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != RELEASE}


def test_what_gets_in(own: Bench) -> None:
    undo(own)
    honest = app_of(own)
    faults = ("secret", "base", "dependency", "push", "moved", "transit")
    run, judgement = deliver(own, NAIVE, *faults)
    assert survived(judgement) == dict.fromkeys(faults, False)
    # What was planted is told by the judgement only.
    assert "secret" not in repr(run)
    secret, base, dependency, push, moved, transit = (e.evidence for e in judgement.faults)
    layers = {layer.digest for layer in own.registry.image(run.image).manifest.layers}
    assert {each["layer"] for each in (secret, base, dependency, push, moved)} <= layers
    assert secret["file"] == str(own.work / "app" / ".env")
    wheel = own.work / "app" / "wheels" / dependency["wheel"]
    assert digest_of(wheel.read_bytes()) == dependency["wheel now"]
    assert marker("dependency") in dependency["log line"]
    assert push["digest before"] == run.pushed.digest
    assert moved["digest before"] == push["digest now"]
    assert transit["digest handed out"] in run.output("deploy")
    assert re.match(f"FORGED (HEAD|GET) /v2/{REPOSITORY}/", transit["log line"])
    assert app_of(own) != honest
    # Two attacks on one tag: what was pushed is back when both are undone.
    undo(own)
    assert own.registry.resolve(REPOSITORY, run.release) == run.pushed.digest
    assert own.registry.resolve("team/base", "1") == own.base(SLIM).digest
    assert app_of(own) == honest


@pytest.mark.parametrize("build", [BUILD, BUILD_BY_SDK])
def test_what_is_altered_at_rest(own: Bench, build: str) -> None:
    # However it was built: nothing of it may be left for the server to find.
    run, judgement = deliver(own, NAIVE.replace(BUILD, build), "rest")
    blob = judgement.faults[0].evidence["blob"]
    assert run.fetched(blob)
    assert survived(judgement) == {"rest": False}
    assert run.deployed is None
    assert blob in run.output("deploy")


def test_faults_are_tried_one_by_one(own: Bench) -> None:
    proven = delivery.prove(own, write(own, NAIVE), "base")
    rows = proven[["fault", "passed", "stopped_at"]].values.tolist()
    assert rows == [["", True, ""], ["base", False, ""]]
    # A script that always stops lets nothing wrong through, and delivers nothing either.
    stops = write(own, "[ $1 != push ] || { echo no; exit 1; }\n")
    [row] = delivery.prove(own, stops).to_dict("records")
    told = (row["fault"], row["passed"], row["stopped_at"], row["last_line"])
    assert told == ("", False, "push", "no")


DIES = """
import os, pathlib, sys, time
if sys.argv[1] == "build":
    pathlib.Path("reached").write_text(str(os.getpid()))
    time.sleep(60)
"""

RUNS = """
from labapp.attacks.delivery import run_pipeline

faults = ["secret", "base", "dependency"]
run_pipeline(bench, Path(arguments[0]), faults=faults)
"""


def test_a_delivery_that_dies_in_the_middle_is_undone(own: Bench) -> None:
    script = write(own, DIES, "deliver.py")
    app = own.work / "app"
    honest, base = app_of(own), own.base(SLIM)
    reached = script.parent / "reached"
    with elsewhere.start(own, RUNS, str(script)) as process:
        assert wait_until(lambda: reached.exists() and reached.read_text(), seconds=60)
        process.kill()
    psutil.Process(int(reached.read_text())).kill()
    assert (app / ".env").exists()
    assert own.registry.resolve("team/base", "1") != base.digest

    undo(own)
    assert app_of(own) == honest
    assert own.registry.resolve("team/base", "1") == base.digest
