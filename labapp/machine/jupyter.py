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
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path

import requests

from labapp import feedback
from labapp.errors import LabError
from labapp.machine.engine import Engine
from labapp.machine.waiting import wait_until
from labapp.state import State

START_SECONDS = 90.0
STOP_SECONDS = 20.0

OVERRIDES = {
    # No question about news, and no look for them on the internet.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are in the page, so that the browser's search finds them.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "defer"},
}
"""What JupyterLab's own defaults are replaced by; a learner's own settings come first."""

SETTINGS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    # A password in the learner's own settings would refuse the token.
    "--PasswordIdentityProvider.hashed_password=",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


@dataclass(frozen=True)
class Server:
    """A JupyterLab that runs."""

    address: str
    token: str = field(repr=False)
    pid: int

    @property
    def url(self) -> str:
        """The address to open in a browser, token included."""
        return f"{self.address}lab?token={self.token}"

    def does(self, method: str, path: str) -> bool:
        """Ask the server to do something; tell whether it did."""
        with requests.Session() as session, contextlib.suppress(requests.RequestException):
            session.trust_env = False  # It is on this machine: no proxy, and no password file.
            session.headers["Authorization"] = f"token {self.token}"
            return session.request(method, self.address + path, timeout=STOP_SECONDS).ok
        return False


def find(state: State) -> Server | None:
    """Return the JupyterLab of this lab if one runs.

    Source: Jupyter Server's runtime files ``jpserver-<pid>.json``. Its own reader of them takes
    three seconds to import, and believes a file whose process is by now another one.
    """
    for file in _log(state).parent.glob("jpserver-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(file.read_text(encoding="utf-8"))
            server = Server(address=found["url"], token=found["token"], pid=found["pid"])
            if server.does("GET", "api/status"):
                return server
    return None


def serve(
    state: State, engine: Engine, *, folder: Path, port: int | None = None, browser: bool = True
) -> None:
    """Serve a folder's notebooks until Ctrl-C; when JupyterLab runs already, only tell where."""
    with state.lock("jupyter", waiting=lambda: feedback.say("Waiting for another start.")):
        server = find(state)
        if server is not None:
            feedback.say("JupyterLab is running already:")
            _show(server, browser=browser)
            return
        # A polite kill and a closed terminal count as Ctrl-C. What is ignored stays so: that is
        # how 'nohup' keeps a program.
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler)
        process = _launch(state, engine, folder=folder, port=port)
        try:
            server = _wait_for(state, process)
        except BaseException:
            _end(process)
            raise
    feedback.say("JupyterLab is ready:")
    try:
        _show(server, browser=browser)
        feedback.say("Ctrl-C ends it; the lab's engine and registry then run on.")
        status = process.wait()
    except KeyboardInterrupt:
        _end(process)
        feedback.say("JupyterLab has ended. 'python3 -m labapp stop' ends engine and registry.")
        return
    if status != 0:
        raise LabError(
            f"serving the notebooks: JupyterLab ended with {status}. Its log: '{_log(state)}'. "
            "'python3 -m labapp start' starts it again."
        )
    feedback.say("JupyterLab was shut down.")


def stop(state: State) -> None:
    """End this lab's JupyterLab, with its kernels, if it runs."""
    import psutil

    server = find(state)
    if server is not None:
        feedback.say("Ending JupyterLab.")
        server.does("POST", "api/shutdown")
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(server.pid)
            for left in psutil.wait_procs([process], timeout=STOP_SECONDS)[1]:
                left.kill()


def environment(state: State, engine: Engine) -> dict[str, str]:
    """Return the environment of JupyterLab, its kernels and its terminals."""
    found = engine.environment()
    programs = str(Path(sys.executable).parent)
    found["PATH"] = os.pathsep.join([programs, found.get("PATH", os.defpath)])
    found["LABAPP_STATE"] = str(state.folder)
    found["JUPYTER_RUNTIME_DIR"] = str(_log(state).parent)
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
        clone = str(Path(__file__).parents[2])
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [clone, found.get("PYTHONPATH")]))
    return found


def _launch(
    state: State, engine: Engine, *, folder: Path, port: int | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jupyterlab", *SETTINGS, f"--ServerApp.root_dir={folder}"]
    # Without one that was asked for, it takes the first free one from 8888.
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port else []
    overrides = Path(sys.prefix, "share", "jupyter", "lab", "settings", "overrides.json")
    if not overrides.exists():
        with contextlib.suppress(OSError):
            overrides.parent.mkdir(parents=True, exist_ok=True)
            overrides.write_text(json.dumps(OVERRIDES, indent=2), encoding="utf-8")
    with _log(state).open("wb") as output:
        return subprocess.Popen(
            command,
            # In no command line, which others on this machine could read.
            env={**environment(state, engine), "JUPYTER_TOKEN": secrets.token_hex(24)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C comes to this process, which then ends the server in order.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def _wait_for(state: State, process: subprocess.Popen[bytes]) -> Server:
    feedback.say("Starting JupyterLab.")
    wait_until(lambda: process.poll() is not None or find(state), seconds=START_SECONDS)
    if server := find(state):
        return server
    lines = _log(state).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n  ".join(lines[-8:])
    raise LabError(
        f"starting JupyterLab: it did not answer. The end of '{_log(state)}':\n  {tail}\n"
        "If its port is taken, name another with --port."
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _show(server: Server, *, browser: bool) -> None:
    feedback.say(f"  {server.url}")
    # Without a screen, Python would open a text browser in this terminal.
    names = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
    screen = sys.platform in {"darwin", "win32"} or any(map(os.environ.get, names))
    if browser and not (screen and webbrowser.open(server.url)):
        feedback.say("Open this address in a browser.")


def _log(state: State) -> Path:
    return state.path("jupyter", "jupyter.log")
