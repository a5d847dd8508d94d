"""Deliveries with a saboteur in between: a naive script falls for each fault, a hardened one not.

Hardened scripts of other kinds, in Python and with hashes, are tried with the capstone's exercises.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import elsewhere
import psutil
import pytest

from labapp import feedback
from labapp.attacks import attacks
from labapp.attacks.delivery import RELEASE, REPOSITORY, STEPS, PipelineRun, run_pipeline
from labapp.attacks.forging import marker
from labapp.attacks.journal import Journal
from labapp.attacks.judge import Judgement, judge, prove
from labapp.bench import Bench
from labapp.errors import NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.journey.bases import SLIM
from labapp.machine.waiting import wait_until
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
import os
import subprocess
import sys

image, base, app = (os.environ[name] for name in ("LAB_IMAGE", "LAB_BASE", "LAB_APP"))

def docker(*words):
    subprocess.run(["docker", *words])

if sys.argv[1] == "build":
    docker("build", "--build-arg", f"BASE={base}", "-t", image, app)
elif sys.argv[1] == "push":
    docker("push", image)
elif sys.argv[1] == "deploy":
    docker("pull", image)
    docker("run", "-d", "--name", os.environ["LAB_SERVICE"], "-p", "127.0.0.1::8000", image)
"""

BUILD = 'docker("build", "--build-arg", f"BASE={base}", "-t", image, app)'
BUILD_BY_SDK = """\
    import docker as sdk
    sdk.from_env().images.build(path=app, tag=image, buildargs={"BASE": base})
""".strip()

HARDENED = """\
set -eu
case "$1" in
build)
    (cd "$LAB_APP/wheels" && sha256sum --quiet -c "$OLDPWD/wheels.sums")
    docker build -q --build-arg BASE="${LAB_BASE%:*}@BASE_DIGEST" -t "$LAB_IMAGE" "$LAB_APP"
    ;;
inspect)
    if docker run --rm "$LAB_IMAGE" test -e /src/.env; then
        echo "a secret is in the image" >&2
        exit 1
    fi
    ;;
push)
    docker push "$LAB_IMAGE" | sed -n 's/.*digest: \\(sha256:[0-9a-f]*\\) .*/\\1/p' > digest.txt
    test -s digest.txt
    ;;
pin)
    echo "${LAB_IMAGE%:*}@$(cat digest.txt)" > pinned.txt
    ;;
deploy)
    image="$LAB_REGISTRY/$(sed 's|^[^/]*/||' pinned.txt)"
    docker pull -q "$image"
    docker run -d --name "$LAB_SERVICE" -p 127.0.0.1::8000 "$image"
    ;;
esac
"""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    with feedback.using(QuietFeedback()):
        yield


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
    attacks.undo(own)
    assert Journal(own.state).changes() == []
    attacks.remove_names(own, f"{own.registry.address}/{REPOSITORY}")
    for repository in {"team/base", REPOSITORY} & set(own.registry.repositories()):
        for tag in own.registry.tags(repository):
            # Two tags may name one image.
            with contextlib.suppress(NotInRegistry):
                digest = own.registry.resolve(repository, tag)
                own.registry.delete_manifest(repository, digest)


Write = Callable[[str, str], Path]


@pytest.fixture
def write(own: Bench) -> Write:
    """Write a script beside the application, and what it has noted of the base and the wheels."""

    def write(name: str, text: str) -> Path:
        attacks.undo(own)
        (own.work / name).write_text(text.replace("BASE_DIGEST", str(own.base(SLIM).digest)))
        [wheel] = (own.work / "app" / "wheels").iterdir()
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (own.work / "wheels.sums").write_text(f"{digest}  {wheel.name}\n")
        return own.work / name

    return write


def deliver(own: Bench, script: Path, *faults: str) -> tuple[PipelineRun, Judgement]:
    run = run_pipeline(own, script, faults=faults)
    return run, judge(run)


def survived(judgement: Judgement) -> dict[str, bool | None]:
    return {each.fault: each.survived for each in judgement.faults}


class TestNaive:
    """The script that everybody writes first: by tags, and without a look at exit codes."""

    def test_without_a_fault_it_delivers(self, own: Bench, write: Write) -> None:
        run, judgement = deliver(own, write("deliver.py", NAIVE))
        assert judgement.ok
        assert run.delivered
        assert [(step.name, step.code) for step in run.steps] == [(name, 0) for name in STEPS]
        assert run.pushed is not None
        # An honest mirror hands out the very manifest, and not one converted to an older kind.
        assert all(run.pushed.digest in run.output(step) for step in ("push", "deploy"))
        # The server has never seen the image: what is this delivery's alone comes by the mirror.
        assert run.fetched(run.pushed.signs[run.release])

    def test_what_gets_in_before_the_build(self, own: Bench, write: Write) -> None:
        run, judgement = deliver(own, write("deliver.py", NAIVE), "secret", "base", "dependency")
        assert survived(judgement) == {"secret": False, "base": False, "dependency": False}
        # What was planted is told by the judgement only.
        assert "secret" not in repr(run)
        layers = {layer.digest for layer in own.registry.image(run.image).manifest.layers}
        evidence = {each.fault: each.evidence for each in judgement.faults}
        assert {each["layer"] for each in evidence.values()} <= layers
        assert evidence["secret"]["file"] == str(own.work / "app" / ".env")
        wheel = own.work / "app" / "wheels" / evidence["dependency"]["wheel"]
        assert digest_of(wheel.read_bytes()) == evidence["dependency"]["wheel now"]
        for fault in ("base", "dependency"):
            assert marker(fault) in evidence[fault]["log line"]

    def test_what_gets_in_after_the_push(self, own: Bench, write: Write) -> None:
        run, judgement = deliver(own, write("deliver.py", NAIVE), "push", "moved", "transit")
        assert survived(judgement) == {"push": False, "moved": False, "transit": False}
        push, moved, transit = (each.evidence for each in judgement.faults)
        assert run.pushed is not None
        assert push["digest before"] == run.pushed.digest
        assert moved["digest before"] == push["digest now"]
        assert transit["digest handed out"] in run.output("deploy")
        assert re.match(f"FORGED (HEAD|GET) /v2/{REPOSITORY}/", transit["log line"])
        # Two attacks on one tag: what was pushed is back when both are undone.
        attacks.undo(own)
        assert own.registry.resolve(REPOSITORY, run.release) == run.pushed.digest

    @pytest.mark.parametrize("build", [BUILD, BUILD_BY_SDK])
    def test_what_is_altered_at_rest(self, own: Bench, write: Write, build: str) -> None:
        # However it was built: nothing of it may be left for the server to find.
        run, judgement = deliver(own, write("deliver.py", NAIVE.replace(BUILD, build)), "rest")
        blob = judgement.faults[0].evidence["blob"]
        assert run.fetched(blob)
        assert survived(judgement) == {"rest": False}
        assert run.deployed is None
        assert blob in run.output("deploy")


@pytest.mark.parametrize(
    ("faults", "stops_at"),
    [
        ("base push moved", ""),
        ("secret transit", "inspect"),
        ("dependency transit", "build"),
        ("rest", "deploy"),
        ("transit", "deploy"),
    ],
)
def test_a_hardened_script_delivers_the_right_image_or_stops(
    own: Bench, write: Write, faults: str, stops_at: str
) -> None:
    run, judgement = deliver(own, write("deliver.sh", HARDENED), *faults.split())
    assert judgement.ok
    assert run.stopped_at == stops_at
    assert run.delivered is (not stops_at)
    assert stops_at == "" or run.deployed is None
    # After a stop, nothing more is planted.
    first, *others = judgement.faults
    assert first.planted
    assert all(each.planted is (not stops_at) for each in others)


def test_faults_are_tried_one_by_one(own: Bench, write: Write) -> None:
    proven = prove(own, write("deliver.py", NAIVE), "base")
    rows = proven[["fault", "passed", "stopped_at"]].values.tolist()
    assert rows == [["", True, ""], ["base", False, ""]]
    # A script that always stops lets nothing wrong through, and delivers nothing either.
    stops = write("deliver.py", "import sys; sys.exit('no' if sys.argv[1] == 'push' else 0)\n")
    [row] = prove(own, stops).to_dict("records")
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


def test_a_delivery_that_dies_in_the_middle_is_undone(own: Bench, write: Write) -> None:
    script = write("deliver.py", DIES)
    app = own.work / "app"
    files = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    base = own.base(SLIM)
    reached = script.parent / "reached"
    with elsewhere.start(own, RUNS, str(script)) as process:
        assert wait_until(lambda: reached.exists() and reached.read_text(), seconds=60)
        process.kill()
    psutil.Process(int(reached.read_text())).kill()
    assert (app / ".env").exists()
    assert own.registry.resolve("team/base", "1") != base.digest

    attacks.undo(own)
    left = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    # The release is no attack: it names the last delivery.
    assert left.pop(app / RELEASE) != files.pop(app / RELEASE, b"")
    assert left == files
    assert own.registry.resolve("team/base", "1") == base.digest
