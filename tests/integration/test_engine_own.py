"""The lab's own engine: real ones, started, killed and mended in state folders of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labapp import engine as engines
from labapp.engine import Engine, own_engine
from labapp.errors import EngineError, EngineLost, EngineNotFound
from labapp.feedback import QuietFeedback
from labapp.state import State
from labapp.system import processes
from labapp.system.ports import free_port
from labapp.system.privileges import run_as_root

pytestmark = pytest.mark.own_engine

ANSWERER = """
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die $!;
while (my $c = $s->accept) { <$c>; print $c "HTTP/1.0 200 OK\r\n\r\nhere"; close $c; }
"""


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A lab of its own, whose engine is removed with all its data."""
    yield from lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    yield from lab(tmp_path_factory.mktemp("other"))


def lab(folder: Path) -> Iterator[State]:
    state = State.open(folder)
    yield state
    own_engine.remove(state, feedback=QuietFeedback())
    assert leftovers(state) == []


def start(state: State) -> Engine:
    return engines.start(state, feedback=QuietFeedback(), environ=environ(state))


def environ(state: State) -> dict[str, str]:
    """An environment in which nothing but the lab's own engine is named."""
    return {"DOCKER_HOST": f"unix://{own_engine.socket(state)}"}


def dockerd(state: State) -> int:
    [pid] = processes.running("dockerd", f"--config-file={state.path('engine', 'daemon.json')}")
    return pid


def leftovers(state: State) -> list[str]:
    """What an engine that was stopped must not leave: processes, bridges, rules, mounts."""
    name = f"labapp-{state.lab_id}"
    found = [
        " ".join(processes.arguments(int(entry.name)))
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
    ]
    found = [line for line in found if name in line or f"{state.folder}/engine" in line]
    found += [link.name for link in Path("/sys/class/net").glob(f"lab{state.lab_id[:6]}*")]
    for table in ("nat", "filter"):
        rules = run_as_root(["iptables", "-t", table, "-S"]).stdout.splitlines()
        found += [rule for rule in rules if name in rule]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found + [line for line in mounts if str(state.folder) in line or name in line]


def surroundings() -> str:
    """The network of this machine, apart from counters."""
    links = json.loads(run_as_root(["ip", "-json", "-4", "address"]).stdout)
    rules = [run_as_root(["iptables", "-t", table, "-S"]).stdout for table in ("nat", "filter")]
    return "\n".join([*sorted(str(link.get("addr_info")) for link in links), *rules])


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
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(50):
        try:
            with opener.open(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            if attempt == 49:
                raise
            time.sleep(0.1)
    raise AssertionError


def test_it_starts_is_found_again_and_leaves_nothing(state: State) -> None:
    before = surroundings()
    engine = start(state)
    pid = dockerd(state)
    assert engine.source == "the lab's own"
    assert engine.platform.startswith("linux/")
    assert Path(engine.data_root) == state.folder / "engine" / "data"
    assert int((state.folder / "engine" / "docker.pid").read_text()) == pid
    assert (state.folder / "engine" / "docker.sock").is_socket()
    # Without any variable that names it, too: this lab's images are there.
    assert engines.find(state, environ={}).host == engine.host
    assert start(state).host == engine.host
    assert dockerd(state) == pid

    engines.stop(state, feedback=QuietFeedback())
    assert leftovers(state) == []
    assert surroundings() == before
    with pytest.raises(EngineNotFound, match=r"the lab's own .*there is no socket"):
        engines.find(state, environ={})


def test_its_images_and_containers_are_there_after_a_restart(state: State) -> None:
    engine = start(state)
    image = load_image(engine)
    engine.client.containers.create(image, ["/usr/bin/perl"], name="kept")
    engines.stop(state, feedback=QuietFeedback())
    engine = start(state)
    assert engine.client.containers.get("kept").status == "created"
    assert engine.client.images.get(image)


def test_an_engine_that_was_killed_is_mended_by_start(state: State) -> None:
    engine = start(state)
    image, port = load_image(engine), free_port()
    assert serve(engine, image, port) == "here"
    os.kill(dockerd(state), signal.SIGKILL)
    lost = r"listing things: the engine at .* does not answer"
    with pytest.raises(EngineLost, match=lost), engine.doing("listing things"):
        engine.client.containers.list()
    with pytest.raises(EngineNotFound, match="no engine listens on it"):
        engines.find(state, environ={})
    engine = start(state)
    assert engine.client.containers.list() == []
    # The container that ran has ended, and its port is free for the next.
    assert serve(engine, image, port) == "here"


def test_an_engine_that_was_killed_is_cleared_by_stop(state: State) -> None:
    engine = start(state)
    serve(engine, load_image(engine), free_port())
    engine.client.networks.create("labtest-net")
    os.kill(dockerd(state), signal.SIGKILL)
    engines.stop(state, feedback=QuietFeedback())
    assert leftovers(state) == []


def test_pid_files_of_before_a_reboot_name_other_processes(state: State) -> None:
    start(state)
    engines.stop(state, feedback=QuietFeedback())
    with subprocess.Popen(["sleep", "60"]) as stranger:
        run = state.folder / "engine"
        (run / "docker.pid").write_text(str(stranger.pid))
        (run / "exec" / "containerd").mkdir(parents=True, exist_ok=True)
        (run / "exec" / "containerd" / "containerd.pid").write_text(str(stranger.pid))
        (run / "docker.sock").touch()
        assert start(state).is_alive()
        assert dockerd(state) != stranger.pid
        assert stranger.poll() is None
        stranger.terminate()


def test_two_starts_at_once_start_one_engine(state: State) -> None:
    code = (
        "from labapp import engine; from labapp.state import State; "
        "from labapp.feedback import QuietFeedback; "
        "print(engine.start(State.open(), feedback=QuietFeedback()).host)"
    )
    variables = {**os.environ, "LABAPP_STATE": str(state.folder), **environ(state)}

    def one(_: int) -> str:
        answer = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True
        )
        return answer.stdout + answer.stderr

    with ThreadPoolExecutor(2) as pool:
        hosts = list(pool.map(one, range(2)))
    assert hosts == [f"unix://{own_engine.socket(state)}\n"] * 2
    assert dockerd(state)


def test_a_state_folder_that_is_too_deep_for_a_socket(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    deep = tmp_path_factory.mktemp("deep").joinpath(*["a-rather-long-name"] * 5)
    for state in lab(deep):
        engine = start(state)
        folder = own_engine.socket(state).parent
        assert not folder.is_relative_to(deep)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert engine.is_alive()
    assert not folder.exists()


def test_two_labs_on_one_machine_do_not_disturb_each_other(state: State, other: State) -> None:
    one, two = start(state), start(other)
    port, second = free_port(), free_port()
    assert serve(one, load_image(one), port) == "here"
    assert serve(two, load_image(two), second) == "here"
    ours = {network["Subnet"] for network in _subnets(one)}
    assert not ours & {network["Subnet"] for network in _subnets(two)}
    engines.stop(other, feedback=QuietFeedback())
    assert fetch(port) == "here"
    assert one.is_alive()


def _subnets(engine: Engine) -> list[dict[str, str]]:
    engine.client.networks.create("labtest-net")
    return [
        part
        for network in engine.client.networks.list(names=["bridge", "labtest-net"])
        for part in network.attrs["IPAM"]["Config"]
    ]


def test_an_engine_that_cannot_start_tells_the_end_of_its_log(state: State) -> None:
    state.path("engine", "data").write_text("a file where a folder belongs")
    with pytest.raises(
        EngineError, match=r"(?s)dockerd ended with 1.*engine\.log.*points to a file"
    ):
        start(state)
    assert leftovers(state) == []
    state.path("engine", "data").unlink()
    assert start(state).is_alive()


def test_an_engine_without_the_privilege_says_so() -> None:
    code = "from labapp.engine import own_engine; print(own_engine.can_start())"
    answer = subprocess.run(
        [
            "setpriv",
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
    )
    assert "without '--privileged'" in answer.stdout, answer.stderr
