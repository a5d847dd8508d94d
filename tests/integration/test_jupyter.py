"""JupyterLab: started, found again, ended, in a lab of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from labapp.errors import LabError
from labapp.feedback import QuietFeedback
from labapp.machine import jupyter
from labapp.machine.engine import Engine
from labapp.machine.ports import free_port
from labapp.state import State

CODE = """
import signal, sys
from pathlib import Path
from labapp.machine import engine, jupyter
from labapp.state import State
# A shell without job control starts its background jobs with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
state = State.open()
folder = Path(sys.argv[1])
jupyter.serve(state, engine.find(state), folder=folder, chapter="00 a.ipynb", browser=False)
"""


@pytest.fixture
def own(tmp_path: Path, told: QuietFeedback) -> Iterator[State]:
    """A lab whose JupyterLab is ended whatever happens."""
    state = State.open(tmp_path / "state")
    yield state
    jupyter.stop(state)


@contextlib.contextmanager
def serving(state: State, engine: Engine) -> Iterator[subprocess.Popen[str]]:
    variables = {**os.environ, "LABAPP_STATE": str(state.folder), "DOCKER_HOST": engine.host}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(state.folder)],
        env={**variables, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    said = ""
    for line in process.stdout or ():
        said += line
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError(said)


def test_a_second_start_tells_where_it_is_and_a_stop_ends_it_when_its_starter_was_killed(
    own: State, engine: Engine
) -> None:
    # What a crash left is not believed.
    content = f'{{"url": "http://127.0.0.1:{free_port()}/", "token": "x", "pid": {os.getpid()}}}'
    own.path("jupyter", "jpserver-1.json").write_text(content)
    own.path("jupyter", "jpserver-2.json").write_text("{")
    assert jupyter.find(own) is None
    with serving(own, engine) as first:
        url = address(first)
        at = r"(http://127\.0\.0\.1:\d+/lab)/tree/00%20a\.ipynb\?token=([0-9a-f]{48})"
        bare, token = re.fullmatch(at, url).groups()  # type: ignore[union-attr]
        # The tests have nbgrader installed, which would add a menu.
        window = requests.get(f"{bare}?token={token}", timeout=10)
        assert window.status_code == 200 and '"federated_extensions": []' in window.text
        settings = f"{bare}/api/settings/@jupyterlab/notebook-extension:tracker?token={token}"
        found = requests.get(settings, timeout=10).json()
        assert found["schema"]["properties"]["windowingMode"]["default"] == "defer"
        # The token is asked for, and stands in no command line that others could read.
        assert "/login" in requests.get(bare, timeout=10).url
        server = jupyter.find(own)
        assert server is not None and server.url == f"{bare}?token={token}"
        # Its terminals open there.
        assert psutil.Process(server.pid).cwd() == str(own.folder)
        assert token not in " ".join(psutil.Process(server.pid).cmdline())
        with serving(own, engine) as second:
            assert (address(second), second.wait(timeout=30)) == (url, 0)
        first.kill()
        first.wait()
    assert jupyter.find(own) == server
    jupyter.stop(own)
    assert jupyter.find(own) is None
    assert not psutil.pid_exists(server.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_ctrl_c(own: State, engine: Engine, number: signal.Signals) -> None:
    with serving(own, engine) as first:
        address(first)
        first.send_signal(number)
        assert first.wait(timeout=30) == 0
    assert jupyter.find(own) is None


def test_a_port_that_is_taken_is_told(own: State, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=r"jupyter\.log.*--port"):
            jupyter.serve(own, engine, folder=own.folder, port=port, browser=False)
    assert jupyter.find(own) is None


def test_terminals_ask_no_proxy_for_the_registry(
    own: State, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    found = jupyter.environment(own, engine)
    assert found["NO_PROXY"] == "inside.example,localhost,127.0.0.1"
