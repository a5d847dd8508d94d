"""The lab's own engine: real ones, started, killed and mended in state folders of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from made_images import put_image

from labapp import feedback
from labapp.errors import EngineError, EngineLost, EngineNotFound
from labapp.journey import build
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.machine.engine import Engine, remove_leftovers
from labapp.machine.root import run_as_root
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State

pytestmark = pytest.mark.own_engine

Serving = Callable[[Engine, State], RegistryServer]


def lab(tmp_path_factory: pytest.TempPathFactory, told: feedback.QuietFeedback) -> Iterator[State]:
    """A lab of its own, whose engine is removed with all its data."""
    state = State.open(tmp_path_factory.mktemp("lab"))
    yield state
    own_engine.remove(state)
    assert leftovers(state) == []


own = pytest.fixture(lab)
other = pytest.fixture(lab)


def start(state: State) -> Engine:
    return engines.start(state, environ=environ(state))


def environ(state: State) -> dict[str, str]:
    """An environment in which nothing but the lab's own engine is named."""
    return {"DOCKER_HOST": f"unix://{own_engine.socket(state)}"}


def command_lines() -> dict[int, list[str]]:
    return {each.pid: each.info["cmdline"] or [""] for each in psutil.process_iter(["cmdline"])}


def dockerd(state: State) -> int:
    option = f"--config-file={state.path('engine', 'daemon.json')}"
    [pid] = [n for n, line in command_lines().items() if line[0] == "dockerd" and option in line]
    return pid


def kill(state: State) -> None:
    os.kill(dockerd(state), signal.SIGKILL)


def rules() -> list[str]:
    found = [run_as_root(["iptables", "-t", table, "-S"]).stdout for table in ("nat", "filter")]
    return "".join(found).splitlines()


def leftovers(state: State) -> list[str]:
    """What an engine that was stopped must not leave: processes, bridges, rules, mounts."""
    found = [*map(" ".join, command_lines().values()), *rules()]
    found += Path("/proc/self/mountinfo").read_text().splitlines()
    names = f"labapp-{state.lab_id}", f"{state.folder}/engine"
    found = [line for line in found if any(name in line for name in names)]
    return found + [link.name for link in Path("/sys/class/net").glob(f"lab{state.lab_id[:6]}*")]


@pytest.fixture
def serving(engine: Engine, server: RegistryServer) -> Serving:
    """Let an engine that has no image yet run a registry."""
    packed = b"".join(engine.client.images.get(server.image).save(named=server.image))

    def serve(own: Engine, state: State) -> RegistryServer:
        own.client.images.load(packed)
        other = RegistryServer(engine=own, state=state)
        other.start(image=server.image).ping()
        return other

    return serve


def test_two_starts_at_once_start_one_engine_which_is_found_again_and_leaves_nothing(
    own: State, serving: Serving
) -> None:
    before = [rule for rule in rules() if rule.startswith("-P")]
    code = (
        "from labapp.machine import engine; from labapp.state import State; "
        "print(engine.start(State.open()).host)"
    )
    command = [sys.executable, "-c", code]
    variables = {**os.environ, "LABAPP_STATE": str(own.folder), **environ(own)}
    both = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) for _ in range(2)]
    hosts = {process.communicate()[0].decode().splitlines()[-1] for process in both}
    pid = dockerd(own)
    # Without any variable that names it, too: this lab's images are there.
    engine = engines.find(own, environ={})
    assert hosts == {engine.host, start(own).host}
    assert (engine.source, dockerd(own)) == ("the lab's own", pid)
    assert Path(engine.data_root) == own.folder / "engine" / "data"
    # Only its user and root reach it.
    assert own_engine.socket(own).parent.stat().st_mode & 0o777 == 0o700

    served = serving(engine, own)
    own_engine.stop(own)
    assert leftovers(own) == []
    assert [rule for rule in rules() if rule.startswith("-P")] == before
    engine = start(own)
    assert [each.name for each in engine.client.containers.list(all=True)] == [served.name]
    assert engine.image(served.image) is not None


def test_an_engine_that_was_killed_is_mended_by_start_and_cleared_by_stop(
    own: State, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(own)
    served = serving(engine, own)
    address = served.address
    put_image(served.registry(), "test/kept")
    kill(own)
    with pytest.raises(EngineLost, match="listing things"), engine.doing("listing things"):
        engine.client.containers.list()
    with pytest.raises(EngineNotFound, match="the lab's own"):
        engines.find(own, environ={})
    with subprocess.Popen(["sleep", "60"]) as stranger:
        # Pid files that a crash left name other processes by now.
        for name in ("docker.pid", "exec/containerd/containerd.pid"):
            (own_engine.socket(own).parent / name).write_text(str(stranger.pid))
        engine = start(own)
        assert stranger.poll() is None
        stranger.kill()
    assert engine.client.containers.list() == []
    # The container that ran has ended, and its port is free for the next.
    assert serving(engine, own).address == address
    # Another store begins without images and containers; what is in the registry is kept.
    settings = own_engine.settings
    other = {"storage-driver": "vfs"}
    monkeypatch.setattr(own_engine, "settings", lambda *known: settings(*known) | other)
    own_engine.stop(own)
    engine = start(own)
    assert engine.image(served.image) is engine.container(served.name) is None
    assert serving(engine, own).registry().repositories() == ["test/kept"]
    engine.client.networks.create("labtest-net")
    kill(own)
    own_engine.stop(own)
    assert leftovers(own) == []


def test_two_labs_on_one_machine_do_not_disturb_each_other(
    own: State, other: State, serving: Serving
) -> None:
    one, two = start(own), start(other)
    served = serving(one, own)
    serving(two, other)
    used = []
    for engine in (one, two):
        engine.client.networks.create("labtest-net")
        found = engine.client.networks.list(names=["bridge", "labtest-net"])
        used += [each["Subnet"] for net in found for each in net.attrs["IPAM"]["Config"]]
    assert len({*used}) == len(used) == 4
    own_engine.stop(other)
    served.registry().ping()
    assert one.is_alive()


def test_an_engine_that_cannot_start_tells_the_end_of_its_log(own: State) -> None:
    own.path("engine", "data").write_text("a file where a folder belongs")
    with pytest.raises(EngineError, match=r"(?s)engine\.log.*points to a file"):
        start(own)
    assert leftovers(own) == []
    own.path("engine", "data").unlink()
    assert start(own).is_alive()


def test_an_engine_without_the_privilege_says_so() -> None:
    code = "from labapp.machine import own_engine; print(own_engine.can_start())"
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    answer = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True)
    assert "--privileged" in answer.stdout, answer.stderr


def test_an_engine_killed_in_mid_build_leaves_nothing_but_the_cache(
    own: State, slim: Reference, tmp_path: Path
) -> None:
    engine, tag = start(own), f"labapp/lost-{uuid.uuid4().hex[:8]}:1"

    def make(*lines: str) -> build.Build:
        (tmp_path / "Dockerfile").write_text("\n".join(lines))
        return build.build(engine, tmp_path, tag=tag)

    small = ("FROM scratch", "LABEL word=one", "COPY file /")
    (tmp_path / "file").write_text("kept")
    make(*small)
    make("FROM scratch", "LABEL word=two")
    threading.Timer(6, kill, [own]).start()
    with pytest.raises(EngineLost, match=tag):
        make(f"FROM {slim}", "RUN sleep 300")

    engine = start(own)
    remove_leftovers(engine)
    mine = {"label": f"{LABEL}={own.lab_id}"}
    assert engine.client.containers.list(all=True, filters=mine) == []
    copied = [step.cached for step in make(*small).steps if step.instruction.startswith("COPY")]
    assert copied == [True]
