"""Builds, pushes and pulls over a real registry, also a damaged one; containers that are run."""

from __future__ import annotations

import os
import subprocess
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import elsewhere
import pytest

from labapp.bench import Bench
from labapp.errors import BuildError, ImageError, InvalidReference, PullError, PushError, RunError
from labapp.feedback import QuietFeedback
from labapp.journey.build import build
from labapp.journey.run import remove_running, run, run_once
from labapp.journey.transfer import pull, push, remove, tag
from labapp.machine.engine import OWNER_LABEL, Engine, owner, remove_leftovers
from labapp.machine.ports import free_port, wait_until
from labapp.reference import Reference
from labapp.registry.log import parse_log
from labapp.registry.server import CONTENT, RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State

NOBODYS = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, to damage and to stop."""
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("own")))
    try:
        own.start(image=server.image)
        yield own
    finally:
        own.remove(volume=True)


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


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("hello\n")
    return tmp_path


def test_build_and_cache(
    engine: Engine, state: State, slim: Reference, context: Path, fresh: str, told: QuietFeedback
) -> None:
    file = context / "my.Dockerfile"
    file.write_text(
        "ARG BASE\nFROM ${BASE} AS first\nARG WORD=none\nRUN echo ${WORD} > /word\n"
        "FROM ${BASE} AS second\nCOPY --from=first /word /word\nCOPY a.txt /\n"
        "FROM ${BASE}\nCOPY nope /\n"
    )
    unique = uuid.uuid4().hex
    arguments = {"BASE": str(slim), "WORD": unique}
    building = partial(
        build, engine, context, tag=fresh, dockerfile=file, args=arguments, target="second"
    )
    made = building()
    assert run_once(engine, fresh, ["cat", "/word", "/a.txt"]) == f"{unique}\nhello\n"
    assert made.reference == Reference.parse(fresh)
    assert engine.client.images.get(fresh).labels[LABEL] == state.lab_id
    assert made.context_bytes > 0
    assert made.seconds > 0
    runs = [step for step in made.steps if step.instruction.startswith("RUN")]
    assert [(step.stage, step.cached) for step in runs] == [("first", False)]
    shown = f"docker build -t {fresh} -f {file} --build-arg BASE={slim} --build-arg WORD={unique} "
    assert told.commands[0].startswith(f"{shown}--target second")
    for cache in (True, False):
        steps = building(cache=cache).steps
        acting = [step for step in steps if step.instruction.startswith(("RUN", "COPY"))]
        assert {step.cached for step in acting} == {cache}


def test_failures_leave_nothing_behind(
    engine: Engine, slim: Reference, context: Path, fresh: str
) -> None:
    """What each builder says of a failure is in the unit tests."""
    mark = uuid.uuid4().hex
    for text, line, log in (
        (f"FROM {slim}\nRUN echo {mark} && \\\n    exit 3\n", 2, (mark,)),
        (f"FROM {slim}\nRUN true {mark}\nCOPY a.txt nope.txt /x/\n", 3, ()),
        (f"# base\nFROM {slim.registry}/none/such:1\n", 2, ()),
    ):
        (context / "Dockerfile").write_text(text)
        with pytest.raises(BuildError) as caught:
            build(engine, context, tag=fresh)
        assert (caught.value.line, caught.value.log) == (line, log)
    containers = engine.client.api.containers(all=True)
    assert [each["Command"] for each in containers if mark in each["Command"]] == []


def test_what_is_missing(engine: Engine, tmp_path: Path, fresh: str, told: QuietFeedback) -> None:
    for folder, name, kind, fact in (
        (tmp_path, fresh, BuildError, "Dockerfile"),
        (tmp_path / "none", fresh, BuildError, "none"),
        (tmp_path, "Shop/web", InvalidReference, "Shop/web"),
        (tmp_path, f"web@sha256:{'0' * 64}", BuildError, "digest"),
    ):
        with pytest.raises(kind, match=fact):
            build(engine, folder, tag=name)
    assert told.commands == []


def test_terminal_and_lab_share_the_cache(
    engine: Engine, slim: Reference, context: Path, fresh: str
) -> None:
    if hasattr(os, "getuid") and os.getuid() == 0:
        os.chown(context / "a.txt", 1000, 1000)
    (context / "Dockerfile").write_text(f"FROM {slim}\nCOPY . /x/\nRUN cat /x/a.txt\n")
    (context / "b.txt").write_text(uuid.uuid4().hex)
    variables = engine.environment()
    if engine.builder == "classic":
        variables["DOCKER_BUILDKIT"] = "0"
    subprocess.run(["docker", "build", "-t", fresh, str(context)], env=variables, check=True)
    acting = [s for s in build(engine, context, tag=fresh).steps if s.instruction[:4] != "FROM"]
    assert [step.cached for step in acting] == [True, True]


# --- push and pull


def test_push_and_pull(
    engine: Engine, own: RegistryServer, image: str, told: QuietFeedback
) -> None:
    before = len(told.commands)
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
    assert told.commands[before:] == [f"docker push {image}"]
    assert pushed.digest in told.lines[-1]
    assert all(bar.finished for bars in told.shown for bar in bars.bars.values())

    registry.blob_size(repository, NOBODYS)  # a mark in the log, behind what was asked until here
    again = push(engine, own, image)
    said = [one for one in parse_log(own.logs()) if one.client == "lab"]
    mark = max(number for number, one in enumerate(said) if NOBODYS in one.uri)
    # The manifest, and for each blob whether it is whole.
    assert sorted(one.method for one in said[mark + 1 :]) == ["GET", "HEAD", "HEAD", "HEAD"]
    assert list(again.layers["outcome"]) == ["already there"] * 2
    assert (again.digest, again.moved_bytes) == (pushed.digest, 0)
    assert list(pull(engine, own, image).layers["outcome"]) == ["already here"] * 2

    pinned = pushed.reference.pinned(pushed.digest)
    for name in (image, pinned):
        remove(engine, image)
        fetched = pull(engine, own, name)
        assert fetched.digest == pushed.digest
        assert list(fetched.layers["digest"]) == list(pushed.layers["digest"])
        # As if the engine had never seen it, whatever its builder keeps.
        assert list(fetched.layers["outcome"]) == ["fetched"] * 2
    assert remove(engine, pinned)
    pull(engine, own, image)


def test_what_is_not_there(engine: Engine, own: RegistryServer, image: str) -> None:
    push(engine, own, image)
    name = image.rpartition(":")[0]
    for act, what, kind, fact in (
        (pull, f"{name}:2", PullError, "1"),  # the tags that there are
        (pull, f"{name}@{NOBODYS}", PullError, "digest"),
        (pull, f"{own.address}/test/none:1", PullError, "test/none"),
        (push, f"{name}:2", PushError, "docker tag"),
        (push, f"{name}@{NOBODYS}", PushError, "tag"),
        (push, f"{own.address}/Test/web:1", InvalidReference, "Test/web"),
        (pull, f"http://{own.address}/test/web:1", InvalidReference, "http://"),
    ):
        with pytest.raises(kind, match=fact):
            act(engine, own, what)


def test_registry_that_is_down_is_said_at_once(engine: Engine, image: str) -> None:
    name = f"localhost:{free_port()}/test/web:1"
    tag(engine, image, name)
    began = time.monotonic()
    for act, kind in ((push, PushError), (pull, PullError)):
        with pytest.raises(kind, match="labapp start"):
            act(engine, None, name)
    assert time.monotonic() - began < 20  # The engine alone tries for over a minute.
    remove(engine, name)


def test_tags(engine: Engine, own: RegistryServer, image: str, told: QuietFeedback) -> None:
    name = image.rpartition(":")[0]
    tag(engine, image, name)
    assert told.commands[-1] == f"docker tag {image} {name}:latest"
    push(engine, own, name)  # No tag means "latest".
    assert own.registry().tags(Reference.parse(name).repository) == ["latest"]
    assert pull(engine, own, name).reference.tag == "latest"
    assert engine.client.images.get(name).id == engine.client.images.get(image).id
    assert remove(engine, name)
    assert not remove(engine, name)
    with pytest.raises(ImageError, match="labapp/none:latest"):
        tag(engine, "labapp/none", name)
    with pytest.raises(ImageError, match="digest"):
        tag(engine, image, f"{name}@{NOBODYS}")


# --- damage in the registry's storage


def _damage(own: RegistryServer, digest: str, how: str) -> None:
    value = digest.partition(":")[2]
    path = f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"
    commands = {
        "truncated": ["truncate", "-s", "100", path],
        "emptied": ["truncate", "-s", "0", path],
        "deleted": ["rm", path],
        "flipped": ["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=50 conv=notrunc"],
    }
    own.storage(commands[how])


@pytest.mark.parametrize("how", ["truncated", "emptied", "deleted", "flipped"])
@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_damage_is_named_by_a_pull_and_healed_by_a_push(
    engine: Engine, own: RegistryServer, image: str, part: str, how: str, told: QuietFeedback
) -> None:
    if engine.store == "containerd" and (part, how) == ("config", "flipped"):
        pytest.skip("BuildKit's history keeps the config, so that the engine does not fetch it")
    pushed = push(engine, own, image)
    manifest = own.registry().image(image).manifest
    parts = {"layer": manifest.layers[0].digest, "config": manifest.config.digest}
    digest = parts.get(part, pushed.digest)
    kept = b"".join(engine.client.images.get(image).save(named=True))
    remove(engine, image)
    _damage(own, digest, how)

    began = time.monotonic()
    with pytest.raises(PullError) as caught:
        pull(engine, own, image)
    assert time.monotonic() - began < 20  # The engine alone tries for over a minute.
    if part != "manifest":
        assert digest in str(caught.value)

    engine.client.images.load(kept)
    healed = push(engine, own, image)
    assert healed.digest == pushed.digest
    said = [line for line in told.lines if digest in line and "discard" in line]
    # What is deleted as a whole is simply missing: the push sends it anew by itself.
    assert len(said) == (0 if how == "deleted" else 1)
    repository = pushed.reference.repository
    assert not own.registry().damaged_blobs(
        repository, own.registry().image(image).manifest, contents=True
    )
    remove(engine, image)
    assert pull(engine, own, image).digest == pushed.digest


def test_damage_in_a_registry_that_is_not_the_labs(
    engine: Engine, own: RegistryServer, image: str
) -> None:
    layer = str(push(engine, None, image).layers["digest"].iloc[0])
    _damage(own, layer, "truncated")
    with pytest.raises(PushError, match=layer):
        push(engine, None, image)
    push(engine, own, image)


def test_registry_killed_in_mid_push(
    engine: Engine, own: RegistryServer, tmp_path: Path, told: QuietFeedback
) -> None:
    """The engine would try for most of a minute; the lab says what happened, and mends it."""
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    make(engine, tmp_path, name, 80_000_000)
    container = engine.client.containers.get(own.name)

    def is_under_way() -> bool:
        return any(bar.done > 10e6 for bar in told.shown[-1].bars.values())

    def kill() -> None:
        wait_until(is_under_way, seconds=60, every=0.01)
        container.kill()

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


# --- containers


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
        assert (first.name, first.reference) == (name, page)
        assert first.get("/") == "one"
        assert '"GET / HTTP/1.1" 200' in first.logs()
        with pytest.raises(RunError, match="404"):
            first.get("/none")
        container = engine.client.containers.get(name)
        assert container.labels[ROLE_LABEL] == "run"
        assert state.labels.items() <= container.labels.items()
        [binding] = container.ports["8000/tcp"]
        assert binding["HostIp"] == "127.0.0.1"
        assert first.url == f"http://127.0.0.1:{binding['HostPort']}"
        shown = f"docker run -d --name {name} -p 127.0.0.1::8000 -e WORD=one {page}"
        assert shown in told.commands
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


def test_a_command_beside_a_container_sees_its_processes_files_and_network(
    engine: Engine, slim: Reference, page: str, told: QuietFeedback
) -> None:
    """The way to look into a container whose image has no shell."""
    running = run(engine, page, wait_for="/")
    look = (
        "import os, urllib.request as u\n"
        "print(open('/proc/1/cmdline').read().split('\\0')[2])\n"
        "print(os.path.exists('/proc/1/root/site/index.html'))\n"
        "print(u.urlopen('http://localhost:8000/').status)"
    )
    try:
        said = run_once(engine, slim, ["python3", "-c", look], beside=running)
        assert said.split() == ["http.server", "True", "200"]
        for space in ("pid", "network"):
            assert f"--{space}=container:{running.name}" in told.commands[-1]
    finally:
        running.stop()
