"""Deliveries with a saboteur in between: a naive script falls for each fault, hardened ones don't.

Each hardened script is one that a learner may write: one in Python with the SDK, one for a shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import elsewhere
import psutil
import pytest

from labapp import attacks
from labapp.attacks import mirror
from labapp.attacks.forging import marker
from labapp.attacks.journal import Journal
from labapp.attacks.judging import Judgement, judge, prove
from labapp.attacks.pipeline import RELEASE, REPOSITORY, PipelineRun, run_pipeline
from labapp.attacks.saboteur import sabotage
from labapp.attacks.undoing import remove_names
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.manifests import digest_of

QUIET = QuietFeedback()

DOCKERFILE = """\
ARG BASE=python:3.13-slim
FROM ${BASE}
WORKDIR /src
COPY . .
RUN python3 -m pip install -q --no-index --no-deps --find-links=wheels OPTIONS -r REQUIREMENTS
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

HARDENED_PYTHON = """\
import json
import os
import sys
from pathlib import Path

import docker

BASE = "BASE_DIGEST"
env, client, note = os.environ, docker.from_env(), Path("digest.txt")
name, _, tag = env["LAB_IMAGE"].rpartition(":")

def build():
    base = env["LAB_BASE"].rpartition(":")[0] + "@" + BASE
    client.images.build(path=env["LAB_APP"], tag=env["LAB_IMAGE"], buildargs={"BASE": base})

def push():
    # The engine computes the digest of what it sends: nobody can have changed that one.
    for line in client.api.push(name, tag=tag, stream=True, decode=True):
        if "error" in line:
            sys.exit(line["error"])
        if "Digest" in line.get("aux", {}):
            note.write_text(line["aux"]["Digest"])

def deploy():
    pinned = name + "@" + note.read_text()
    client.images.pull(name, tag=note.read_text())
    client.containers.run(
        pinned, detach=True, name=env["LAB_SERVICE"], ports={"8000/tcp": ("127.0.0.1", 0)}
    )

globals().get(sys.argv[1], lambda: None)()
"""

HARDENED_SHELL = """\
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


@pytest.fixture(scope="module")
def own(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench with a work folder of these tests, and in it two applications."""
    own = replace(bench, work=tmp_path_factory.mktemp("sabotage"))
    [wheel] = (own.application / "wheels").glob("blinker-*.whl")
    for name, options in (("app", ""), ("careful", "--require-hashes")):
        app = own.work / name
        (app / "wheels").mkdir(parents=True)
        shutil.copy(wheel, app / "wheels")
        (app / "requirements.txt").write_text(f"blinker=={wheel.name.split('-')[1]}\n")
        hashed = attacks.hashed_requirements(app / "requirements.txt", app / "wheels")
        (app / "hashed.txt").write_text(hashed)
        file = "hashed.txt" if options else "requirements.txt"
        text = DOCKERFILE.replace("OPTIONS", options).replace("REQUIREMENTS", file)
        (app / "Dockerfile").write_text(text)
    (own.work / "careful" / ".dockerignore").write_text("**/.env\n")
    yield own
    attacks.undo(own, feedback=QUIET)
    assert Journal(own.state).changes() == []
    remove_names(own, f"{own.registry.address}/{REPOSITORY}")
    for repository in {"team/base", REPOSITORY} & set(own.registry.repositories()):
        for tag in own.registry.tags(repository):
            # Two tags may name one image.
            with contextlib.suppress(NotInRegistry):
                digest = own.registry.resolve(repository, tag)
                own.registry.delete_manifest(repository, digest)


@dataclass(frozen=True)
class Delivery:
    """A script of these tests, and the application that it delivers."""

    own: Bench
    script: Path
    app: str

    def run(self, *faults: str) -> tuple[PipelineRun, Judgement]:
        app = self.own.work / self.app
        run = run_pipeline(self.own, self.script, faults=faults, app=app, feedback=QUIET)
        return run, judge(run)


@pytest.fixture
def write(own: Bench, tmp_path: Path) -> Callable[..., Delivery]:
    """Write a script, and what it has noted of the base and the wheels."""

    def write(name: str, text: str, *, app: str = "app") -> Delivery:
        attacks.undo(own, feedback=QUIET)
        base = str(own.base("python:3.13-slim").digest)
        (tmp_path / name).write_text(text.replace("BASE_DIGEST", base))
        wheels = sorted((own.work / app / "wheels").iterdir())
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in wheels]
        (tmp_path / "wheels.sums").write_text("\n".join(sums) + "\n")
        return Delivery(own, tmp_path / name, app)

    return write


def survived(judgement: Judgement) -> dict[str, bool | None]:
    return {each.fault: each.survived for each in judgement.faults}


class TestNaive:
    """The script that everybody writes first: by tags, and without a look at exit codes."""

    def test_without_a_fault_it_delivers(self, write: Callable[..., Delivery]) -> None:
        run, judgement = write("deliver.py", NAIVE).run()
        assert judgement.ok
        assert run.delivered
        assert list(run.table["step"]) == ["build", "inspect", "push", "pin", "deploy"]
        assert not run.table["exit_code"].any()
        assert run.pushed is not None
        assert run.pushed.digest in run.output("push")
        # An honest mirror hands out the very manifest, and not one converted to an older kind.
        assert run.pushed.digest in run.output("deploy")
        assert "answers" in judgement.happened

    def test_what_gets_in_before_the_build(self, write: Callable[..., Delivery]) -> None:
        delivery = write("deliver.py", NAIVE)
        run, judgement = delivery.run("secret", "base", "dependency")
        assert survived(judgement) == {"secret": False, "base": False, "dependency": False}
        assert not judgement.ok
        # What was planted is told by the judgement only.
        assert "secret" not in repr(run)
        held = delivery.own.registry.image(run.image)
        layers = {layer.digest for layer in held.manifest.layers}
        evidence = {each.fault: each.evidence for each in judgement.faults}
        assert {each["layer"] for each in evidence.values()} <= layers
        assert evidence["secret"]["file"] == str(delivery.own.work / "app" / ".env")
        wheel = delivery.own.work / "app" / "wheels" / evidence["dependency"]["wheel"]
        assert digest_of(wheel.read_bytes()) == evidence["dependency"]["wheel now"]
        assert marker("base") in evidence["base"]["log line"]
        assert marker("dependency") in evidence["dependency"]["log line"]

    def test_what_gets_in_after_the_push(self, write: Callable[..., Delivery]) -> None:
        delivery = write("deliver.py", NAIVE)
        run, judgement = delivery.run("push", "moved", "transit")
        assert survived(judgement) == {"push": False, "moved": False, "transit": False}
        evidence = {each.fault: each.evidence for each in judgement.faults}
        assert run.pushed is not None
        assert evidence["push"]["digest before"] == run.pushed.digest
        assert evidence["moved"]["digest before"] == evidence["push"]["digest now"]
        assert evidence["transit"]["digest handed out"] in run.output("deploy")
        line = evidence["transit"]["log line"]
        assert re.match("FORGED (HEAD|GET) /v2/shop/delivered/", line)
        assert line in mirror.log(delivery.own)

    def test_what_is_altered_at_rest(self, write: Callable[..., Delivery]) -> None:
        run, judgement = write("deliver.py", NAIVE).run("rest")
        assert survived(judgement) == {"rest": False}
        assert "no container of that name runs" in judgement.faults[0].happened
        assert judgement.faults[0].evidence["blob"] in run.output("deploy")


class TestHardenedInPython:
    @pytest.fixture
    def delivery(self, write: Callable[..., Delivery]) -> Delivery:
        return write("deliver.py", HARDENED_PYTHON, app="careful")

    def test_it_delivers_the_right_image_all_the_same(self, delivery: Delivery) -> None:
        run, judgement = delivery.run("secret", "base", "push", "moved")
        assert judgement.ok
        assert run.delivered
        assert all("all the same" in each.happened for each in judgement.faults)

    @pytest.mark.parametrize(
        ("fault", "step"), [("dependency", "build"), ("rest", "deploy"), ("transit", "deploy")]
    )
    def test_it_stops_where_there_is_no_right_image(
        self, delivery: Delivery, fault: str, step: str
    ) -> None:
        run, judgement = delivery.run(fault)
        assert judgement.ok
        assert run.stopped_at == step
        assert run.deployed is None
        assert judgement.faults[0].planted


class TestHardenedInShell:
    @pytest.fixture
    def delivery(self, write: Callable[..., Delivery]) -> Delivery:
        return write("deliver.sh", HARDENED_SHELL)

    def test_it_delivers_the_right_image_all_the_same(self, delivery: Delivery) -> None:
        run, judgement = delivery.run("base", "push", "moved")
        assert judgement.ok
        assert run.delivered

    @pytest.mark.parametrize(
        ("fault", "step"), [("secret", "inspect"), ("dependency", "build"), ("transit", "deploy")]
    )
    def test_it_stops_where_there_is_no_right_image(
        self, delivery: Delivery, fault: str, step: str
    ) -> None:
        run, judgement = delivery.run(fault, "transit")
        assert judgement.ok
        assert run.stopped_at == step
        # After a stop, nothing more is planted.
        planted = {each.fault: each.planted for each in judgement.faults}
        assert planted == {fault: True, "transit": fault == "transit"}


def test_half_a_control_stops_half_of_the_faults(write: Callable[..., Delivery]) -> None:
    # It pins, but asks the registry what the tag names only after the push.
    text = HARDENED_SHELL.replace(
        'echo "${LAB_IMAGE%:*}@$(cat digest.txt)" > pinned.txt',
        'docker pull -q "$LAB_IMAGE"\n'
        "    docker inspect -f '{{index .RepoDigests 0}}' \"$LAB_IMAGE\" > pinned.txt",
    )
    _, judgement = write("deliver.sh", text).run("push", "moved")
    assert survived(judgement) == {"push": False, "moved": True}


def test_faults_are_tried_one_by_one(own: Bench, write: Callable[..., Delivery]) -> None:
    app = own.work / "app"
    proven = prove(
        own, write("deliver.py", NAIVE).script, faults=("base",), app=app, feedback=QUIET
    )
    assert proven[["fault", "passed", "stopped_at"]].values.tolist() == [
        ["", True, ""],
        ["base", False, ""],
    ]
    # A script that always stops lets nothing wrong through, and delivers nothing either.
    stops = "import sys; sys.exit('no' if sys.argv[1] == 'push' else 0)\n"
    [row] = prove(own, write("deliver.py", stops).script, app=app, feedback=QUIET).to_dict(
        "records"
    )
    assert (row["fault"], row["passed"], row["stopped_at"], row["last_line"]) == (
        "", False, "push", "no",
    )  # fmt: skip


def test_the_same_seed_gives_the_same_faults(own: Bench, write: Callable[..., Delivery]) -> None:
    delivery = write("deliver.py", "import sys; sys.exit(1)\n")

    def faults(seed: int) -> list[str]:
        app = own.work / "app"
        run = run_pipeline(own, delivery.script, seed=seed, app=app, feedback=QUIET)
        return [each.fault for each in judge(run).faults]

    assert faults(7) == faults(7) == list(sabotage(own, seed=7).faults)
    assert sabotage(own, seed=7) == sabotage(own, seed=7)
    assert "faults" not in repr(sabotage(own, seed=7))
    assert len({sabotage(own, seed=seed).faults for seed in range(40)}) > 10


DIES = """
import os, pathlib, sys, time
if sys.argv[1] == "build":
    pathlib.Path("reached").write_text(str(os.getpid()))
    time.sleep(60)
"""

RUNS = """
from labapp.attacks.pipeline import run_pipeline

script = Path(arguments[0])
faults = ("secret", "base", "dependency")
run_pipeline(bench, script, faults=faults, app=Path(work) / "app", feedback=QuietFeedback())
"""


def test_a_delivery_that_dies_in_the_middle_is_undone(
    own: Bench, write: Callable[..., Delivery]
) -> None:
    script = write("deliver.py", DIES).script
    app = own.work / "app"
    files = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    base = own.base("python:3.13-slim")
    process = elsewhere.start(own, RUNS, str(script))
    reached, end = script.parent / "reached", time.monotonic() + 60
    with process:
        while not (reached.exists() and reached.read_text()) and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    psutil.Process(int(reached.read_text())).kill()
    assert (app / ".env").exists()
    assert own.registry.resolve("team/base", "1") != base.digest

    attacks.undo(own, feedback=QUIET)
    left = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    # The release is no attack: it names the last delivery.
    assert left.pop(app / RELEASE) != files.pop(app / RELEASE, b"")
    assert left == files
    assert own.registry.resolve("team/base", "1") == base.digest


def test_a_script_that_can_not_be_run_is_told(own: Bench, write: Callable[..., Delivery]) -> None:
    with pytest.raises(AttackError, match=r"there is no such file.*copy another"):
        Delivery(own, own.work / "gone.py", "app").run()
    with pytest.raises(AttackError, match=r"in neither '\.py' nor '\.sh'"):
        write("deliver.rb", "").run()
    with pytest.raises(AttackError, match="not in this chapter's folder"):
        Delivery(own, write("deliver.py", "").script, "..").run()
    with pytest.raises(AttackError, match=r"the fault 'run': there is none.*secret, base"):
        write("deliver.py", "").run("run")


def test_a_script_that_does_nothing_delivers_nothing(write: Callable[..., Delivery]) -> None:
    run, judgement = write("deliver.py", "").run("push", "transit")
    assert not judgement.ok
    assert survived(judgement) == {"push": False, "transit": False}
    assert all("the registry has no" in each.happened for each in judgement.faults)
    assert run.pushed is None
