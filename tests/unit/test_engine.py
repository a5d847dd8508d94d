"""Finding an engine: where it is looked for, what is read from it, and why one does not answer."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import http.server
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from labapp import engine as engines
from labapp.engine.places import places
from labapp.errors import EngineError, EngineLost, EngineNotFound, PushError
from labapp.feedback import QuietFeedback
from labapp.state import State

NOBODY = 65534

DOCKER = {
    "Version": "28.1.0",
    "ApiVersion": "1.49",
    "Os": "linux",
    "Arch": "arm64",
    "Components": [{"Name": "Engine", "Version": "28.1.0"}],
}
PODMAN = {**DOCKER, "Version": "5.2.0", "Components": [{"Name": "Podman Engine"}]}


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers the first questions that are asked of any engine."""

    answers: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        path = self.path.split("?")[0].rsplit("/", 1)[-1]
        if path not in self.answers:
            self.send_error(502)
            return
        found = self.answers[path]
        body = (found if isinstance(found, str) else json.dumps(found)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "here"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def listening(
    address: Path | None, *, version: Mapping[str, Any] | None, info: Mapping[str, Any]
) -> Iterator[str]:
    """Listen on a socket file, or on a free port, and answer as an engine would."""
    answers = {"version": version, "info": info, "_ping": "OK"} if version else {}
    handler = type("Handler", (Answers,), {"answers": answers})
    server: socketserver.BaseServer
    if address is None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        host = f"tcp://127.0.0.1:{server.server_address[1]}"
    else:
        address.parent.mkdir(parents=True, exist_ok=True)
        server = socketserver.ThreadingUnixStreamServer(str(address), handler)
        host = f"unix://{address}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: the path of a socket ends at 107 bytes."""
    return tmp_path_factory.mktemp("e")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "state")


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without settings: neither an engine nor a proxy is named."""
    for name in [*os.environ]:
        if name.startswith("DOCKER_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "home" / ".docker"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.mark.parametrize(
    ("version", "info", "name", "store"),
    [
        (DOCKER, {"DriverStatus": [["Backing Filesystem", "extfs"]]}, "Docker", "classic"),
        (DOCKER, {"DriverStatus": None}, "Docker", "classic"),
        (
            DOCKER,
            {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]},
            "Docker",
            "containerd",
        ),
        (PODMAN, {"DriverStatus": [["Backing Filesystem", "extfs"]]}, "Podman", "podman"),
    ],
)
def test_what_is_read_from_an_engine(
    state: State,
    tmp_path: Path,
    version: dict[str, Any],
    info: dict[str, Any],
    name: str,
    store: str,
) -> None:
    with listening(tmp_path / "e.sock", version=version, info=info) as host:
        engine = engines.find(state, environ={"DOCKER_HOST": host})
        assert (engine.name, engine.store) == (name, store)
        assert (engine.host, engine.source) == (host, "DOCKER_HOST")
        assert (engine.platform, engine.api) == ("linux/arm64", "1.49")
        assert engine.environment()["DOCKER_HOST"] == host
        for word in (name, engine.version, "linux/arm64", store, host):
            assert word in engine.describe()
        if name == "Podman":
            assert engine.builder == "classic"


def a_missing_socket(folder: Path) -> str:
    return f"unix://{folder / 'none.sock'}"


def a_socket_that_nobody_serves(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "left.sock"))
    return f"unix://{folder / 'left.sock'}"


def a_port_that_nobody_serves(folder: Path) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_missing_socket, r"there is no socket '.*none\.sock': .*not installed, or not started"),
        (a_socket_that_nobody_serves, "no engine listens on it: it ended. Start it again"),
        (a_port_that_nobody_serves, "nothing listens at this port"),
        (
            lambda folder: "tcp://nosuch.invalid:2375",
            r"the name 'nosuch\.invalid' does not resolve",
        ),
        (lambda folder: "tcp://127.0.0.1:99999", "not an address"),
        (lambda folder: "nonsense://x", "nonsense"),
    ],
)
def test_why_an_engine_does_not_answer(
    state: State, tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    host = make(tmp_path)
    with pytest.raises(EngineNotFound, match=message) as caught:
        engines.find(state, environ={"DOCKER_HOST": host})
    assert f"DOCKER_HOST '{host}'" in str(caught.value)
    # Who names an engine wants that one: no other is looked for, and none is installed.
    assert str(caught.value).count("\n") == 1
    with pytest.raises(EngineNotFound, match=message):
        engines.start(state, feedback=QuietFeedback(), environ={"DOCKER_HOST": host})


def test_a_socket_without_permission(state: State, tmp_path: Path) -> None:
    path = tmp_path / "theirs.sock"
    with listening(path, version=DOCKER, info={}) as host, as_nobody(path):
        with pytest.raises(EngineNotFound) as caught:
            engines.find(state, environ={"DOCKER_HOST": host})
        assert f"the user '{getpass.getuser()}' may not use it" in str(caught.value)
        assert "usermod -aG docker" in str(caught.value)


@contextlib.contextmanager
def as_nobody(path: Path) -> Iterator[None]:
    """Take away the right to a socket; from root, by being somebody else for a while."""
    path.chmod(0o600)
    if os.geteuid() != 0:
        path.chmod(0)
        yield
        return
    for folder in path.parents:
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_something_that_is_no_engine(state: State, tmp_path: Path) -> None:
    with (
        listening(tmp_path / "web.sock", version=None, info={}) as host,
        pytest.raises(EngineNotFound, match=r"does not answer as an engine: .*502"),
    ):
        engines.find(state, environ={"DOCKER_HOST": host})


def test_a_proxy_before_an_engine_is_named(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(None, version=None, info={}) as proxy:
        address = proxy.replace("tcp://", "http://")
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("DOCKER_HOST", "tcp://engine.invalid:2375")
        message = f"the proxy '{address}' that HTTP_PROXY names.*Add 'engine.invalid' to NO_PROXY"
        with pytest.raises(EngineNotFound, match=message):
            engines.find(state)
        # The advice helps: the name is then asked for directly.
        monkeypatch.setenv("NO_PROXY", "engine.invalid")
        with pytest.raises(EngineNotFound, match="does not resolve"):
            engines.find(state)


def test_no_proxy_stands_before_an_engine_on_this_machine(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with listening(None, version=DOCKER, info={}) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        assert engines.find(state).is_alive()


def test_the_docker_context_is_honoured(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path / "c.sock", version=DOCKER, info={}) as host:
        config = tmp_path / "home" / ".docker"
        meta = config / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
        meta.mkdir(parents=True)
        content = {"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
        (meta / "meta.json").write_text(json.dumps(content))
        (config / "config.json").write_text(json.dumps({"currentContext": "mine"}))
        engine = engines.find(state, environ={})
        assert (engine.host, engine.source) == (host, "docker context")
        (config / "config.json").write_text("{}")
        assert engines.find(state, environ={"DOCKER_CONTEXT": "mine"}).host == host
        (meta / "meta.json").write_text("{")
        [first, *_] = places({"DOCKER_CONTEXT": "mine"}, own=None)
        assert first.host == "(context mine)"


@pytest.mark.parametrize(
    "path",
    [
        "run/docker.sock",
        "run/podman/podman.sock",
        "home/.docker/run/docker.sock",
        "home/.docker/desktop/docker.sock",
        "home/.colima/default/docker.sock",
        "home/.config/colima/default/docker.sock",
        "home/.rd/docker.sock",
        "home/.local/share/containers/podman/machine/podman.sock",
    ],
)
def test_the_sockets_of_the_usual_engines(tmp_path: Path, path: str) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert f"unix://{tmp_path / path}" not in [place.host for place in places(environ, own=None)]
    with listening(tmp_path / path, version=DOCKER, info={}) as host:
        found = {place.host: place for place in places(environ, own=None)}
    assert found[host].source == "socket"
    assert found[host].variables == {"DOCKER_HOST": host}


def test_the_order_of_places(tmp_path: Path) -> None:
    own = "unix:///lab/docker.sock"
    assert [place.source for place in places({"DOCKER_HOST": "tcp://x:1"}, own=own)] == [
        "DOCKER_HOST"
    ]
    assert [place.source for place in places({"DOCKER_HOST": own}, own=own)] == ["the lab's own"]
    assert [place.source for place in places({}, own=own)] == ["the lab's own"]
    assert next(iter(places({}, own=None))).source == "docker context"


def test_errors_of_the_sdk_become_the_labs(state: State, tmp_path: Path) -> None:
    with listening(tmp_path / "e.sock", version=DOCKER, info={}) as host:
        engine = engines.find(state, environ={"DOCKER_HOST": host})
        refused = pytest.raises(PushError, match="pushing 'x': the engine says")
        with refused, engine.doing("pushing 'x'", PushError):
            engine.client.containers.list()
        assert engine.is_alive()
    assert not engine.is_alive()
    lost = pytest.raises(EngineLost, match=r"pushing 'x': the engine at .*labapp start")
    with lost, engine.doing("pushing 'x'", PushError):
        engine.client.containers.list()
    assert issubclass(EngineLost, EngineError)
