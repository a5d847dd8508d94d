"""Builds, pushes and pulls over a real registry, also a damaged one; containers that are run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import elsewhere
import pytest
from registries import stored_at

from labapp import doctor
from labapp.bench import Bench
from labapp.course.exercises import Coach
from labapp.errors import BuildError, ImageError, PullError, PushError, RunError
from labapp.feedback import QuietFeedback
from labapp.journey.build import build
from labapp.journey.run import remove_running, run, run_once
from labapp.journey.transfer import pull, push, remove, tag
from labapp.lab import Lab
from labapp.machine import engine as engines
from labapp.machine.engine import OWNER_LABEL, Engine, owner, remove_leftovers
from labapp.machine.ports import free_port, wait_until
from labapp.reference import Reference
from labapp.registry.log import listening
from labapp.registry.server import RegistryServer
from labapp.state import ROLE_LABEL, State

NOBODYS = f"sha256:{'0' * 64}"


@pytest.fixture
def image(engine: Engine, own: RegistryServer, tmp_path: Path) -> Iterator[str]:
    """A small image of two layers that nobody has seen before, in the engine."""
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    make(engine, tmp_path, name)
    yield name
    remove(engine, name)


def make(engine: Engine, folder: Path, name: str, size: int = 200_000) -> None:
    (folder / "one").write_bytes(os.urandom(size))
    (folder / "two").write_bytes(os.urandom(1_000))
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY one /\nCOPY two /\nCMD ["/one"]\n')
    build(engine, folder, tag=name)


# --- builds


@pytest.fixture
def fresh(engine: Engine) -> Iterator[str]:
    """A name for an image, taken from it at the end."""
    name = f"labapp/test-{uuid.uuid4().hex[:8]}:1"
    yield name
    remove(engine, name)


def test_what_leads_the_docker_command_elsewhere(
    bench: Bench, fresh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab, and a learner beside it, work on the engine all the same."""
    plugins = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "cli-plugins"
    settings = {"credsStore": "of-an-engine-that-went", "cliPluginsExtraDirs": [str(plugins)]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", bench.engine.host)
    engine = engines.find(bench.state)
    if engine.builder.startswith("buildx"):
        subprocess.run(["docker", "buildx", "create", "--use", "--name", "mine"], check=True)
        for command in ("'docker buildx build'", "'docker build'"):
            found = {finding.subject: finding.text for finding in doctor.examine(bench.state)}
            assert f"{command} takes 'mine' (docker-container)" in found["builder"]
            monkeypatch.setenv("BUILDX_BUILDER", "mine")
    monkeypatch.setenv("DOCKER_API_VERSION", "1.99")
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/riscv64")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    mine = f"{bench.server.address}/{fresh}"
    build(engine, tmp_path, tag=mine)
    assert push(engine, bench.server, mine).digest
    command = ["docker", "build", "--tag", fresh, str(tmp_path)]
    subprocess.run(command, env=engine.environment(), check=True)
    for name in (fresh, mine):
        attrs = engine.client.images.get(name).attrs
        assert f"{attrs['Os']}/{attrs['Architecture']}" == engine.platform
    remove(engine, mine)


def test_a_terminal_builds_from_the_same_cache(
    engine: Engine, slim: Reference, tmp_path: Path, fresh: str, told: QuietFeedback
) -> None:
    """By the command that is printed, and the reverse; what comes of a build is in the chapters."""
    file = tmp_path / "my.Dockerfile"
    file.write_text(
        "ARG BASE\nFROM ${BASE} AS one\nARG WORD\nRUN echo ${WORD} > /w\nFROM ${BASE}\nCOPY no /\n"
    )

    def cached(word: str, **more: bool) -> bool:
        args = {"BASE": str(slim), "WORD": word}
        made = build(engine, tmp_path, tag=fresh, dockerfile=file, args=args, target="one", **more)
        [ran] = (step for step in made.steps if step.instruction.startswith("RUN"))
        return ran.cached

    unique = uuid.uuid4().hex
    assert [cached(unique), cached(unique), cached(unique, cache=False)] == [False, True, False]
    variables = engine.environment()
    if engine.builder == "classic":
        variables["DOCKER_BUILDKIT"] = "0"
    mine = shlex.split(told.commands[0])
    subprocess.run([*mine, "--build-arg", "WORD=theirs"], env=variables, check=True)
    assert cached("theirs")


def test_failures_leave_nothing_behind(
    engine: Engine, slim: Reference, tmp_path: Path, fresh: str
) -> None:
    """What each builder says of a failure is in the unit tests."""
    mark = uuid.uuid4().hex
    for text, line, log in (
        (f"FROM {slim}\nRUN echo {mark} && \\\n    exit 3\n", 2, (mark,)),
        (f"FROM {slim}\nRUN true {mark}\nCOPY nope.txt /x/\n", 3, ()),
        (f"# base\nFROM {slim.registry}/none/such:1\n", 2, ()),
    ):
        (tmp_path / "Dockerfile").write_text(text)
        with pytest.raises(BuildError) as caught:
            build(engine, tmp_path, tag=fresh)
        assert (caught.value.line, caught.value.log) == (line, log)
    containers = engine.client.api.containers(all=True)
    assert [each["Command"] for each in containers if mark in each["Command"]] == []


# --- push and pull


def test_push_and_pull(
    engine: Engine, own: RegistryServer, image: str, told: QuietFeedback
) -> None:
    pushed = push(engine, own, image)
    registry, repository = own.registry(), pushed.reference.repository
    manifest = registry.image(image).manifest
    assert pushed.digest == registry.resolve(repository, "1")
    assert pushed.layers.to_dict("list") == {
        "digest": [layer.digest for layer in manifest.layers],
        "bytes": [layer.size for layer in manifest.layers],
        "outcome": ["sent", "sent"],
    }
    assert pushed.moved_bytes == manifest.download_bytes
    assert told.commands[-1] == f"docker push {image}"
    assert pushed.digest in told.lines[-1]

    again = push(engine, own, image)
    assert list(again.layers["outcome"]) == ["already there"] * 2
    assert (again.digest, again.moved_bytes) == (pushed.digest, 0)
    assert list(pull(engine, own, image).layers["outcome"]) == ["already here"] * 2

    pinned = pushed.reference.pinned(pushed.digest)
    for name in (image, pinned):
        remove(engine, image)
        with listening(own) as wire:
            fetched = pull(engine, own, name)
        assert fetched.digest == pushed.digest
        assert list(fetched.layers["digest"]) == list(pushed.layers["digest"])
        # As if the engine had never seen it, whatever its builder keeps.
        assert list(fetched.layers["outcome"]) == ["fetched"] * 2
        came = wire.rows[wire.rows["meaning"] == "give me this blob"]
        came = came[came["digest"].isin(pushed.layers["digest"].str[7:15])]
        assert came["bytes"].sum() == fetched.moved_bytes == pushed.moved_bytes
    assert remove(engine, pinned)
    pull(engine, own, image)

    name = pushed.reference.name
    tag(engine, image, name)
    assert told.commands[-1] == f"docker tag {image} {name}:latest"
    push(engine, own, name)  # No tag means "latest".
    assert registry.tags(repository) == ["1", "latest"]
    assert [remove(engine, name), remove(engine, name)] == [True, False]


def test_what_the_lab_removes_was_never_seen_or_it_says_why(
    bench: Bench, own: RegistryServer, image: str, fresh: str, told: QuietFeedback
) -> None:
    engine, containers = bench.engine, bench.engine.client.containers
    mine = replace(bench, server=own, registry=own.registry())
    lab = Lab(bench=mine, coach=Coach(mine))
    pushed = lab.push(image)
    learners = containers.create(image)
    with pytest.raises(ImageError, match=f"{image}.*{learners.short_id}"):
        lab.remove(image)
    lab.clean_up()
    assert engine.container(learners.id) is None
    with pytest.raises(ImageError, match=image):  # That short, it would be one of Docker Hub's.
        lab.pull(image.partition("/")[2])
    containers.create(image, name=fresh[7:-2], labels={**engine.labels, ROLE_LABEL: "run"})
    for name in (other := image.replace(":1", ":2"), fresh):
        tag(engine, image, name)
    lab.remove(image)
    assert told.commands[-2:] == [
        f"docker rm --force {fresh[7:-2]}",
        f"docker image rm {image} {other}",
    ]
    assert (engine.image(image), engine.image(other)) == (None, None)
    assert fresh in told.lines[-1]
    assert lab.pull(image).moved_bytes == 0
    lab.remove(image, fresh)
    assert fresh not in told.lines[-1] or told.lines[-1].startswith("Removed")
    assert lab.pull(image).moved_bytes == pushed.moved_bytes


def test_what_is_not_there(engine: Engine, own: RegistryServer, image: str) -> None:
    push(engine, own, image)
    name = image.rpartition(":")[0]
    for act, what, kind, fact in (
        (pull, f"{name}:2", PullError, "1"),  # the tags that there are
        (pull, f"{name}@{NOBODYS}", PullError, "digest"),
        (pull, f"{own.address}/test/none:1", PullError, "test/none"),
        (push, f"{name}:2", PushError, "docker tag"),
        (push, f"{name}@{NOBODYS}", PushError, "tag"),
        # Said at once: the engine alone tries for over a minute.
        (push, f"localhost:{free_port()}/test/web:1", PushError, "labapp start"),
        (pull, f"localhost:{free_port()}/test/web:1", PullError, "labapp start"),
    ):
        with pytest.raises(kind, match=fact):
            act(engine, own, what)
    for source, target, fact in (
        ("labapp/none", name, "labapp/none:latest"),
        (image, f"{name}@{NOBODYS}", "digest"),
    ):
        with pytest.raises(ImageError, match=fact):
            tag(engine, source, target)


# --- damage in the registry's storage


def _damage(own: RegistryServer, digest: str, how: str) -> None:
    path = stored_at(digest)
    commands = {
        "emptied": ["truncate", "-s", "0", path],
        "deleted": ["rm", path],
        "flipped": ["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=50 conv=notrunc"],
    }
    own.storage(commands[how])


@pytest.mark.parametrize("how", ["emptied", "deleted", "flipped"])
@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_damage_is_named_by_a_pull_and_healed_by_a_push(
    engine: Engine, own: RegistryServer, image: str, part: str, how: str, told: QuietFeedback
) -> None:
    pushed = push(engine, own, image)
    manifest = own.registry().image(image).manifest
    parts = {"layer": manifest.layers[0].digest, "config": manifest.config.digest}
    digest = parts.get(part, pushed.digest)
    kept = b"".join(engine.client.images.get(image).save(named=True))
    remove(engine, image)
    _damage(own, digest, how)

    try:
        with listening(own) as wire:
            pull(engine, own, image)
    except PullError as error:
        assert (digest if part != "manifest" else image) in str(error)
    else:
        # BuildKit's history may keep a config: then the altered one does not arrive at all.
        assert (engine.store, part, how) == ("containerd", "config", "flipped")
        assert digest[7:15] not in set(wire.rows[wire.rows["method"] == "GET"]["digest"])
        own.discard_blobs([digest])
        how = "deleted"

    engine.client.images.load(kept)
    assert push(engine, own, image).digest == pushed.digest
    said = [line for line in told.lines if digest in line and "discard" in line]
    # What is deleted as a whole is simply missing: the push sends it anew by itself.
    assert len(said) == (0 if how == "deleted" else 1)
    held = own.registry().image(image)
    assert not own.registry().damaged_blobs(held.reference.repository, held.manifest, contents=True)
    remove(engine, image)
    assert pull(engine, own, image).digest == pushed.digest


def test_registry_killed_in_mid_push(
    engine: Engine, own: RegistryServer, tmp_path: Path, told: QuietFeedback
) -> None:
    """The engine would try for most of a minute; the lab says what happened, and mends it."""
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    make(engine, tmp_path, name, 80_000_000)

    def is_under_way() -> bool:
        return any(bar.done > 10e6 for bar in told.shown[-1].bars.values())

    def kill() -> None:
        wait_until(is_under_way, seconds=60, every=0.01)
        engine.client.api.kill(own.name)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PushError, match="labapp start"):
            push(engine, own, name)
        killer.join()
        own.start()
        assert "sent" in list(push(engine, own, name).layers["outcome"])
    finally:
        remove(engine, name)


@pytest.fixture(scope="module")
def page(engine: Engine, build_site: Callable[[str, str], str]) -> Iterator[str]:
    name = build_site(f"labapp/test-{uuid.uuid4().hex[:8]}:1", "one")
    yield name
    remove(engine, name)


def _named(engine: Engine, name: str) -> list[str]:
    found = engine.client.containers.list(all=True, filters={"name": name}, ignore_removed=True)
    return [str(container.name) for container in found]


def test_run(engine: Engine, state: State, page: str, told: QuietFeedback) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"
    try:
        first = run(engine, page, name=name, environment={"WORD": "one"}, wait_for="/")
        assert first.get("/") == "one"
        assert '"GET / HTTP/1.1" 200' in first.logs()
        with pytest.raises(RunError, match="404"):
            first.get("/none")
        container = engine.client.containers.get(name)
        assert {**state.labels, ROLE_LABEL: "run"}.items() <= container.labels.items()
        assert [binding["HostIp"] for binding in container.ports["8000/tcp"]] == ["127.0.0.1"]
        shown = f"docker run -d --name {name} -p 127.0.0.1::8000 -e WORD=one {page}"
        assert told.commands == [shown]
        second = run(engine, page, name=name, environment={"WORD": "two"}, wait_for="/")
        assert "WORD=two" in engine.client.containers.get(name).attrs["Config"]["Env"]
        with pytest.raises(RunError):
            first.get("/")
        second.stop()
        assert _named(engine, name) == []
        run(engine, page, name=name, wait_for="/")
    finally:
        assert name in remove_running(engine)


def test_run_fails_fast_and_leaves_nothing(engine: Engine, page: str, image: str) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"
    with pytest.raises(RunError, match=r"(?s)status 4.*FAIL=4"):
        run(engine, page, name=name, environment={"FAIL": "4"})
    with pytest.raises(RunError, match="/one"):  # That is no program.
        run(engine, image, name=name)
    assert _named(engine, name) == []
    foreign = engine.client.containers.create(page, ["true"], name=name)
    try:
        with pytest.raises(RunError, match=name):
            run(engine, page, name=name)
        assert _named(engine, name) == [name]
    finally:
        foreign.remove()


def test_run_once(
    engine: Engine, own: RegistryServer, image: str, slim: Reference, told: QuietFeedback
) -> None:
    def python(code: str) -> str:
        return run_once(engine, slim, ["python3", "-c", code])

    assert python("import sys; print('é'); print('aside', file=sys.stderr)") == "é\n"
    assert told.commands[-1].startswith(f"docker run --rm {slim} python3 -c ")
    with pytest.raises(RunError, match=r"status 3.*\n.*broken"):
        python("print('broken'); raise SystemExit(3)")
    push(engine, own, image)
    remove(engine, image)
    with pytest.raises(RunError):  # There is no program in it.
        run_once(engine, image, ["/one"])
    assert f"docker pull {image}" in told.commands
    with pytest.raises(PullError, match="test/none"):
        run_once(engine, f"{own.address}/test/none:1", ["x"])
    mine = {"label": f"{OWNER_LABEL}={owner()}"}
    assert engine.client.containers.list(all=True, filters=mine) == []


def test_client_killed_in_mid_run(bench: Bench, engine: Engine) -> None:
    program = """
    from labapp.journey import bases, run
    run.run_once(bench.engine, bench.base(bases.SLIM), ["sleep", "600"])
    """
    client = elsewhere.start(bench, textwrap.dedent(program))
    wanted = {"label": [f"{OWNER_LABEL}={owner().rpartition(':')[0]}:{client.pid}"]}
    try:
        [found] = wait_until(lambda: engine.client.containers.list(filters=wanted), seconds=60)
        # While the client lives, its container is no leftover.
        assert str(found.name) not in " ".join(remove_leftovers(engine))
    finally:
        client.kill()
        client.communicate()
    assert str(found.name) in " ".join(remove_leftovers(engine))
    assert engine.client.containers.list(all=True, filters=wanted) == []
