"""Deliveries with a saboteur in between: the naive script of chapter 08 falls for each fault.

Hardened scripts are tried with the capstone's exercises, and with the chapter's solution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import elsewhere
import psutil
import pytest
from desk import Names, capstone, forget

from labapp.attacks import delivery
from labapp.attacks.delivery import RELEASE, REPOSITORY, STEPS
from labapp.attacks.forging import marker
from labapp.attacks.journal import Journal, undo
from labapp.bench import Bench
from labapp.journey.bases import SLIM
from labapp.machine.ports import wait_until
from labapp.registry.manifests import digest_of

BUILD_BY_SDK = """
def build():
    import docker
    docker.from_env().images.build(path=app, tag=image, buildargs={"BASE": base})
"""


@pytest.fixture(scope="module")
def own(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench with a work folder of these tests."""
    own = replace(bench, work=tmp_path_factory.mktemp("sabotage"))
    yield own
    undo(own)
    assert Journal(own.state).changes() == []
    forget(own, "team/base", REPOSITORY)


@pytest.fixture
def names(own: Bench) -> Names:
    """The script, ``naive``, and its application, ``app``, as the chapter's cells write them."""
    return capstone(own)


def app_of(names: Names) -> dict[Path, bytes]:
    """What is in the application; the release is no attack: it names the last delivery."""
    files = [path for path in names["app"].rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != RELEASE}


def test_without_a_fault_it_delivers(own: Bench, names: Names) -> None:
    run = delivery.run_pipeline(own, names["naive"])
    assert delivery.judge(run).ok
    assert [(step.name, step.code) for step in run.steps] == [(name, 0) for name in STEPS]
    # An honest mirror hands out the very manifest, and not one converted to an older kind.
    assert all(run.pushed.digest in run.output(step) for step in ("push", "deploy"))
    # The server has never seen the image: what is this delivery's alone comes by the mirror.
    assert run.fetched(run.pushed.layer)


def test_what_gets_in(own: Bench, names: Names) -> None:
    honest, app = app_of(names), names["app"]
    faults = ("secret", "base", "dependency", "push", "moved", "transit")
    run = delivery.run_pipeline(own, names["naive"], faults=faults)
    judged = delivery.judge(run).faults
    assert [(each.fault, each.survived) for each in judged] == [(name, False) for name in faults]
    # What was planted is told by the judgement only.
    assert "secret" not in repr(run)
    secret, base, dependency, push, moved, transit = (each.evidence for each in judged)
    layers = {layer.digest for layer in own.registry.image(run.image).manifest.layers}
    assert {each["layer"] for each in (secret, base, dependency, push, moved)} <= layers
    assert secret["file"] == str(app / ".env")
    wheel = app / "wheels" / dependency["wheel"]
    assert digest_of(wheel.read_bytes()) == dependency["wheel now"]
    assert marker("dependency") in dependency["log line"]
    assert push["digest before"] == run.pushed.digest
    assert moved["digest before"] == push["digest now"]
    assert transit["digest handed out"] in run.output("deploy")
    assert re.match(f"FORGED (HEAD|GET) /v2/{REPOSITORY}/", transit["log line"])
    assert app_of(names) != honest
    # Two attacks on one tag: what was pushed is back when both are undone.
    undo(own)
    assert own.registry.resolve(REPOSITORY, run.release) == run.pushed.digest
    assert own.registry.resolve("team/base", "1") == own.base(SLIM).digest
    assert app_of(names) == honest


def test_what_is_altered_at_rest(own: Bench, names: Names) -> None:
    # Built by the SDK, which keeps more: nothing of it may be left for the server to find.
    script = names["naive"]
    script.write_text(names["head"] + names["builder"] + BUILD_BY_SDK + names["server"])
    run = delivery.run_pipeline(own, script, faults=["rest"])
    [rest] = delivery.judge(run).faults
    assert (rest.survived, run.deployed) == (False, None)
    blob = rest.evidence["blob"]
    assert run.fetched(blob) and blob in run.output("deploy")


def test_faults_are_tried_one_by_one(own: Bench, names: Names) -> None:
    proven = delivery.prove(own, names["naive"], "base")
    rows = proven[["fault", "passed", "stopped_at"]].values.tolist()
    assert rows == [["", True, ""], ["base", False, ""]]
    # A script that always stops lets nothing wrong through, and delivers nothing either.
    names["naive"].write_text("import sys\nif sys.argv[1] == 'push': sys.exit('no')\n")
    [row] = delivery.prove(own, names["naive"]).to_dict("records")
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


def test_a_delivery_that_dies_in_the_middle_is_undone(own: Bench, names: Names) -> None:
    script, honest, base = names["naive"], app_of(names), own.base(SLIM)
    script.write_text(DIES)
    reached = script.parent / "reached"
    with elsewhere.start(own, RUNS, str(script)) as process:
        assert wait_until(lambda: reached.exists() and reached.read_text(), seconds=60)
        process.kill()
    psutil.Process(int(reached.read_text())).kill()
    assert (names["app"] / ".env").exists()
    assert own.registry.resolve("team/base", "1") != base.digest

    undo(own)
    assert app_of(names) == honest
    assert own.registry.resolve("team/base", "1") == base.digest
