"""Builds, pushes and pulls as real engines told of them, and what a failure says; Podman's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded import CLASSIC, ENGINES, RECORDED, engine_that_built, engine_that_said

from labapp import feedback
from labapp.errors import BuildError, PullError, PushError
from labapp.feedback import QuietFeedback
from labapp.journey.build import Build, build
from labapp.journey.transfer import pull, push
from labapp.registry import podman
from labapp.registry.server import RegistryServer
from labapp.state import State

TAG = "localhost:1/test/shop:1"


pytestmark = pytest.mark.usefixtures("told")


@pytest.mark.parametrize(
    "said",
    [
        "toomanyrequests: You have reached your pull rate limit. You may increase the limit by "
        "authenticating and upgrading: https://www.docker.com/increase-rate-limit",
        "unexpected status from GET request to https://x/v2/x/manifests/1: 429 Too Many Requests",
    ],
)
def test_too_many_requests(said: str, tmp_path: Path) -> None:
    """Told as such, with what helps: neither the Dockerfile nor the name is wrong."""
    (tmp_path / "it.jsonl").write_text(f'{{"http_status": 200}}\n{json.dumps({"error": said})}\n')
    (tmp_path / "it.Dockerfile").write_text("FROM python:3.13\n")
    (tmp_path / "it.txt").write_text(f"ERROR: failed to solve: python:3.13: {said}\n")
    with (
        engine_that_said("docker-26", tmp_path, str(tmp_path / "it")) as engine,
        pytest.raises(PullError) as pulling,
    ):
        pull(engine, None, "python:3.13")
    with pytest.raises(BuildError) as building:
        built("docker-26", str(tmp_path / "it"), tmp_path, status=1)
    for text in (str(pulling.value), str(building.value)):
        assert said in text and "LABAPP_MIRROR" in text and "Mend the Dockerfile" not in text


def test_the_command_line_that_is_there_is_told(
    tmp_path: Path, told: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for there in ("nothing", "podman", "docker"):
        (tmp_path / there).touch(mode=0o755)
        feedback.command(["docker", "push", "x"])
    assert told.commands == ["docker push x", "podman push x", "docker push x"]


def built(engine: str, label: str, folder: Path, *, status: int = 0) -> Build:
    """What is read of a recorded build."""
    file = RECORDED / f"{label.removesuffix('-again')}.Dockerfile"
    with engine_that_built(engine, label, folder, status) as docker:
        return build(docker, RECORDED, tag=TAG, dockerfile=file)


STORES = {
    "docker-20.10": "classic",
    "docker-26": "containerd",
    "docker-26-classic": "classic",
    "docker-28": "containerd",
    "docker-28-classic": "classic",
    "podman-4": "podman",
    "podman-5": "podman",
}


@pytest.mark.parametrize("name", ENGINES)
def test_what_an_engine_is(name: str, tmp_path: Path) -> None:
    with engine_that_said(name, tmp_path) as engine:
        assert engine.store == STORES[name]
        assert engine.name.lower() == name.partition("-")[0]
        assert engine.version.startswith(name.split("-")[1])
        assert (engine.platform, engine.rootless) == ("linux/amd64", False)
        assert ("CONTAINER_HOST" in engine.variables) == (engine.name == "Podman")


@pytest.mark.parametrize("name", ["podman-4", "podman-5"])
def test_where_podman_cannot_be_told(name: str, tmp_path: Path, told: QuietFeedback) -> None:
    """A person is told the file and what belongs into it, for the mirror of an attack as well."""
    state = State.open(tmp_path / "lab")
    state.write("registry", {"port": 41233, "image": "labapp/registry:x"})
    with engine_that_said(name, tmp_path) as engine:
        server = RegistryServer(engine=engine, state=state)
        # The recorded engine runs no container, by which the file would be written.
        podman.allow_http(engine, state, server)
        assert not podman.takes_http(engine, server.address)
    advice = told.lines[-1]
    assert f"'{podman.written(state)}'" in advice
    for port in (41233, podman.mirror_port(state)):
        assert f'[[registry]]\nlocation = "localhost:{port}"\ninsecure = true\n' in advice


STEPS = {
    "classic": "ARG FROM/first ARG/first RUN/first COPY/first FROM COPY COPY",
    # What is before the first FROM is not told.
    "podman": "FROM/first ARG/first RUN/first COPY/first FROM COPY COPY",
    # One FROM for both stages, which names now this one, now that one, is left out here.
    "buildkit": "RUN/first COPY/first COPY COPY",
}


@pytest.mark.parametrize("label", ["build", "build-again"])
@pytest.mark.parametrize("engine", ENGINES)
def test_steps(engine: str, label: str, tmp_path: Path, told: QuietFeedback) -> None:
    made = built(engine, label, tmp_path)
    kind = "buildkit"
    if engine in CLASSIC:
        kind = "podman" if engine.startswith("podman") else "classic"
    shown = [s for s in made.steps if kind != "buildkit" or not s.instruction.startswith("FROM")]
    found = ["/".join(filter(None, (s.instruction.split()[0], s.stage))) for s in shown]
    assert " ".join(found) == STEPS[kind]
    acting = [step for step in made.steps if step.instruction.startswith(("RUN", "COPY"))]
    assert {step.cached for step in acting} == {label == "build-again"}
    assert [s.number for s in made.steps] == list(range(1, len(made.steps) + 1))
    if label == "build":
        # A program may print the second, without a line end.
        assert [line[:8] for line in acting[0].log] == ["out loud", "Step 9/9"]
        assert acting[0].seconds > 0
        assert made.context_bytes > 200_000
    # A step that only chooses the base has nothing to cache.
    chosen = made.table[made.table["instruction"].str.match(r"FROM|ARG BASE")]
    assert set(chosen["cached"]) == {""}
    assert list(made.table.columns) == ["step", "stage", "instruction", "cached", "seconds"]
    [bars] = told.shown
    assert all(bar.finished for bar in bars.bars.values())


# The line, the first of the log, and facts: the cause, the quoted line, where to look.
FAILURES = {
    "failing-run": (3, "first word", ["3", "4 |     printf aside"]),
    "failing-copy": (3, None, ["nope.txt", "3 | COPY a.txt nope.txt", ".dockerignore"]),
    "failing-from": (2, None, ["none/such:1", "2 | FROM", "the first FROM"]),
    "failing-syntax": (3, None, ["nknown instruction: ", "3 | COPPY"]),
    "failing-argument": (2, None, ["${A}", "2 | FROM", "the first FROM"]),
    "failing-empty": (None, None, ["no instructions"]),
}
PODMAN = {label: (None, None, ["no "]) for label in ("failing-argument", "failing-empty")}
"""What it can't tell of."""


@pytest.mark.parametrize("label", FAILURES)
@pytest.mark.parametrize("engine", ENGINES)
def test_failures(engine: str, label: str, tmp_path: Path) -> None:
    known = FAILURES | PODMAN if engine.startswith("podman") else FAILURES
    line, printed, facts = known[label]
    with pytest.raises(BuildError) as caught:
        built(engine, label, tmp_path, status=1)
    message = str(caught.value)
    assert "failed to solve" not in message
    assert "DEPRECATED" not in message
    for fact in facts:
        assert fact in message
    counts_from_one = engine not in CLASSIC and label == "failing-empty"
    assert caught.value.line == (1 if counts_from_one else line)
    if printed:
        assert printed in caught.value.log[0]
    elif not engine.startswith("podman"):  # whose own words are in the log
        assert not caught.value.log


@pytest.mark.parametrize("flag", ["--from=builder ", ""])
def test_a_copy_from_a_stage_that_there_is_not(flag: str, tmp_path: Path) -> None:
    (tmp_path / "it.Dockerfile").write_text(f"FROM a AS build\nFROM b\nCOPY {flag}/opt /opt\n")
    (tmp_path / "it.txt").write_text("it.Dockerfile:3\nERROR: failed to solve: not found\n")
    with pytest.raises(BuildError, match=r"--from=.* 'build'") as caught:
        built("docker-26", str(tmp_path / "it"), tmp_path, status=1)
    assert (".dockerignore" in str(caught.value)) == (not flag)


@pytest.mark.parametrize("engine", ENGINES)
def test_docker_is_told_which_builder_and_which_labels(
    engine: str, tmp_path: Path, told: QuietFeedback
) -> None:
    file = tmp_path / "x.Dockerfile"
    file.write_text("FROM scratch\n")
    with engine_that_built(engine, "build", tmp_path) as docker:
        options = {"dockerfile": file, "args": {"A": "b"}, "target": "first", "cache": False}
        build(docker, tmp_path, tag=TAG, **options)  # type: ignore[arg-type]
        for tag, fact in ((TAG, "Dockerfile"), (f"web@sha256:{'0' * 64}", "digest")):
            with pytest.raises(BuildError, match=fact):
                build(docker, tmp_path, tag=tag)
    shown = f"build -t {TAG} -f {file} --build-arg A=b --target first --no-cache"
    assert told.commands == [f"docker {shown} {tmp_path}"]
    # So that a build that fails leaves no container behind.
    ran = shown + (" --force-rm" if engine in CLASSIC else "")
    ran += f" --label=labapp.lab=0123abcd {tmp_path}"
    assert (tmp_path / "arguments").read_text().strip() == ran
    wanted = "DOCKER_BUILDKIT=0" if engine in CLASSIC else "DOCKER_BUILDKIT=1"
    assert wanted in (tmp_path / "environment").read_text().splitlines()


def test_stages_that_run_side_by_side_and_older_words_of_failure(tmp_path: Path) -> None:
    (tmp_path / "it.Dockerfile").write_text("FROM a AS build\nFROM b\n")
    recorded = (
        "#5 [build 2/3] COPY a.txt /", "#5 ...", "", "#6 [stage-1 2/3] RUN echo hi", "#6 0.2   hi",
        "#6 DONE 0.4s", "#5 [build 2/3] COPY a.txt /", "#5 DONE 0.2s", "#7 [build 3/3] RUN make",
        "#7 0.101 making", '#7 ERROR: process "make" did not complete', "x/run.Dockerfile:2",
        "ERROR: failed to build: failed to solve: process",
    )  # fmt: skip
    (tmp_path / "it.txt").write_text("\n".join(recorded))

    steps = built("docker-26", str(tmp_path / "it"), tmp_path).steps
    assert [(s.stage, s.number, s.seconds, s.log) for s in steps] == [
        ("build", 1, 0.2, ()), ("build", 2, 0.0, ("making",)), (None, 3, 0.4, ("  hi",)),
    ]  # fmt: skip
    with pytest.raises(BuildError) as caught:
        built("docker-26", str(tmp_path / "it"), tmp_path, status=1)
    assert (caught.value.log, caught.value.line) == (("making",), 2)


def test_of_ten_steps_the_first_nine_are_padded(tmp_path: Path) -> None:
    (tmp_path / "it.Dockerfile").write_text("FROM x\n" + "COPY a /\n" * 7 + "RUN cc a.c\nUSER 1\n")
    (tmp_path / "it.txt").write_text(
        "#4 [ 1/10] FROM x\n#4 CACHED\n\n#5 [ 9/10] RUN cc a.c\n#5 0.854 cc: not found\n"
        '#5 ERROR: process "/bin/sh -c cc a.c" did not complete successfully: exit code: 127\n'
        "it.Dockerfile:9\nERROR: failed to solve: process did not complete successfully\n"
    )
    with pytest.raises(BuildError) as caught:
        built("docker-26", str(tmp_path / "it"), tmp_path, status=1)
    assert caught.value.log == ("cc: not found",)


def test_a_digest_that_no_registry_serves_is_doubted(tmp_path: Path) -> None:
    pinned = f"localhost:1/team/base@sha256:{'1' * 64}"
    (tmp_path / "it.Dockerfile").write_text(f"FROM {pinned}\n")
    # What a registry says of a config's digest, the image ID of some engines.
    said = f"{pinned}: unexpected status from HEAD request: 500 Internal Server Error"
    (tmp_path / "it.txt").write_text(f"it.Dockerfile:1\nERROR: failed to solve: {said}\n")
    with pytest.raises(BuildError, match="image ID"):
        built("docker-26", str(tmp_path / "it"), tmp_path, status=1)


# Pushes and pulls, to a registry that the lab may not ask

NAME = "registry.example/shop/web:1"

OUTCOMES = {
    "push": "sent",
    "push-again": "already there",
    "push-elsewhere": "mounted",
    "pull": "fetched",
    "pull-again": "already here",
}
"""What came of both layers, by what the engine says, if it says something of them."""


@pytest.mark.parametrize("label", OUTCOMES)
@pytest.mark.parametrize("name", ENGINES)
def test_outcomes(label: str, name: str, tmp_path: Path, told: QuietFeedback) -> None:
    act = push if label.startswith("push") else pull
    with engine_that_said(name, tmp_path, label) as engine:
        done = act(engine, None, NAME)
    podman = name.startswith("podman")
    silent = act is push if podman else label == "pull-again"
    # At a pull, Podman counts the config among them, as the last.
    assert list(done.layers["outcome"])[:2] == ([] if silent else [OUTCOMES[label]] * 2)
    assert done.digest.startswith("sha256:") or (podman and act is pull)
    [bars] = told.shown
    assert all(bar.finished for bar in bars.bars.values())


def test_the_first_word_on_a_layer_counts(tmp_path: Path) -> None:
    """Some containerd stores say "Pull complete" of a layer that "Already exists"."""
    with engine_that_said("docker-26", tmp_path, "pull-from-the-build-cache") as engine:
        assert set(pull(engine, None, NAME).layers["outcome"]) == {"already here"}


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_in_the_stream_is_raised(name: str, tmp_path: Path) -> None:
    layers = json.loads((RECORDED / name / "layers.json").read_text())
    for act, label, kind, fact in (
        (push, "push-no-registry", PushError, "connection refused"),
        (push, "push-no-image", PushError, "docker tag"),
        (pull, "pull-altered", PullError, f"{layers[1]} has been altered"),
    ):
        with (
            engine_that_said(name, tmp_path, label) as engine,
            pytest.raises(kind, match=fact),
        ):
            act(engine, None, NAME)
