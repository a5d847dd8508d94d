"""The lab's own engine: real ones, started, killed and mended in state folders of their own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from labapp import feedback
from labapp.errors import EngineError, EngineLost, EngineNotFound
from labapp.journey import build, transfer
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.machine.engine import Engine, remove_leftovers
from labapp.machine.ports import free_port
from labapp.machine.root import run_as_root
from labapp.machine.waiting import wait_until
from labapp.reference import Reference
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State

pytestmark = pytest.mark.own_engine

ANSWERER = """
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die $!;
while (my $c = $s->accept) { <$c>; print $c "HTTP/1.0 200 OK\r\n\r\nhere"; close $c; }
"""


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A lab of its own, whose engine is removed with all its data."""
    yield from lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    yield from lab(tmp_path_factory.mktemp("other"))


def lab(folder: Path) -> Iterator[State]:
    state = State.open(folder)
    with feedback.using(feedback.QuietFeedback()):
        yield state
        own_engine.remove(state)
    assert leftovers(state) == []


def start(state: State) -> Engine:
    return engines.start(state, environ=environ(state))


def environ(state: State) -> dict[str, str]:
    """An environment in which nothing but the lab's own engine is named."""
    return {"DOCKER_HOST": f"unix://{own_engine.socket(state)}"}


def dockerd(state: State) -> int:
    option = f"--config-file={state.path('engine', 'daemon.json')}"
    lines = {each.pid: each.info["cmdline"] or [""] for each in psutil.process_iter(["cmdline"])}
    [pid] = [pid for pid, line in lines.items() if line[0] == "dockerd" and option in line]
    return pid


def leftovers(state: State) -> list[str]:
    """What an engine that was stopped must not leave: processes, bridges, rules, mounts."""
    name = f"labapp-{state.lab_id}"
    lines = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    found = [line for line in lines if name in line or f"{state.folder}/engine" in line]
    found += [link.name for link in Path("/sys/class/net").glob(f"lab{state.lab_id[:6]}*")]
    for table in ("nat", "filter"):
        rules = run_as_root(["iptables", "-t", table, "-S"]).stdout.splitlines()
        found += [rule for rule in rules if name in rule]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found + [line for line in mounts if str(state.folder) in line or name in line]


def policies() -> list[str]:
    """What this machine does with packets that no rule speaks of."""
    rules = [run_as_root(["iptables", "-t", table, "-S"]).stdout for table in ("nat", "filter")]
    return [rule for text in rules for rule in text.splitlines() if rule.startswith("-P")]


def load_image(engine: Engine) -> str:
    """Give an engine an image with perl, made of this machine's files: no registry is needed."""
    libraries = subprocess.run(["ldd", "/usr/bin/perl"], capture_output=True, text=True).stdout
    files = {"/usr/bin/perl", *(word for word in libraries.split() if word.startswith("/"))}
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w", dereference=True) as tar:
        for file in sorted(files):
            tar.add(file)
        for folder in Path("/usr/lib").glob("*/perl-base"):
            tar.add(folder)
    engine.client.api.import_image_from_data(found.getvalue(), repository="labtest/perl", tag="1")
    return "labtest/perl:1"


def serve(engine: Engine, image: str, port: int) -> str:
    """Run a container that answers on a port of this machine, and return what it answers."""
    engine.client.containers.run(
        image,
        ["/usr/bin/perl", "-e", ANSWERER],
        detach=True,
        stop_signal="SIGKILL",  # a first process has no default handler for the polite one
        ports={"8000/tcp": ("127.0.0.1", port)},
    )
    return fetch(port)


def fetch(port: int) -> str:
    with requests.Session() as session:
        session.trust_env = False

        def ask() -> str:
            with contextlib.suppress(requests.RequestException):
                return session.get(f"http://127.0.0.1:{port}/", timeout=5).text
            return ""

        return wait_until(ask, seconds=10)


def test_it_starts_is_found_again_and_leaves_nothing(own: State) -> None:
    before = policies()
    engine = start(own)
    pid = dockerd(own)
    assert engine.source == "the lab's own"
    assert engine.platform.startswith("linux/")
    assert Path(engine.data_root) == own.folder / "engine" / "data"
    # Only its user and root reach it.
    assert own_engine.socket(own).parent.stat().st_mode & 0o777 == 0o700
    # Without any variable that names it, too: this lab's images are there.
    assert engines.find(own, environ={}).host == engine.host
    assert start(own).host == engine.host
    assert dockerd(own) == pid

    image = load_image(engine)
    engine.client.containers.create(image, ["/usr/bin/perl"], name="kept")
    engines.stop(own)
    assert leftovers(own) == []
    assert policies() == before
    with pytest.raises(EngineNotFound, match="the lab's own"):
        engines.find(own, environ={})
    engine = start(own)
    assert engine.client.containers.get("kept").status == "created"
    assert engine.image(image) is not None


def test_an_engine_that_was_killed_is_mended_by_start_and_cleared_by_stop(own: State) -> None:
    engine = start(own)
    image, port = load_image(engine), free_port()
    assert serve(engine, image, port) == "here"
    os.kill(dockerd(own), signal.SIGKILL)
    with pytest.raises(EngineLost, match="listing things"), engine.doing("listing things"):
        engine.client.containers.list()
    with pytest.raises(EngineNotFound, match="the lab's own"):
        engines.find(own, environ={})
    engine = start(own)
    assert engine.client.containers.list() == []
    # The container that ran has ended, and its port is free for the next.
    assert serve(engine, image, port) == "here"
    engine.client.networks.create("labtest-net")
    os.kill(dockerd(own), signal.SIGKILL)
    engines.stop(own)
    assert leftovers(own) == []


def test_pid_files_that_a_crash_left_name_other_processes(own: State) -> None:
    start(own)
    os.kill(dockerd(own), signal.SIGKILL)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            run = own_engine.socket(own).parent
            for name in ("docker.pid", "exec/containerd/containerd.pid"):
                (run / name).write_text(str(stranger.pid))
            assert start(own).is_alive()
            assert dockerd(own) != stranger.pid
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_two_starts_at_once_start_one_engine(own: State) -> None:
    code = (
        "from labapp.machine import engine; from labapp.state import State; "
        "print(engine.start(State.open()).host)"
    )
    variables = {**os.environ, "LABAPP_STATE": str(own.folder), **environ(own)}

    def one(_: int) -> str:
        answer = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True
        )
        return (answer.stdout or answer.stderr).splitlines()[-1]

    with ThreadPoolExecutor(2) as pool:
        hosts = list(pool.map(one, range(2)))
    assert hosts == [f"unix://{own_engine.socket(own)}"] * 2
    assert dockerd(own)


def test_two_labs_on_one_machine_do_not_disturb_each_other(own: State, other: State) -> None:
    one, two = start(own), start(other)
    port, second = free_port(), free_port()
    assert serve(one, load_image(one), port) == "here"
    assert serve(two, load_image(two), second) == "here"
    used = []
    for engine in (one, two):
        engine.client.networks.create("labtest-net")
        found = engine.client.networks.list(names=["bridge", "labtest-net"])
        used += [each["Subnet"] for net in found for each in net.attrs["IPAM"]["Config"]]
    assert len({*used}) == len(used) == 4
    engines.stop(other)
    assert fetch(port) == "here"
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


def kill_when(state: State, told: feedback.QuietFeedback, note: str, *, done: float = 0) -> None:
    """Kill an engine as soon as the lab's bars tell that the work is in its middle."""

    def kill() -> None:
        while not any(
            note in bar.note and bar.done >= done
            for bars in told.shown
            for bar in list(bars.bars.values())
        ):
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(dockerd(state), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def test_an_engine_killed_in_mid_build_leaves_nothing_but_the_cache(
    own: State, slim: Reference, tmp_path: Path
) -> None:
    engine, tag = start(own), f"labapp/lost-{uuid.uuid4().hex[:8]}:1"
    dockerfile = tmp_path / "Dockerfile"
    for word in ("one", "two"):
        dockerfile.write_text(f"FROM scratch\nLABEL word={word}\nCOPY Dockerfile /\n")
        build.build(engine, tmp_path, tag=tag)
    dockerfile.write_text(f"FROM {slim}\nRUN sleep 300\n")
    with feedback.using(feedback.QuietFeedback()) as told:
        kill_when(own, told, "sleep")
        with pytest.raises(EngineLost, match=tag):
            build.build(engine, tmp_path, tag=tag)

    engine = start(own)
    remove_leftovers(engine)
    mine = {"label": f"{LABEL}={own.lab_id}"}
    assert engine.client.containers.list(all=True, filters=mine) == []
    dockerfile.write_text("FROM scratch\nLABEL word=one\nCOPY Dockerfile /\n")
    made = build.build(engine, tmp_path, tag=tag)
    assert [step.cached for step in made.steps if step.instruction.startswith("COPY")] == [True]


def test_an_engine_killed_in_mid_push(own: State, server: RegistryServer, tmp_path: Path) -> None:
    engine, tag = start(own), f"{server.address}/test/{uuid.uuid4().hex[:8]}:1"
    (tmp_path / "large").write_bytes(os.urandom(100_000_000))
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")
    build.build(engine, tmp_path, tag=tag)
    with feedback.using(feedback.QuietFeedback()) as told:
        kill_when(own, told, "pushing", done=10e6)
        with pytest.raises(EngineLost, match=tag):
            transfer.push(engine, server, tag)

    pushed = transfer.push(start(own), server, tag)
    assert list(pushed.layers["outcome"]) == ["sent"]
