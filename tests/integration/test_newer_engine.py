"""The same journey on a newer engine, with buildx, over both kinds of image store.

The engine is that of Debian 13, unpacked into a folder and started in a mount namespace of its
own: what it mounts goes with it. Chapters and checks must not tell the stores apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from registries import stored_at

from labapp.errors import EngineNotFound, PullError, PushError
from labapp.journey.build import build
from labapp.journey.transfer import pull, push, remove, tag
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.machine.engine import Engine
from labapp.machine.ports import wait_until
from labapp.private.registry import PrivateRegistry
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.log import listening
from labapp.registry.server import RegistryServer
from labapp.state import State

pytestmark = pytest.mark.own_engine

PACKAGES = "docker.io,docker-buildx,docker-cli,containerd,runc,ca-certificates"

# The root of the engine has to be a mount point, or it can't unpack layers.
START = """
mount --bind "$1" "$1"
for each in proc sys dev; do mount --rbind /$each "$1/$each"; done
exec chroot "$1" /usr/sbin/dockerd --config-file=/run/e/daemon.json
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
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
    network = own_engine.choose(state.lab_id)
    network.up()
    settings = {
        "features": {"containerd-snapshotter": store == "containerd"},
        "data-root": f"/data-{store}",
        "exec-root": "/run/e/exec",
        "pidfile": "/run/e/docker.pid",
        "hosts": ["unix:///run/e/docker.sock"],
        "bridge": network.bridge,
        "iptables": False,
        "ip6tables": False,
        "containerd-namespace": network.name,
        "containerd-plugins-namespace": f"{network.name}-plugins",
    }
    (root / "run/e/daemon.json").write_text(json.dumps(settings))
    socket, log = root / "run/e/docker.sock", root / f"{store}.log"
    command = ["unshare", "--mount", "sh", "-ec", START, "start", str(root)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def answering() -> Engine | None:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(EngineNotFound):
            return engines.find(state, environ={"DOCKER_HOST": f"unix://{socket}"})
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{root / 'programs'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DOCKER_CONFIG", str(root / "plugins"))
        try:
            engine = wait_until(answering, seconds=30)
            assert engine is not None, log.read_text()[-3000:]
            assert (engine.store, engine.builder[:7]) == (store, "buildx ")
            yield engine
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            socket.unlink(missing_ok=True)
            network.down()


def test_the_journey(
    newer: Engine, server: RegistryServer, registry: Registry, slim: Reference, tmp_path: Path
) -> None:
    name = f"{registry.address}/test/{uuid.uuid4().hex[:8]}:1"
    (tmp_path / "index.html").write_text(name)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {slim}\nRUN --mount=type=cache,target=/c echo loud\nCOPY index.html /\n"
    )
    made, again = (build(newer, tmp_path, tag=name).steps[1:] for _ in range(2))
    assert [step.log for step in made] == [("loud",), ()]
    assert [step.cached for step in again] == [True, True]
    pushed = push(newer, server, name)
    assert pushed.digest == registry.resolve(pushed.reference.repository, "1")
    assert pushed.layers["outcome"].iloc[-1] == "sent"
    # The classic store remembers where the base came from; the containerd store sends it again.
    assert (pushed.layers["outcome"].iloc[0] == "mounted") or newer.store == "containerd"
    assert push(newer, server, name).moved_bytes == 0

    # What is removed is removed, though the builder has a cache of its own.
    remove(newer, name)
    with listening(server) as wire:
        fetched = pull(newer, server, name)
    assert set(fetched.layers["outcome"]) == {"fetched"}
    got = set(wire.rows[wire.rows["method"] == "GET"]["digest"])
    assert set(pushed.layers["digest"].str[7:15]) <= got

    # So a flipped byte is found by the engine, named by the lab, healed by a push.
    layer = str(pushed.layers["digest"].iloc[-1])
    kept = b"".join(newer.client.images.get(name).save(named=True))
    remove(newer, name)
    path = stored_at(layer)
    server.storage(["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=50 conv=notrunc"])
    with pytest.raises(PullError, match=layer):
        pull(newer, server, name)
    newer.client.images.load(kept)
    push(newer, server, name)
    manifest = registry.image(name).manifest
    assert not registry.damaged_blobs(pushed.reference.repository, manifest, contents=True)
    remove(newer, name)


def test_accounts_and_a_certificate(
    newer: Engine, engine: Engine, state: State, tmp_path: Path
) -> None:
    mine = State.open(tmp_path / "state")
    image = str(state.read("registry")["image"])
    newer.client.images.load(b"".join(engine.client.images.get(image).save(named=image)))
    mine.write("registry", {"image": image})
    private = PrivateRegistry(engine=newer, state=mine)
    try:
        private.start()
        private.accounts.add("ann", "ann", rights={"shop/*": ("pull", "push")})
        private.accounts.add("bob", "bob", rights={"shop/*": ("pull",)})
        name = f"{private.address}/shop/tiny:1"
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
        build(newer, tmp_path, tag=name)
        private.log_in("ann", "ann")
        with pytest.raises(PushError, match="authority"):
            private.push(name)
        private.trust()
        digest = private.push(name).digest
        private.log_in("bob", "bob")
        # The containerd store sends nothing, and needs no right, where the tag is that already.
        other = f"{private.address}/shop/tiny:2"
        tag(newer, name, other)
        with pytest.raises(PushError, match=r"denied|insufficient_scope"):
            private.push(other)
        remove(newer, other)
        remove(newer, name)
        assert private.pull(name).digest == digest
        remove(newer, name)
    finally:
        private.distrust()
        private.server.remove()
        private.stop()
