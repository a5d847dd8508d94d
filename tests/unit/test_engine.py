"""Finding an engine: where it is looked for, what is read from it, and why one does not answer."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from labapp import doctor
from labapp.errors import EngineLost, EngineNotFound, PushError
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.state import State

NOBODY = 65534

# GET /version of each engine, less what nobody reads. The oldest API that 20.10 names was 1.12;
# 29.0 to 29.2 serve none below 1.44, later ones from 1.40. The last is yet to come.
VERSIONS = {
    "20.10": {"Version": "20.10.24+dfsg1", "ApiVersion": "1.41", "MinAPIVersion": "1.12"},
    "28.5": {"Version": "28.5.2", "ApiVersion": "1.51", "MinAPIVersion": "1.24"},
    "29.0": {"Version": "29.0.1", "ApiVersion": "1.52", "MinAPIVersion": "1.44"},
    "29.4": {"Version": "29.4.0", "ApiVersion": "1.54", "MinAPIVersion": "1.40"},
    "later": {"Version": "40.0.0", "ApiVersion": "1.110", "MinAPIVersion": "1.100"},
    "podman": {
        "Version": "5.4.2",
        "ApiVersion": "1.41",
        "MinAPIVersion": "1.24",
        "Components": [{"Name": "Podman Engine"}, {"Name": "Conmon"}],
    },
}
CLASSIC = {"DriverStatus": [["Backing Filesystem", "extfs"]]}
CONTAINERD = {"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}


def number(version: str) -> int:
    return int(version.partition(".")[2])


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers the first questions as an engine does: in the versions of the API that it serves."""

    version: ClassVar[dict[str, Any]]
    info: ClassVar[dict[str, Any]]
    refusal: ClassVar[dict[str, Any]]

    def do_GET(self) -> None:
        asked = re.fullmatch(r"(?:/v(\d+\.\d+))?/(\w+)[^?]*(?:\?.*)?", self.path)
        assert asked is not None
        oldest, newest = (self.version[name] for name in ("MinAPIVersion", "ApiVersion"))
        if asked[1] and not number(oldest) <= number(asked[1]) <= number(newest):
            self.answer(400, {"message": f"client version {asked[1]} is too old or too new"})
        elif asked[2] in ("version", "info"):
            self.answer(200, self.version if asked[2] == "version" else self.info)
        elif asked[2] == "_ping":
            self.answer(200, "OK")
        else:
            self.answer(500, self.refusal)

    def answer(self, status: int, content: object) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
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
    address: Path | None = None,
    *,
    engine: str = "28.5",
    info: dict[str, Any] = CLASSIC,
    refusal: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Listen on a socket file, or on a free port, and answer as an engine would."""
    version = {"Os": "linux", "Arch": "arm64", **VERSIONS[engine]}
    facts = {"version": version, "info": info, "refusal": refusal or {"message": "no room"}}
    handler = type("Handler", (Answers,), facts)
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


@pytest.mark.parametrize("engine", VERSIONS)
@pytest.mark.parametrize("file", ["e.sock", None])
def test_the_version_of_the_api_is_agreed(
    state: State, tmp_path: Path, engine: str, file: str | None
) -> None:
    about = VERSIONS[engine]
    with listening(tmp_path / file if file else None, engine=engine) as host:
        found = engines.find(state, environ={"DOCKER_HOST": host})
        assert found.version == about["Version"]
        assert (found.client.info(), found.is_alive()) == (CLASSIC, True)
        oldest, newest = (number(str(about[name])) for name in ("MinAPIVersion", "ApiVersion"))
        assert oldest <= number(found.api) <= newest


@pytest.mark.parametrize(
    ("engine", "info", "name", "store"),
    [
        ("20.10", CLASSIC, "Docker", "classic"),
        ("28.5", {"DriverStatus": None}, "Docker", "classic"),
        ("29.0", CONTAINERD, "Docker", "containerd"),
        ("podman", CLASSIC, "Podman", "podman"),
    ],
)
def test_what_is_read_from_an_engine(
    state: State, tmp_path: Path, engine: str, info: dict[str, Any], name: str, store: str
) -> None:
    with listening(tmp_path / "e.sock", engine=engine, info=info) as host:
        found = engines.find(state, environ={"DOCKER_HOST": host})
    assert (found.name, found.store, found.platform) == (name, store, "linux/arm64")
    assert (found.host, found.source) == (host, "DOCKER_HOST")
    assert found.labels == state.labels
    variables = found.environment()
    assert variables["DOCKER_HOST"] == host
    # Else a build in a terminal starts a BuildKit of its own, which keeps the image to itself.
    assert variables.get("DOCKER_BUILDKIT") == ("0" if name == "Podman" else None)
    assert found.builder == "classic" or name == "Docker"
    for fact in (name, found.version, "linux/arm64", store, host):
        assert fact in found.describe()


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("unix://{}/none.sock", "no such socket"),
        ("unix://{}/left.sock", "no engine listens"),
        ("tcp://127.0.0.1:1", "no engine listens"),
        ("tcp://nosuch.invalid:2375", "not resolve"),
        ("tcp://127.0.0.1:99999", "99999"),
        ("nonsense://x", "nonsense"),
    ],
)
def test_why_an_engine_does_not_answer(state: State, tmp_path: Path, host: str, cause: str) -> None:
    host = host.format(tmp_path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    for look in (engines.find, engines.start):
        with pytest.raises(EngineNotFound) as caught:
            look(state, environ={"DOCKER_HOST": host})
        # Who names an engine wants that one: no other is looked for, and none is installed.
        [told] = str(caught.value).splitlines()[1:]
        assert f"DOCKER_HOST '{host}'" in told
        assert cause in told and "unset DOCKER_HOST" in told


@pytest.mark.parametrize(("mode", "helps"), [(0o660, "usermod -aG games"), (0o600, "as that user")])
def test_a_socket_without_permission(state: State, tmp_path: Path, mode: int, helps: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else for a while")
    path = tmp_path / "theirs.sock"
    with listening(path) as host:
        os.chown(path, 0, 60)  # Debian's group 'games'
        path.chmod(mode)
        for folder in [state.folder, *path.parents]:
            if folder.is_relative_to("/tmp/pytest-of-root"):
                folder.chmod(0o755)
        for file in state.folder.iterdir():
            file.chmod(0o644)
        os.seteuid(NOBODY)
        try:
            findings = doctor.examine_lab(state, environ={"DOCKER_HOST": host})
        finally:
            os.seteuid(0)
    assert not findings[0].ok
    assert host in findings[0].text and helps in findings[0].text
    # Another engine would be no help, and neither would another start.
    assert "install" not in findings[0].text.lower() and "start" not in findings[0].text


def test_an_engine_is_offered_only_where_none_is_there(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_engine, "can_start", lambda: "reason x")
    if Path("/var/run/docker.sock").exists():
        pytest.skip("this machine has an engine")
    with pytest.raises(EngineNotFound, match="reason x") as caught:
        engines.start(state, environ={})
    assert "install" in str(caught.value).lower()


def test_something_that_is_no_engine(state: State) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"tcp://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(EngineNotFound, match="501"):
            engines.find(state, environ={"DOCKER_HOST": host})
        server.shutdown()


def test_no_proxy_stands_before_an_engine(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with listening() as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        assert engines.find(state).is_alive()


def test_the_docker_context_is_honoured(state: State, tmp_path: Path) -> None:
    config = tmp_path / "home" / ".docker"
    meta = config / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
    meta.mkdir(parents=True)
    with listening(tmp_path / "c.sock") as host:
        content = {"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
        (meta / "meta.json").write_text(json.dumps(content))
        (config / "config.json").write_text(json.dumps({"currentContext": "mine"}))
        engine = engines.find(state, environ={})
        assert (engine.host, engine.source) == (host, "docker context")
        (config / "config.json").write_text("{}")
        assert engines.find(state, environ={"DOCKER_CONTEXT": "mine"}).host == host
    (meta / "meta.json").write_text("{")
    with pytest.raises(EngineNotFound, match=r"context mine.*docker context ls"):
        engines.find(state, environ={"DOCKER_CONTEXT": "mine"})


@pytest.mark.parametrize("path", ["run/docker.sock", "run/podman/podman.sock"])
def test_the_sockets_of_engines_that_name_themselves_nowhere(tmp_path: Path, path: str) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    host = f"unix://{tmp_path / path}"
    assert host not in [place.host for place in engines.places(environ, own=None)]
    with listening(tmp_path / path):
        found = {place.host: place for place in engines.places(environ, own=None)}
    assert found[host].source == "socket"


def test_the_order_of_places() -> None:
    own = "unix:///lab/docker.sock"
    for environ, engine, sources in (
        ({"DOCKER_HOST": "tcp://x:1"}, own, ["DOCKER_HOST"]),
        ({"DOCKER_HOST": own}, own, ["the lab's own"]),
        ({}, own, ["the lab's own"]),
    ):
        assert [place.source for place in engines.places(environ, own=engine)] == sources
    assert next(iter(engines.places({}, own=None))).source == "docker context"


@pytest.mark.parametrize("refusal", [{"message": "no room"}, {"errorDetail": "no room"}])
def test_errors_of_the_sdk_become_the_labs(
    state: State, tmp_path: Path, refusal: dict[str, Any]
) -> None:
    with listening(tmp_path / "e.sock", refusal=refusal) as host:
        engine = engines.find(state, environ={"DOCKER_HOST": host})
        with pytest.raises(PushError, match=r"pushing 'x'.*no room"):  # noqa: SIM117
            with engine.doing("pushing 'x'", PushError):
                engine.client.containers.list()
        with pytest.raises(KeyError), engine.doing("pushing 'x'"):
            raise KeyError("a mistake of the lab's own")
        assert engine.is_alive()
    assert not engine.is_alive()
    with pytest.raises(EngineLost, match="pushing 'x'"), engine.doing("pushing 'x'", PushError):
        engine.client.containers.list()
