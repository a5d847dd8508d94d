"""Pushes and pulls over a real registry, also a damaged one, and containers run by the lab."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import elsewhere
import pytest

from labapp import feedback
from labapp.bench import Bench
from labapp.errors import ImageError, InvalidReference, PullError, PushError, RunError
from labapp.feedback import QuietFeedback
from labapp.journey.build import build
from labapp.journey.run import remove_running, run, run_once
from labapp.journey.transfer import pull, push, remove, tag
from labapp.machine.engine import OWNER_LABEL, Engine, owner, remove_leftovers
from labapp.machine.ports import free_port
from labapp.machine.waiting import wait_until
from labapp.reference import Reference
from labapp.registry.log import parse_log
from labapp.registry.manifests import Manifest
from labapp.registry.server import CONTENT, RegistryServer
from labapp.state import ROLE_LABEL, State

NOBODYS = f"sha256:{'0' * 64}"


@pytest.fixture(autouse=True)
def told() -> Iterator[QuietFeedback]:
    told = QuietFeedback()
    with feedback.using(told):
        yield told


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer, state: State
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, to damage and to stop."""
    image = str(state.read("registry")["image"])
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("own")))
    try:
        own.start(image=image)
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


def _manifest(own: RegistryServer, name: str) -> Manifest:
    return own.registry().image(name).manifest


# --- push and pull


def test_push_and_pull(
    engine: Engine, own: RegistryServer, image: str, told: QuietFeedback
) -> None:
    before = len(told.commands)
    pushed = push(engine, own, image)
    manifest = _manifest(own, image)
    assert pushed.digest == own.registry().resolve(pushed.reference.repository, "1")
    assert pushed.layers.to_dict("list") == {
        "digest": [layer.digest for layer in manifest.layers],
        "bytes": [layer.size for layer in manifest.layers],
        "outcome": ["sent", "sent"],
    }
    assert pushed.moved_bytes == manifest.download_bytes
    assert told.commands[before:] == [f"docker push {image}"]
    assert pushed.digest in told.lines[-1]
    assert all(bar.finished for bars in told.shown for bar in bars.bars.values())

    asked = datetime.now(UTC)
    again = push(engine, own, image)
    said = [one for one in parse_log(own.logs(since=asked)) if one.client == "lab"]
    # The manifest, and for each blob whether it is whole.
    assert sorted(one.method for one in said) == ["GET", "HEAD", "HEAD", "HEAD"]
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


def test_layers_are_linked_into_another_repository(
    engine: Engine, own: RegistryServer, image: str
) -> None:
    pushed = push(engine, own, image)
    other = image.replace("/test/", "/prod/")
    tag(engine, image, other)
    try:
        promoted = push(engine, own, other)
    finally:
        remove(engine, other)
    assert (promoted.digest, promoted.moved_bytes) == (pushed.digest, 0)
    assert set(promoted.layers["outcome"]) <= {"mounted", "already there"}


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


def test_registry_that_is_down_is_said_at_once(
    engine: Engine, own: RegistryServer, image: str
) -> None:
    name = f"localhost:{free_port()}/test/web:1"
    tag(engine, image, name)
    try:
        for act, kind in ((push, PushError), (pull, PullError)):
            began = time.monotonic()
            with pytest.raises(kind, match="labapp start"):
                act(engine, own, name)
            assert time.monotonic() - began < 10  # The engine alone tries for over a minute.
    finally:
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
    manifest = _manifest(own, image)
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
    assert not own.registry().damaged_blobs(repository, _manifest(own, image), contents=True)
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
    engine: Engine, own: RegistryServer, state: State, tmp_path: Path, told: QuietFeedback
) -> None:
    """The engine would try for most of a minute; the lab says what happened, and mends it."""
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    make(engine, tmp_path, name, 80_000_000)
    container = engine.client.containers.get(own.name)

    def kill() -> None:
        wait_until(
            lambda: any(bar.done > 10e6 for bar in told.shown[-1].bars.values()),
            seconds=60,
            every=0.01,
        )
        container.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PushError, match="labapp start"):
            push(engine, own, name)
        killer.join()
        own.start(image=str(state.read("registry")["image"]))
        assert "sent" in list(push(engine, own, name).layers["outcome"])
    finally:
        remove(engine, name)


# --- containers


@pytest.fixture(scope="module")
def program(
    engine: Engine, slim: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """Make an image that runs a line of Python."""
    made: list[str] = []

    def make(code: str) -> str:
        folder = tmp_path_factory.mktemp("program")
        (folder / "main.py").write_text(code)
        (folder / "Dockerfile").write_text(
            f'FROM {slim}\nCOPY main.py /\nCMD ["python3", "/main.py"]\n'
        )
        made.append(f"labapp/test-{uuid.uuid4().hex[:8]}:1")
        with feedback.using(QuietFeedback()):
            build(engine, folder, tag=made[-1])
        return made[-1]

    yield make
    for name in made:
        remove(engine, name)


@pytest.fixture(scope="module")
def page(program: Callable[[str], str]) -> str:
    return program(
        "import http.server as h\n"
        "h.ThreadingHTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()\n"
    )


def _named(engine: Engine, name: str) -> list[str]:
    found = engine.client.containers.list(all=True, filters={"name": name}, ignore_removed=True)
    return [str(container.name) for container in found]


def test_run(engine: Engine, state: State, page: str, told: QuietFeedback) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"
    try:
        first = run(engine, page, name=name, environment={"WORD": "one"}, wait_for="/")
        assert (first.name, first.reference) == (name, page)
        assert "Directory listing" in first.get("/")
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


def test_run_fails_fast_and_leaves_nothing(
    engine: Engine, program: Callable[[str], str], page: str, image: str
) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"
    with pytest.raises(RunError, match=r"status 4.*\n.*no database"):
        run(engine, program("print('no database'); raise SystemExit(4)"), name=name)
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


def test_run_pulls_what_is_not_here(
    engine: Engine, own: RegistryServer, image: str, told: QuietFeedback
) -> None:
    push(engine, own, image)
    remove(engine, image)
    with pytest.raises(RunError):  # There is no program in it.
        run_once(engine, image, ["/one"])
    assert f"docker pull {image}" in told.commands
    with pytest.raises(PullError, match="test/none"):
        run_once(engine, f"{own.address}/test/none:1", ["x"])


def test_run_once(engine: Engine, state: State, slim: Reference, told: QuietFeedback) -> None:
    def python(code: str) -> str:
        return run_once(engine, slim, ["python3", "-c", code])

    assert python("import sys; print('é'); print('aside', file=sys.stderr)") == "é\n"
    with pytest.raises(RunError, match=r"status 3.*\n.*broken"):
        python("print('broken'); raise SystemExit(3)")
    mine = {"label": f"{OWNER_LABEL}={owner()}"}
    assert engine.client.containers.list(all=True, filters=mine) == []
    assert told.commands[0].startswith(f"docker run --rm {slim} python3 -c ")


CLIENT = """
from labapp.journey.bases import SLIM
from labapp.journey.run import run_once
run_once(bench.engine, bench.base(SLIM), ["sleep", "600"])
"""


def test_client_killed_in_mid_run(bench: Bench, engine: Engine) -> None:
    client = elsewhere.start(bench, CLIENT)
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
        "print(open('/proc/1/cmdline').read().split('\\0')[1])\n"
        "print(os.path.exists('/proc/1/root/main.py'))\n"
        "print(u.urlopen('http://localhost:8000/').status)"
    )
    try:
        said = run_once(engine, slim, ["python3", "-c", look], beside=running)
        assert said.split() == ["/main.py", "True", "200"]
        for space in ("pid", "network"):
            assert f"--{space}=container:{running.name}" in told.commands[-1]
    finally:
        running.stop()
