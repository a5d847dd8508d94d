"""Engines: found and read, and why one does not answer; what the lab's own would be told."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import docker
import psutil
import pytest
from registries import Reply, Seen, serving

from labapp import doctor
from labapp.errors import EngineLost, EngineNotFound, PushError
from labapp.machine import engine as engines
from labapp.machine import own_engine, root
from labapp.state import State

# GET /version of each engine, less what nobody reads. The oldest API that 20.10 names was 1.12;
# 29.0 to 29.2 serve none below 1.44, later ones from 1.40. The last is yet to come.
VERSIONS = {
    "20.10": {"Version": "20.10.24+dfsg1", "ApiVersion": "1.41", "MinAPIVersion": "1.12"},
    "28.5": {"Version": "28.5.2", "ApiVersion": "1.51", "MinAPIVersion": "1.24"},
    "29.0": {"Version": "29.0.1", "ApiVersion": "1.52", "MinAPIVersion": "1.44"},
    "29.4": {"Version": "29.4.0", "ApiVersion": "1.54", "MinAPIVersion": "1.40"},
    "old": {"Version": "1.12.6", "ApiVersion": "1.24", "MinAPIVersion": "1.12"},
    "next": {"Version": "35.0.0", "ApiVersion": "1.99", "MinAPIVersion": "1.44"},
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


@contextlib.contextmanager
def listening(
    engine: str = "28.5", info: dict[str, Any] = CLASSIC, refusal: dict[str, Any] | None = None
) -> Iterator[str]:
    """Answer the first questions as an engine does: in the versions of the API that it serves."""
    about = {"Os": "linux", "Arch": "arm64", **VERSIONS[engine]}
    known = {"version": about, "info": info, "_ping": "OK"}
    oldest, newest = (number(about[each]) for each in ("MinAPIVersion", "ApiVersion"))

    def answer(seen: Seen) -> Reply:
        asked = re.fullmatch(r"(?:/v(\d+\.\d+))?/(\w+)[^?]*(?:\?.*)?", seen.path)
        assert asked is not None
        status, content = 200, known.get(asked[2])
        if asked[1] and not oldest <= number(asked[1]) <= newest:
            status, content = 400, {"message": f"client version {asked[1]} is too old or too new"}
        elif content is None:
            status, content = 500, refusal
        body = json.dumps(content).encode() if content != "OK" else b"OK"
        return Reply(status, body, {"Content-Type": "application/json", "Connection": "close"})

    with serving(answer) as served:
        yield f"tcp://{served.address}"


@contextlib.contextmanager
def socket_at(path: Path) -> Iterator[str]:
    """A socket, as an engine makes it; yields its address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        yield f"unix://{path}"


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


@pytest.mark.parametrize(
    ("engine", "info", "name", "store"),
    [
        ("20.10", CLASSIC, "Docker", "classic"),
        ("28.5", {"DriverStatus": None}, "Docker", "classic"),
        ("29.0", CONTAINERD, "Docker", "containerd"),
        ("29.4", CONTAINERD, "Docker", "containerd"),
        ("old", CLASSIC, "Docker", "classic"),
        ("next", CONTAINERD, "Docker", "containerd"),
        ("later", CONTAINERD, "Docker", "containerd"),
        ("podman", CLASSIC, "Podman", "podman"),
    ],
)
def test_what_is_read_from_an_engine(
    state: State,
    engine: str,
    info: dict[str, Any],
    name: str,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    about = VERSIONS[engine]
    # No proxy stands before an engine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with listening(engine, info) as host:
        found = engines.find(state, environ={"DOCKER_HOST": host})
        assert (found.client.info(), found.is_alive()) == (info, True)
    oldest, newest = (number(str(about[each])) for each in ("MinAPIVersion", "ApiVersion"))
    assert oldest <= number(found.client.api.api_version) <= newest
    assert (found.name, found.store, found.labels) == (name, store, state.labels)
    # Else a build in a terminal takes a BuildKit in a container, which keeps the image to itself.
    own = {"DOCKER_BUILDKIT": "0", "CONTAINER_HOST": host}
    own = own if name == "Podman" else {"BUILDX_BUILDER": "default"}
    set_aside = dict.fromkeys(engines.SET_ASIDE, "")
    assert found.variables == {"DOCKER_HOST": host, **set_aside, **own}
    if name == "Podman":
        assert found.builder == "classic"
    for fact in (name, about["Version"], "linux/arm64", store, host, "DOCKER_HOST"):
        assert fact in found.describe()


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("unix://{folder}/none.sock", "No such file"),
        ("unix://{folder}/left.sock", "refused"),
        ("tcp://127.0.0.1:1", "refused"),
        ("tcp://nosuch.invalid:2375", "[Errno -"),
        ("tcp://127.0.0.1:99999", "99999"),
        ("nonsense://x", "nonsense"),
        ("tcp://{no_engine}", "501"),
    ],
)
def test_why_an_engine_does_not_answer(state: State, tmp_path: Path, host: str, cause: str) -> None:
    with socket_at(tmp_path / "left.sock"):
        pass
    with serving(Reply(501)) as served:
        host = host.format(folder=tmp_path, no_engine=served.address)
        for look in (engines.find, engines.start):
            with pytest.raises(EngineNotFound) as caught:
                look(state, environ={"DOCKER_HOST": host})
            # Who names an engine wants that one: no other is looked for, and none is installed.
            [told] = str(caught.value).splitlines()[1:]
            assert f"DOCKER_HOST '{host}'" in told
            assert cause in told and "unset DOCKER_HOST" in told


@pytest.mark.parametrize(
    ("cause", "helps", "offered"),
    [
        (ConnectionRefusedError("refused"), "reason x", True),
        # What pywin32 raises for a pipe that nobody opened.
        (type("PipeError", (Exception,), {})(2, "CreateFile", "no file"), "reason x", True),
        # Another engine would be no help, and neither would another start.
        (PermissionError("denied"), "ls -l /theirs", False),
    ],
)
def test_an_engine_is_offered_only_where_none_is_there(
    state: State, cause: Exception, helps: str, offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_engine, "can_start", lambda: "reason x")
    monkeypatch.setattr(engines, "PIPE_ERROR", type(cause))
    monkeypatch.setattr(engines, "places", lambda *_, **__: [("unix:///theirs", "socket")])
    monkeypatch.setattr(docker.DockerClient, "version", Mock(side_effect=cause))
    with pytest.raises(EngineNotFound, match=f"(?s)unix:///theirs.*{helps}") as caught:
        engines.start(state, environ={})
    assert ("install" in str(caught.value).lower()) is offered


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        *((200, body, "is none") for body in ("{}", "[]", "null", "<html>", "")),
        (200, json.dumps({**VERSIONS["28.5"], "ApiVersion": 1.41}), "is none"),
        (200, json.dumps({**VERSIONS["28.5"], "ApiVersion": "new"}), "'new'"),
        (403, '{"message": "no, by rule 7"}', "no, by rule 7"),
        (400, "Client sent an HTTP request to an HTTPS server.", "neither SSH nor TLS"),
    ],
)
def test_what_answers_is_no_engine(state: State, status: int, body: str, cause: str) -> None:
    with serving(Reply(status, body.encode())) as served:
        host = f"tcp://{served.address}"
        with pytest.raises(EngineNotFound, match=f"'{host}'.*{cause}"):
            engines.find(state, environ={"DOCKER_HOST": host})


def test_an_engine_that_is_out_of_reach(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    real = docker.DockerClient
    monkeypatch.setattr(docker, "DockerClient", lambda **its: real(**{**its, "timeout": 0.2}))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for host, cause in ((f"tcp://{address}", "timed out"), ("ssh://me@there", "own machine")):
            with pytest.raises(EngineNotFound, match=f"'{host}'.*{cause}"):
                engines.find(state, environ={"DOCKER_HOST": host})


@pytest.mark.parametrize(
    ("content", "told"),
    [("{broken", ""), ("[]", "list"), ('{"proxies": null}', "None"), ('{"auths": 1}', "int")],
)
def test_settings_of_docker_that_are_damaged(
    state: State, tmp_path: Path, content: str, told: str
) -> None:
    """As with the docker command, what is not even JSON counts as no settings."""
    file = tmp_path / "home" / ".docker" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    expected = pytest.raises(EngineNotFound, match=f"'{file}'.*{told}.*Mend that file")
    with listening() as host, expected if told else contextlib.nullcontext():
        engines.find(state, environ={"DOCKER_HOST": host})


@pytest.mark.parametrize(
    ("group", "joined", "advice"),
    [
        ("docker", True, "newgrp docker"),
        ("docker", False, "usermod -aG docker"),
        ("root", False, "ls -l"),  # nobody is to join that one
    ],
)
def test_the_way_to_a_socket(
    tmp_path: Path, group: str, joined: bool, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, state = tmp_path / "engine.sock", State.open(tmp_path / "state")
    denied = Mock(side_effect=PermissionError("denied"))
    with socket_at(file) as host, monkeypatch.context() as patch:
        file.chmod(0o660)
        mine = [file.stat().st_gid] if joined else []
        patch.setattr(docker.DockerClient, "version", denied)
        patch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name=group))
        patch.setattr(os, "getgrouplist", lambda *_: mine)
        patch.setattr(os, "getgroups", list)
        patch.setenv("DOCKER_HOST", host)
        [found] = doctor.examine_lab(state)
        with pytest.raises(EngineNotFound) as caught:
            engines.start(state)
    for text in (found.text, str(caught.value)):
        assert re.search(rf"'{host}': your account may not use it\. .*{advice}", text)
        assert ("usermod" in text) == (advice[:7] == "usermod") and "Install" not in text


def test_the_docker_context_is_honoured(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "home" / ".docker"
    meta = config / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
    meta.mkdir(parents=True)
    with listening() as host:
        content = {"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
        (meta / "meta.json").write_text(json.dumps(content))
        (config / "config.json").write_text(json.dumps({"currentContext": "mine"}))
        engine = engines.find(state, environ={})
        assert (engine.host, engine.source) == (host, "docker context")
        (config / "config.json").write_text("{}")
        assert engines.find(state, environ={"DOCKER_CONTEXT": "mine"}).host == host
    pipe = "npipe:////./pipe/dockerDesktopLinuxEngine"
    (meta / "meta.json").write_text(json.dumps(content).replace(host, pipe))
    with monkeypatch.context() as windows:
        windows.setattr(sys, "platform", "win32")
        windows.delattr(os, "getuid")
        found = [*engines.places({"DOCKER_CONTEXT": "mine"}, own=None)]
    assert found == [(pipe, "docker context")]
    (meta / "meta.json").write_text("{")
    with pytest.raises(EngineNotFound, match=r"context mine.*docker context ls"):
        engines.find(state, environ={"DOCKER_CONTEXT": "mine"})


def test_the_order_of_places(tmp_path: Path) -> None:
    def found(*, own: str | None = None, **environ: str) -> dict[str, str]:
        return dict(engines.places(environ, own=own))

    own = "unix:///lab/docker.sock"
    assert found(DOCKER_HOST="tcp://x:1", own=own) == {"tcp://x:1": "DOCKER_HOST"}
    assert found(DOCKER_HOST=own, own=own) == found(own=own) == {own: "the lab's own"}
    assert next(iter(found().values())) == "docker context"
    # Some engines name themselves nowhere.
    for path in ("run/docker.sock", "run/podman/podman.sock"):
        assert f"unix://{tmp_path / path}" not in found(XDG_RUNTIME_DIR=f"{tmp_path}/run")
        with socket_at(tmp_path / path) as host:
            assert found(XDG_RUNTIME_DIR=f"{tmp_path}/run")[host] == "socket"


@pytest.mark.parametrize("refusal", [{"message": "no room"}, {"errorDetail": "no room"}])
def test_errors_of_the_sdk_become_the_labs(state: State, refusal: dict[str, Any]) -> None:
    with listening(refusal=refusal) as host:
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


@pytest.mark.parametrize("lab_id", ["00000000", "0123abcd", "ffffffff"])
def test_a_block_is_kept_while_nothing_else_has_it(
    lab_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(lab_id: str, used: str) -> ipaddress.IPv4Network:
        link = SimpleNamespace(family=socket.AF_INET, address=used)
        monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [link]})
        return own_engine.choose(lab_id).block

    mine = block(lab_id, "127.0.0.1")
    assert mine == block(lab_id, "192.168.0.7") != block("00000001", "127.0.0.1")
    other = block(lab_id, str(mine[300]))
    assert mine.is_private and other.is_private and not mine.overlaps(other)


def test_sockets_have_short_paths_wherever_the_state_is(tmp_path: Path) -> None:
    state = State.open(tmp_path.joinpath(*["a-rather-long-name"] * 10))
    settings = own_engine.settings(state, own_engine.choose(state.lab_id))
    # A socket's path ends at 107 bytes, also that of the longest inside.
    assert len(os.fsencode(f"{settings['exec-root']}/containerd/containerd.sock.ttrpc")) <= 107


@pytest.mark.parametrize(
    ("there", "more"),
    [
        ((), {"docker.io", "docker-cli"}),
        (("docker",), {"docker.io"}),
        # An engine from elsewhere is not replaced.
        (("dockerd", "docker"), set()),
    ],
)
def test_the_packages_to_install(
    there: tuple[str, ...], more: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root, "program", lambda name: name if name in there else None)
    monkeypatch.setattr(root, "install_packages", install := Mock())
    own_engine.install()
    always = {"iproute2", "mount", "procps", "docker-buildx", "iptables", "ca-certificates"}
    assert {*install.call_args.args[0], *install.call_args.kwargs["welcome"]} == always | more
