"""Engines: found and read, and why one does not answer; what the lab's own would be told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import docker
import pytest
from registries import Reply, Seen, serving, told

from labapp import doctor
from labapp.errors import EngineLost, EngineNotFound, PushError
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.state import State

# GET /version of engines that no recording is of, less what nobody reads: one that is older than
# all that the lab knows, one that serves no old API, and two that are yet to come.
VERSIONS = {
    "old": {"Version": "1.12.6", "ApiVersion": "1.24", "MinAPIVersion": "1.12"},
    "29.0": {"Version": "29.0.1", "ApiVersion": "1.52", "MinAPIVersion": "1.44"},
    "next": {"Version": "35.0.0", "ApiVersion": "1.99", "MinAPIVersion": "1.44"},
    "later": {"Version": "40.0.0", "ApiVersion": "1.110", "MinAPIVersion": "1.100"},
}
CLASSIC = {"DriverStatus": [["Backing Filesystem", "extfs"]]}


def number(version: str) -> int:
    return int(version.partition(".")[2])


@contextlib.contextmanager
def listening(engine: str = "29.0", refusal: dict[str, Any] | None = None) -> Iterator[str]:
    """Answer the first questions as an engine does: in the versions of the API that it serves."""
    about = {"Os": "linux", "Arch": "arm64", **VERSIONS[engine]}
    known = {"version": about, "info": CLASSIC}
    oldest, newest = (number(about[each]) for each in ("MinAPIVersion", "ApiVersion"))

    def answer(seen: Seen) -> Reply:
        reply = content_of(seen)
        return replace(reply, headers={**reply.headers, "Connection": "close"})

    def content_of(seen: Seen) -> Reply:
        asked = re.fullmatch(r"(?:/v(\d+\.\d+))?/(\w+)[^?]*(?:\?.*)?", seen.path)
        assert asked is not None
        if asked[1] and not oldest <= number(asked[1]) <= newest:
            return told({"message": f"client version {asked[1]} is too old or too new"}, 400)
        if asked[2] == "_ping":
            return Reply(body=b"OK")
        return told(known[asked[2]]) if asked[2] in known else told(refusal, 500)

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


@pytest.mark.parametrize("engine", VERSIONS)
def test_what_is_read_from_an_engine(
    state: State, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that recordings are of are in ``test_builds``."""
    about = VERSIONS[engine]
    # No proxy stands before an engine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with listening(engine) as host:
        found = engines.find(state, environ={"DOCKER_HOST": host})
        assert (found.client.info(), found.is_alive()) == (CLASSIC, True)
    assert not found.is_alive()
    oldest, newest = (number(about[each]) for each in ("MinAPIVersion", "ApiVersion"))
    assert oldest <= number(found.client.api.api_version) <= newest
    # Else a build in a terminal takes a BuildKit in a container, which keeps the image to itself.
    own = {"DOCKER_HOST": host, "BUILDX_BUILDER": "default"}
    assert found.variables == dict.fromkeys(engines.SET_ASIDE, "") | own
    for fact in ("Docker", about["Version"], "linux/arm64", "classic", host, "DOCKER_HOST"):
        assert fact in found.describe()


ABOUT = VERSIONS["29.0"] | {"Os": "linux", "Arch": "arm64"}


@pytest.mark.parametrize(
    ("host", "answer", "cause"),
    [
        ("unix://{folder}/none.sock", None, "No such file"),
        ("unix://{folder}/left.sock", None, "refused"),
        ("tcp://127.0.0.1:1", None, "refused"),
        ("tcp://nosuch.invalid:2375", None, "[Errno -"),
        ("tcp://127.0.0.1:99999", None, "99999"),
        ("nonsense://x", None, "nonsense"),
        ("ssh://me@there", None, "own machine"),
        *(("tcp://{address}", Reply(body=body), "is none") for body in (b"[]", b"<html>", b"")),
        ("tcp://{address}", told(ABOUT | {"ApiVersion": 1.41}), "is none"),
        ("tcp://{address}", told(ABOUT | {"ApiVersion": "new"}), "'new'"),
        ("tcp://{address}", Reply(501), "501"),
        ("tcp://{address}", told({"message": "no, by rule 7"}, 403), "no, by rule 7"),
        ("tcp://{address}", Reply(400, b"an HTTP request to an HTTPS server"), "nor TLS"),
    ],
)
def test_why_an_engine_does_not_answer(
    state: State, tmp_path: Path, host: str, answer: Reply | None, cause: str
) -> None:
    with socket_at(tmp_path / "left.sock"):
        pass
    with serving(answer or Reply()) as served:
        host = host.format(folder=tmp_path, address=served.address)
        for look in (engines.find, engines.start):
            with pytest.raises(EngineNotFound) as caught:
                look(state, environ={"DOCKER_HOST": host})
            # Who names an engine wants that one: no other is looked for, and none is installed.
            [said] = str(caught.value).splitlines()[1:]
            assert f"DOCKER_HOST '{host}'" in said and cause in said


def test_an_engine_that_is_out_of_reach(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    real = docker.DockerClient
    monkeypatch.setattr(docker, "DockerClient", lambda **its: real(**{**its, "timeout": 0.2}))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EngineNotFound, match=f"'{host}'.*timed out"):
            engines.find(state, environ={"DOCKER_HOST": host})


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
    ("content", "said"),
    [("{broken", ""), ("[]", "list"), ('{"proxies": null}', "None"), ('{"auths": 1}', "int")],
)
def test_settings_of_docker_that_are_damaged(
    state: State, tmp_path: Path, content: str, said: str
) -> None:
    """As with the docker command, what is not even JSON counts as no settings."""
    file = tmp_path / "home" / ".docker" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    expected = pytest.raises(EngineNotFound, match=f"'{file}'.*{said}.*Mend that file")
    with listening() as host, expected if said else contextlib.nullcontext():
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
