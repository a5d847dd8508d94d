"""Pushes and pulls over a real registry, also a damaged one, and containers run by the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import images
from labapp.engine import Engine
from labapp.errors import ImageError, InvalidReference, PullError, PushError, RunError
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.leftovers import OWNER_LABEL, owner, remove_leftovers
from labapp.manifests import Manifest
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.registry.storage import CONTENT
from labapp.state import ROLE_LABEL, State
from labapp.system.ports import free_port

SERVER = ["python3", "-m", "http.server", "8000"]


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, server: RegistryServer, state: State
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, to damage and to stop."""
    image = str(state.read("registry")["image"])
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("own")))
    try:
        own.start(image=image, feedback=QuietFeedback())
        yield own
    finally:
        own.remove(volume=True)


@pytest.fixture
def image(engine: Engine, own: RegistryServer, state: State, tmp_path: Path) -> Iterator[str]:
    """A small image of two layers that nobody has seen before, in the engine."""
    (tmp_path / "one").write_bytes(os.urandom(200_000))
    (tmp_path / "two").write_bytes(os.urandom(1_000))
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY one /\nCOPY two /\nCMD ["/one"]\n')
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    builds.build(engine, tmp_path, tag=name, labels=state.labels, feedback=QuietFeedback())
    yield name
    images.remove(engine, name)


@pytest.fixture
def quiet() -> QuietFeedback:
    return QuietFeedback()


def _manifest(own: RegistryServer, name: str) -> Manifest:
    return own.registry().image(name).manifest


# --- push and pull


def test_push_and_pull(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    pushed = images.push(engine, own, image, feedback=quiet)
    manifest = _manifest(own, image)
    assert pushed.digest == manifest.digest
    assert pushed.digest == own.registry().resolve(pushed.reference.repository, "1")
    assert list(pushed.layers["digest"]) == [layer.digest for layer in manifest.layers]
    assert list(pushed.layers["bytes"]) == [layer.size for layer in manifest.layers]
    assert list(pushed.layers["outcome"]) == ["sent", "sent"]
    assert pushed.sent_bytes == manifest.download_bytes
    assert quiet.commands == [f"docker push {image}"]
    assert pushed.digest in quiet.lines[-1]
    assert all(bar.finished for bars in quiet.shown for bar in bars.bars.values())

    again = images.push(engine, own, image, feedback=quiet)
    assert list(again.layers["outcome"]) == ["already there", "already there"]
    assert (again.digest, again.sent_bytes) == (pushed.digest, 0)

    here = images.pull(engine, own, image, feedback=quiet)
    assert list(here.layers["outcome"]) == ["already here", "already here"]
    images.remove(engine, image)
    fetched = images.pull(engine, own, image, feedback=quiet)
    assert fetched.digest == pushed.digest
    assert list(fetched.layers["digest"]) == list(pushed.layers["digest"])
    images.remove(engine, image)
    pinned = pushed.reference.pinned(pushed.digest)
    by_digest = images.pull(engine, own, pinned, feedback=quiet)
    assert by_digest.digest == pushed.digest
    assert images.remove(engine, pinned)
    images.pull(engine, own, image, feedback=quiet)


def test_layers_are_linked_into_another_repository(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    pushed = images.push(engine, own, image, feedback=quiet)
    other = image.replace("/test/", "/prod/")
    images.tag(engine, image, other, feedback=quiet)
    try:
        promoted = images.push(engine, own, other, feedback=quiet)
    finally:
        images.remove(engine, other)
    assert promoted.digest == pushed.digest
    assert promoted.sent_bytes == 0
    assert set(promoted.layers["outcome"]) <= {"mounted", "already there"}


def test_no_tag_means_latest(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    name = image.rpartition(":")[0]
    images.tag(engine, image, name, feedback=quiet)
    try:
        images.push(engine, own, name, feedback=quiet)
        assert own.registry().tags(Reference.parse(name).repository) == ["latest"]
        assert images.pull(engine, own, name, feedback=quiet).reference.tag == "latest"
    finally:
        images.remove(engine, name)


def test_what_is_not_there(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    images.push(engine, own, image, feedback=quiet)
    name = image.rpartition(":")[0]
    with pytest.raises(PullError, match=r"no tag '2', the repository has the tags 1"):
        images.pull(engine, own, f"{name}:2", feedback=quiet)
    with pytest.raises(PullError, match="no manifest with that digest"):
        images.pull(engine, own, f"{name}@sha256:{'0' * 64}", feedback=quiet)
    with pytest.raises(PullError, match="no repository 'test/none'"):
        images.pull(engine, own, f"{own.address}/test/none:1", feedback=quiet)
    with pytest.raises(PushError, match="the engine has no image of that name"):
        images.push(engine, own, f"{name}:2", feedback=quiet)
    with pytest.raises(PushError, match="a digest can't be pushed"):
        images.push(engine, own, f"{name}@sha256:{'0' * 64}", feedback=quiet)
    for bad in (f"{own.address}/Test/web:1", f"http://{own.address}/test/web:1"):
        with pytest.raises(InvalidReference):
            images.push(engine, own, bad, feedback=quiet)
        with pytest.raises(InvalidReference):
            images.pull(engine, own, bad, feedback=quiet)


def test_registry_that_is_down_is_said_at_once(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    name = f"localhost:{free_port()}/test/web:1"
    images.tag(engine, image, name, feedback=quiet)
    try:
        for act, kind in ((images.push, PushError), (images.pull, PullError)):
            began = time.monotonic()
            with pytest.raises(kind, match="nothing answers at the registry"):
                act(engine, own, name, feedback=quiet)
            assert time.monotonic() - began < 1
    finally:
        images.remove(engine, name)


def test_tags(engine: Engine, image: str, quiet: QuietFeedback) -> None:
    images.tag(engine, image, "labapp/test-tag:1", feedback=quiet)
    assert engine.client.images.get("labapp/test-tag:1").id == engine.client.images.get(image).id
    assert quiet.commands == [f"docker tag {image} labapp/test-tag:1"]
    assert images.remove(engine, "labapp/test-tag:1")
    assert not images.remove(engine, "labapp/test-tag:1")
    with pytest.raises(ImageError, match="the engine has no image 'labapp/none:latest'"):
        images.tag(engine, "labapp/none", "labapp/test-tag:1", feedback=quiet)
    with pytest.raises(ImageError, match="a digest can't be given"):
        images.tag(engine, image, f"labapp/test-tag@sha256:{'0' * 64}", feedback=quiet)


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
    engine: Engine, own: RegistryServer, image: str, part: str, how: str, quiet: QuietFeedback
) -> None:
    pushed = images.push(engine, own, image, feedback=quiet)
    manifest = _manifest(own, image)
    parts = {"layer": manifest.layers[0], "config": manifest.config}
    digest = pushed.digest if part == "manifest" else parts[part].digest
    kept = b"".join(engine.client.images.get(image).save(named=True))
    images.remove(engine, image)
    _damage(own, digest, how)

    began = time.monotonic()
    with pytest.raises(PullError) as caught:
        images.pull(engine, own, image, feedback=quiet)
    # A flipped byte keeps the length, so the engine has to fetch the blob to notice.
    assert time.monotonic() - began < (5 if how == "flipped" else 1)
    if part != "manifest":
        assert f"blob {digest}" in str(caught.value) or how == "flipped"
        assert digest in str(caught.value)

    engine.client.images.load(kept)
    healed = images.push(engine, own, image, feedback=quiet)
    assert healed.digest == pushed.digest
    told = [line for line in quiet.lines if "copy is damaged" in line]
    # What is deleted as a whole is simply missing: the push sends it anew by itself.
    assert len(told) == (0 if how == "deleted" else 1)
    assert all(digest in line for line in told)
    assert own.registry().damaged_blobs(
        pushed.reference.repository, _manifest(own, image), contents=True
    ) == []  # fmt: skip
    images.remove(engine, image)
    assert images.pull(engine, own, image, feedback=quiet).digest == pushed.digest


def test_damage_in_a_registry_that_is_not_the_labs(
    engine: Engine, own: RegistryServer, image: str, quiet: QuietFeedback
) -> None:
    pushed = images.push(engine, None, image, feedback=quiet)
    layer = str(pushed.layers["digest"].iloc[0])
    _damage(own, layer, "truncated")
    with pytest.raises(PushError, match=f"not got the image whole: blob {layer} has been"):
        images.push(engine, None, image, feedback=quiet)
    images.push(engine, own, image, feedback=quiet)


def test_registry_killed_in_mid_push(
    engine: Engine, own: RegistryServer, state: State, tmp_path: Path
) -> None:
    """The engine would try for most of a minute; the lab says what happened, and mends it."""
    (tmp_path / "one").write_bytes(os.urandom(80_000_000))
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY one /\n")
    name = f"{own.address}/test/{uuid.uuid4().hex[:8]}:1"
    quiet = QuietFeedback()
    builds.build(engine, tmp_path, tag=name, labels=state.labels, feedback=quiet)
    container = engine.client.containers.get(own.name)

    def kill() -> None:
        while not any(bar.done > 10e6 for bar in quiet.shown[-1].bars.values()):
            time.sleep(0.01)
        container.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(PushError, match="stopped in mid-push"):
            images.push(engine, own, name, feedback=quiet)
        killer.join()
        own.start(image=str(state.read("registry")["image"]), feedback=quiet)
        pushed = images.push(engine, own, name, feedback=quiet)
        assert list(pushed.layers["outcome"]) == ["sent"]
    finally:
        images.remove(engine, name)


# --- containers


def test_run(engine: Engine, state: State, slim: Reference, quiet: QuietFeedback) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"

    def start(word: str) -> images.Running:
        return images.run(
            engine,
            slim,
            name=name,
            environment={"WORD": word},
            command=SERVER,
            labels=state.labels,
            wait_for="/",
            feedback=quiet,
        )

    first = start("one")
    try:
        assert (first.name, first.reference) == (name, str(slim))
        assert "Directory listing" in first.get("/")
        assert '"GET / HTTP/1.1" 200' in first.logs()
        with pytest.raises(RunError, match="status 404"):
            first.get("/none")
        container = engine.client.containers.get(name)
        assert container.labels[ROLE_LABEL] == "run"
        assert state.labels.items() <= container.labels.items()
        [binding] = container.ports["8000/tcp"]
        assert binding["HostIp"] == "127.0.0.1"
        assert first.url == f"http://127.0.0.1:{binding['HostPort']}"
        assert (
            f"docker run -d --name {name} -p 127.0.0.1::8000 -e WORD=one {slim} "
            "python3 -m http.server 8000"
        ) in quiet.commands
        second = start("two")
        assert "WORD=two" in engine.client.containers.get(name).attrs["Config"]["Env"]
        with pytest.raises(RunError, match="nothing answers"):
            first.get("/")
        second.stop()
        assert _named(engine, name) == []
    finally:
        images.remove_running(engine, state.labels)


def _named(engine: Engine, name: str) -> list[str]:
    return [c.name for c in engine.client.containers.list(all=True) if c.name == name]


def test_run_fails_fast(
    engine: Engine, state: State, slim: Reference, quiet: QuietFeedback
) -> None:
    name = f"labapp-test-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    with pytest.raises(RunError, match=r"ended with status 4.*\n.*no database") as caught:
        images.run(
            engine,
            slim,
            name=name,
            command=["python3", "-c", "print('no database'); raise SystemExit(4)"],
            labels=state.labels,
            feedback=quiet,
        )
    assert time.monotonic() - began < 10
    assert str(caught.value).startswith(f"running '{slim}'")
    assert _named(engine, name) == []
    with pytest.raises(RunError, match="no-such-program"):
        images.run(
            engine,
            slim,
            name=name,
            command=["no-such-program"],
            labels=state.labels,
            feedback=quiet,
        )
    assert _named(engine, name) == []


def test_a_name_that_belongs_to_another(
    engine: Engine, state: State, slim: Reference, server: RegistryServer, quiet: QuietFeedback
) -> None:
    theirs = f"labapp-test-{uuid.uuid4().hex[:8]}"
    foreign = engine.client.containers.create(str(slim), ["true"], name=theirs)
    try:
        with pytest.raises(RunError, match="belongs to a container that the lab did not start"):
            images.run(engine, slim, name=theirs, labels=state.labels, feedback=quiet)
        assert _named(engine, theirs) == [theirs]
    finally:
        foreign.remove()


def test_run_pulls_what_is_not_here(
    engine: Engine, own: RegistryServer, image: str, state: State, quiet: QuietFeedback
) -> None:
    images.push(engine, own, image, feedback=quiet)
    images.remove(engine, image)
    with pytest.raises(RunError):  # There is no program in it.
        images.run_once(engine, image, ["/one"], labels=state.labels, feedback=quiet)
    assert f"docker pull {image}" in quiet.commands
    with pytest.raises(PullError, match="no repository 'test/none'"):
        images.run_once(
            engine, f"{own.address}/test/none:1", ["x"], labels=state.labels, feedback=quiet
        )


def test_run_once(engine: Engine, state: State, slim: Reference, quiet: QuietFeedback) -> None:
    def run(code: str, **options: float) -> str:
        return images.run_once(
            engine,
            slim,
            ["python3", "-c", code],
            labels=state.labels,
            feedback=quiet,
            **options,
        )

    before = {c.id for c in engine.client.containers.list(all=True)}
    assert run("import sys; print('é'); print('aside', file=sys.stderr)") == "é\n"
    with pytest.raises(RunError, match=r"ended with status 3.*\n.*broken"):
        run("print('broken'); raise SystemExit(3)")
    with pytest.raises(RunError, match=r"did not end within 1 s.*\n.*waiting"):
        run("import time; print('waiting', flush=True); time.sleep(60)", seconds=1.0)
    after = {c.id for c in engine.client.containers.list(all=True)}
    assert after <= before
    assert quiet.commands[0].startswith(f"docker run --rm {slim} python3 -c ")


CLIENT = """
import sys
from pathlib import Path
from labapp import engine, images
from labapp.feedback import QuietFeedback
from labapp.state import State
state = State.open(Path(sys.argv[1]))
images.run_once(engine.find(state), sys.argv[2], ["sleep", "600"], labels=state.labels,
                feedback=QuietFeedback())
"""


def test_client_killed_in_mid_run(
    engine: Engine, state: State, slim: Reference, tmp_path: Path
) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(state.folder), str(slim)],
        env={**os.environ, "DOCKER_HOST": engine.host},
    )
    wanted = {"label": [f"{OWNER_LABEL}={owner().rpartition(':')[0]}:{client.pid}"]}
    try:
        for _ in range(200):
            found = engine.client.containers.list(filters=wanted)
            if found:
                break
            time.sleep(0.1)
        assert len(found) == 1
        # While the client lives, its container is no leftover.
        assert found[0].name not in " ".join(remove_leftovers(engine, state))
    finally:
        client.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        client.wait()
    assert found[0].name in " ".join(remove_leftovers(engine, state))
    assert engine.client.containers.list(all=True, filters=wanted) == []


def test_a_command_beside_a_container_sees_its_processes_and_files(
    engine: Engine, slim: Reference, state: State, feedback: QuietFeedback
) -> None:
    """The way to look into a container whose image has no shell."""
    running = images.run(
        engine, slim, command=SERVER, wait_for="/", labels=state.labels, feedback=feedback
    )
    try:
        look = "print(open('/proc/1/cmdline').read().split('\\0'))"
        said = images.run_once(
            engine, slim, ["python3", "-c", look], beside=running, labels=state.labels,
            feedback=feedback,
        )  # fmt: skip
        assert said.strip() == str([*SERVER, ""])
        shown = feedback.commands[-1]
        assert f"--pid=container:{running.name}" in shown
        assert f"--network=container:{running.name}" in shown
        seen = images.run_once(
            engine, slim, ["ls", "/proc/1/root/usr/bin/python3"], beside=running,
            labels=state.labels, feedback=feedback,
        )  # fmt: skip
        assert seen.strip() == "/proc/1/root/usr/bin/python3"
        ask = "import urllib.request as u; print(u.urlopen('http://localhost:8000/').status)"
        words = ["python3", "-c", ask]
        said = images.run_once(
            engine, slim, words, beside=running, labels=state.labels, feedback=feedback
        )
        assert said.strip() == "200"
    finally:
        running.stop()
