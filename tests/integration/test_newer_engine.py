"""The same journey on a newer engine, with buildx and compose, over both kinds of image store.

The engine is that of Debian 13, unpacked into a folder and started in a mount namespace of its
own: what it mounts goes with it. Chapters and checks must not tell the stores apart.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labapp import deployments, images, pins
from labapp import engine as engines
from labapp.deployments import compose
from labapp.engine import Engine, own_network
from labapp.errors import BuildError, EngineNotFound, PullError, PushError
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.private.registry import PrivateRegistry
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.server import RegistryServer
from labapp.registry.storage import CONTENT
from labapp.state import State

pytestmark = pytest.mark.own_engine

PACKAGES = "docker.io,docker-buildx,docker-cli,docker-compose,containerd,runc,ca-certificates"

SERVE = '["python3", "-m", "http.server", "8000"]'

# The root of the engine has to be a mount point, or it can't unpack layers.
START = """
mount --bind "$1" "$1"
for each in proc sys dev; do mount --rbind /$each "$1/$each"; done
root=$1; shift
exec chroot "$root" /usr/sbin/dockerd "$@"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of the engine, unpacked."""
    root = tmp_path_factory.mktemp("newer") / "root"
    subprocess.run(
        ["mmdebstrap", "--variant=extract", f"--include={PACKAGES}", "trixie", str(root)],
        check=True,
        capture_output=True,
    )
    for link in ("bin", "sbin", "lib", "lib64"):
        if not (root / link).exists():
            (root / link).symlink_to(f"usr/{link}")
    for folder in ("proc", "sys", "run/e", "root", "plugins/cli-plugins", "programs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy2("/etc/hosts", root / "etc/hosts")
    for plugin in (root / "usr/libexec/docker/cli-plugins").iterdir():
        shutil.copy2(plugin, root / "plugins/cli-plugins")
    shutil.copy2(root / "usr/bin/docker", root / "programs")
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", str(root)], check=True)


@pytest.fixture(scope="module", params=["classic", "containerd"])
def newer(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """The newer engine with one kind of image store; its own commands come first in PATH."""
    store = str(request.param)
    state = State.open(tmp_path_factory.mktemp("newer-state"))
    network = own_network.choose(state.lab_id)
    network.up()
    settings = root / "run/e/daemon.json"
    features = '{"features": {"containerd-snapshotter": %s}}'
    settings.write_text(features % str(store == "containerd").lower())
    socket = root / "run/e/docker.sock"
    options = [
        "--config-file=/run/e/daemon.json",
        f"--data-root=/data-{store}",
        "--exec-root=/run/e/exec",
        "--pidfile=/run/e/docker.pid",
        "--host=unix:///run/e/docker.sock",
        f"--bridge={network.bridge}",
        "--iptables=false",
        "--ip6tables=false",
        f"--containerd-namespace={network.name}",
        f"--containerd-plugins-namespace={network.name}-plugins",
    ]
    with (root / f"{store}.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", START, "start", str(root), *options],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{root / 'programs'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DOCKER_CONFIG", str(root / "plugins"))
        try:
            yield _answering(process, state, socket, root / f"{store}.log")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            socket.unlink(missing_ok=True)
            network.down()


def _answering(process: subprocess.Popen[bytes], state: State, socket: Path, log: Path) -> Engine:
    for _ in range(300):
        try:
            return engines.find(state, environ={"DOCKER_HOST": f"unix://{socket}"})
        except EngineNotFound:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


def _build(engine: Engine, state: State, folder: Path, tag: str, text: str) -> builds.Build:
    (folder / "Dockerfile").write_text(text)
    quiet = QuietFeedback()
    return builds.build(engine, folder, tag=tag, labels=state.labels, feedback=quiet)


def test_the_engine_is_what_it_is_meant_to_be(
    newer: Engine, request: pytest.FixtureRequest
) -> None:
    assert newer.store == request.node.callspec.params["newer"]
    assert newer.builder.startswith("buildx ")
    assert compose.has_compose(newer)


def test_builds(newer: Engine, state: State, slim: Reference, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "large.bin").write_bytes(b"x" * 3_000_000)
    (tmp_path / ".dockerignore").write_text("*.bin\n")
    tag = f"labapp/newer-{uuid.uuid4().hex[:8]}:1"
    text = (
        f"ARG BASE={slim}\nFROM ${{BASE}} AS first\n"
        "RUN --mount=type=cache,target=/c echo out loud && echo word > /word\n"
        f"FROM ${{BASE}} AS last\nCOPY --from=first /word /word\nCOPY a.txt /\nENV A=b\n"
    )
    made = _build(newer, state, tmp_path, tag, text)
    assert newer.client.images.get(tag).id == made.image_id
    assert 0 < made.context_bytes < 100_000
    by_word = {step.instruction.split()[0] + str(step.stage): step for step in made.steps}
    assert by_word["RUNfirst"].log == ("out loud",)
    assert by_word["RUNfirst"].seconds > 0
    assert not by_word["RUNfirst"].cached
    assert [step.instruction for step in made.steps][-1] == "COPY a.txt /"
    assert [step.number for step in made.steps] == list(range(1, len(made.steps) + 1))

    again = _build(newer, state, tmp_path, tag, text)
    assert again.image_id == made.image_id
    assert all(step.cached for step in again.steps if not step.instruction.startswith("FROM"))

    for bad, line, said in (
        (f"FROM {slim}\n\nCOPPY a /\n", 3, "unknown instruction: COPPY"),
        (f"FROM {slim}\nRUN echo first word && \\\n    exit 3\n", 2, "3 |     exit 3"),
        (f"FROM {slim}\nCOPY nope.txt /\n", 2, "nope.txt"),
        (f"# x\nFROM {slim.registry}/none/such:1\n", 2, "none/such"),
    ):
        with pytest.raises(BuildError) as caught:
            _build(newer, state, tmp_path, tag, bad)
        assert caught.value.line == line
        assert said in str(caught.value)
    images.remove(newer, tag)


def test_the_journey(
    newer: Engine,
    server: RegistryServer,
    registry: Registry,
    state: State,
    slim: Reference,
    tmp_path: Path,
) -> None:
    quiet = QuietFeedback()
    name = f"{registry.address}/test/{uuid.uuid4().hex[:8]}:1"
    repository = Reference.parse(name).repository
    text = f"FROM {slim}\nWORKDIR /site\nCOPY index.html .\nCMD {SERVE}\n"

    def publish(word: str) -> images.Push:
        (tmp_path / "index.html").write_text(word)
        _build(newer, state, tmp_path, name, text)
        return images.push(newer, server, name, feedback=quiet)

    pushed = publish("one")
    assert pushed.digest == registry.resolve(repository, "1")
    assert pushed.layers["outcome"].iloc[-1] == "sent"
    # The classic store remembers where the base came from; the containerd store sends it again.
    assert (pushed.layers["outcome"].iloc[0] == "mounted") or newer.store == "containerd"
    assert images.push(newer, server, name, feedback=quiet).sent_bytes == 0

    # A flipped byte is found by the engine, named by the lab, healed by a push.
    layer = str(pushed.layers["digest"].iloc[-1])
    kept = b"".join(newer.client.images.get(name).save(named=True))
    images.remove(newer, name)
    value = layer.partition(":")[2]
    path = f"{CONTENT}/blobs/sha256/{value[:2]}/{value}/data"
    server.storage(["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=50 conv=notrunc"])
    try:
        pulled = images.pull(newer, server, name, feedback=quiet)
        # The containerd store may still have the blob, and then fetches nothing.
        assert pulled.layers["outcome"].iloc[-1] == "already here"
    except PullError as error:
        assert layer in str(error)
    newer.client.images.load(kept)
    images.push(newer, server, name, feedback=quiet)
    assert registry.damaged_blobs(
        repository, registry.image(name).manifest, contents=True
    ) == []  # fmt: skip

    file = tmp_path / "deployment.yaml"
    file.write_text(f"services:\n  web:\n    image: {name}\n    ports: ['8000']\n")
    try:
        running = deployments.deploy(newer, server, file, state=state, feedback=quiet)
        assert running.get("web") == "one"
        assert running.digest("web") == registry.resolve(repository, "1")
        assert any(line.startswith("docker compose -f") for line in quiet.commands)
        container = newer.client.containers.get(running.table["container"][0])
        assert {b["HostIp"] for b in container.ports["8000/tcp"]} == {"127.0.0.1"}
        pins.pin_deployment(file, registry)
        assert publish("two").digest != running.digest("web")
        again = deployments.deploy(newer, server, file, state=state, feedback=quiet)
        assert again.get("web") == "one"
        assert again.digest("web") == running.digest("web")
    finally:
        deployments.remove(newer, state)
    web = images.run(
        newer, name, name="labapp-newer", wait_for="/", labels=state.labels, feedback=quiet
    )
    assert web.get("/") == "two"
    assert images.remove_running(newer, state.labels) == ["labapp-newer"]


def test_accounts_and_a_certificate(
    newer: Engine, engine: Engine, state: State, tmp_path: Path
) -> None:
    mine, quiet = State.open(tmp_path / "state"), QuietFeedback()
    image = str(state.read("registry")["image"])
    newer.client.images.load(b"".join(engine.client.images.get(image).save(named=True)))
    mine.write("registry", {"image": image})
    private = PrivateRegistry(engine=newer, state=mine, feedback=quiet)
    try:
        private.start()
        assert private.verified_by_engine
        private.accounts.add("ann", "ann", rights={"shop/*": ("pull", "push")})
        private.accounts.add("bob", "bob", rights={"shop/*": ("pull",)})
        name = f"{private.address}/shop/tiny:1"
        (tmp_path / "index.html").write_text("tiny")
        _build(newer, mine, tmp_path, name, "FROM scratch\nCOPY index.html /\n")
        private.log_in("ann", "ann")
        with pytest.raises(PushError, match="does not trust the authority that signed"):
            private.push(name)
        private.trust()
        digest = private.push(name).digest
        private.log_in("bob", "bob")
        # The containerd store sends nothing, and needs no right, where the tag is that already.
        other = f"{private.address}/shop/tiny:2"
        images.tag(newer, name, other, feedback=quiet)
        with pytest.raises(PushError, match="no right to that"):
            private.push(other)
        images.remove(newer, other)
        images.remove(newer, name)
        assert private.pull(name).digest == digest
        images.remove(newer, name)
    finally:
        private.remove()
