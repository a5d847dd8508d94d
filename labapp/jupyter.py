"""JupyterLab on the notebooks: started once for a lab, found again, ended cleanly."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
import requests

from labapp.engine import Engine
from labapp.errors import LabError
from labapp.feedback import Feedback
from labapp.state import State

FIRST_PORT = 8888
OVERRIDES = {
    # No question about news, and no look for them on the internet.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are in the page, so that the browser's search finds them.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "defer"},
}
"""What JupyterLab's own defaults are replaced by; a learner's own settings come first."""

START_SECONDS = 90.0
STOP_SECONDS = 20.0

SETTINGS = (
    "--no-browser",
    "--ServerApp.ip=127.0.0.1",
    # A password in the learner's own settings would refuse the token.
    "--PasswordIdentityProvider.hashed_password=",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


@dataclass(frozen=True)
class Server:
    """A JupyterLab that runs.

    Attributes:
        address: where it answers, ending in ``/``.
        token: what its visitors must show.
        pid: its process.
    """

    address: str
    token: str = field(repr=False)
    pid: int

    @property
    def url(self) -> str:
        """The address to open in a browser, token included."""
        return f"{self.address}lab?token={self.token}"


def find(state: State) -> Server | None:
    """Return the JupyterLab of this lab if one runs.

    Source: Jupyter Server's runtime files ``jpserver-<pid>.json``, as ``jupyter server list``
    reads them.
    """
    for file in _runtime(state).glob("jpserver-*.json"):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            server = Server(address=found["url"], token=found["token"], pid=found["pid"])
        except (OSError, ValueError, KeyError):
            continue
        # After a crash the file names a process that is gone, or by now another one.
        if psutil.pid_exists(server.pid) and _answers(server):
            return server
    return None


def serve(
    state: State,
    engine: Engine,
    *,
    folder: Path,
    port: int | None = None,
    browser: bool = True,
    feedback: Feedback,
) -> None:
    """Serve notebooks until Ctrl-C; when this lab's JupyterLab runs already, tell where and return.

    Args:
        state: the lab's own files.
        engine: the engine that ``docker`` in a cell or a terminal tab talks to.
        folder: the notebooks.
        port: the port to listen on; by default the first free one from 8888.
        browser: whether to open a browser.
        feedback: where the address is told.

    Raises:
        LabError: JupyterLab does not start, or ended by itself.
    """
    with state.lock("jupyter", waiting=lambda: feedback.say("Waiting for another start.")):
        server = find(state)
        if server is not None:
            feedback.say("JupyterLab is running already:")
            _show(server, browser=browser, feedback=feedback)
            return
        process = _launch(state, engine, folder=folder, port=port)
        with _ended_after(process):
            server = _wait_for(state, process, feedback=feedback)
    feedback.say("JupyterLab is ready:")
    try:
        with _ended_after(process), _interrupted_by_signals():
            _show(server, browser=browser, feedback=feedback)
            feedback.say("Ctrl-C ends it; the lab's engine and registry then run on.")
            status = process.wait()
    except KeyboardInterrupt:
        feedback.say("JupyterLab has ended. 'python3 -m labapp stop' ends engine and registry.")
        return
    if status != 0:
        raise LabError(
            f"serving the notebooks: JupyterLab ended with {status}. Its log: '{_log(state)}'. "
            "'python3 -m labapp start' starts it again."
        )
    feedback.say("JupyterLab was shut down.")


def stop(state: State, *, feedback: Feedback) -> None:
    """End this lab's JupyterLab, with its kernels, if it runs."""
    server = find(state)
    if server is None:
        return
    feedback.say("Ending JupyterLab.")
    with contextlib.suppress(requests.RequestException), _session(server) as session:
        session.post(f"{server.address}api/shutdown", timeout=STOP_SECONDS)
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(server.pid)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()


def environment(state: State, engine: Engine) -> dict[str, str]:
    """Return the environment of JupyterLab, its kernels and its terminals."""
    found = engine.environment()
    programs = str(Path(sys.executable).parent)
    found["PATH"] = os.pathsep.join([programs, found.get("PATH", os.defpath)])
    found["LABAPP_STATE"] = str(state.folder)
    found["JUPYTER_RUNTIME_DIR"] = str(_runtime(state))
    # Else a kernel of the same name that the learner once installed would come first.
    found["JUPYTER_PREFER_ENV_PATH"] = "1"
    for name in ("NO_PROXY", "no_proxy"):
        # So that 'curl http://localhost:…' in a terminal tab reaches the registry.
        if any(found.get(proxy) for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")):
            parts = [part for part in found.get(name, "").split(",") if part]
            found[name] = ",".join(dict.fromkeys([*parts, "localhost", "127.0.0.1"]))
    try:
        importlib.metadata.version("labapp")
    except importlib.metadata.PackageNotFoundError:
        clone = str(Path(__file__).parent.parent)
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [clone, found.get("PYTHONPATH")]))
    return found


def _launch(
    state: State, engine: Engine, *, folder: Path, port: int | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jupyterlab", *SETTINGS, f"--ServerApp.root_dir={folder}"]
    command.append(f"--ServerApp.port={port or FIRST_PORT}")
    if port is not None:
        command.append("--ServerApp.port_retries=0")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    variables = {**environment(state, engine), "JUPYTER_TOKEN": secrets.token_hex(24)}
    overrides = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    if not overrides.exists():
        with contextlib.suppress(OSError):
            overrides.parent.mkdir(parents=True, exist_ok=True)
            overrides.write_text(json.dumps(OVERRIDES, indent=2), encoding="utf-8")
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with _log(state).open("wb") as output:
        # A group of its own: Ctrl-C comes to this process, which then ends the server in order.
        return subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=new_group,
        )


def _wait_for(state: State, process: subprocess.Popen[bytes], *, feedback: Feedback) -> Server:
    with feedback.bars("Starting JupyterLab", unit="steps") as bars:
        bars.update("JupyterLab", 0, None)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            server = find(state)
            if server is not None:
                return server
            time.sleep(0.1)
        lines = _log(state).read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n  ".join(lines[-8:])
        raise LabError(
            f"starting JupyterLab: it did not answer. The end of '{_log(state)}':\n  {tail}\n"
            "If its port is taken, name another with --port."
        )


@contextlib.contextmanager
def _ended_after(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the server when the block is left by an error or an interruption."""
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Treat a closed terminal and a polite kill like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    # What is ignored stays so: that is how 'nohup' keeps a program when its terminal is closed.
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(server: Server, *, browser: bool, feedback: Feedback) -> None:
    feedback.say(f"  {server.url}")
    # Without a screen, Python would open a text browser in this terminal.
    screen = sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
    )
    if browser and not (screen and webbrowser.open(server.url)):
        feedback.say("Open this address in a browser.")


def _answers(server: Server) -> bool:
    try:
        with _session(server) as session:
            return session.get(f"{server.address}api/status", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _session(server: Server) -> requests.Session:
    session = requests.Session()
    # The server is on this machine: no proxy, and no password file.
    session.trust_env = False
    session.headers["Authorization"] = f"token {server.token}"
    return session


def _runtime(state: State) -> Path:
    return state.path("jupyter", "log").parent


def _log(state: State) -> Path:
    return state.path("jupyter", "jupyter.log")
