"""JupyterLab on the notebooks: started once for a lab, found again, ended cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from labapp import feedback
from labapp.errors import LabError
from labapp.machine.engine import Engine
from labapp.machine.ports import ask, wait_until
from labapp.state import REPOSITORY, State

SERVICE_PREFIX = "JUPYTERHUB_SERVICE_PREFIX"
"""The variable by which a server knows that a hub runs it, and its path there."""

OVERRIDES = {
    # No question about news, and no look for them on the internet.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are in the page, so that the browser's search finds them.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "defer"},
}
"""What JupyterLab's own defaults are replaced by; a learner's own settings come first."""


@dataclass(frozen=True)
class Server:
    """A JupyterLab that runs; its address has the token."""

    url: str = field(repr=False)
    pid: int


def find(state: State) -> Server | None:
    """Return the JupyterLab of this lab if one runs.

    Source: Jupyter Server's runtime files ``jpserver-<pid>.json``. Its own reader of them takes
    three seconds to import, and believes a file whose process is by now another one.
    """
    for file in _log(state).parent.glob("jpserver-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(file.read_text(encoding="utf-8"))
            headers = {"Authorization": f"token {found['token']}"}
            if ask(f"{found['url']}api/status", seconds=20, headers=headers).ok:
                return Server(f"{found['url']}lab?token={found['token']}", found["pid"])
    return None


def serve(
    state: State,
    engine: Engine,
    *,
    folder: Path,
    chapter: str = "",
    port: int | None = None,
    browser: bool = True,
) -> None:
    """Serve a folder's notebooks until Ctrl-C; when JupyterLab runs already, only tell where.

    The address that is told, and opened in the browser, is that of a ``chapter``'s file.
    """
    with contextlib.ExitStack() as ending:
        with state.lock("jupyter"):
            server = find(state)
            if server is not None:
                feedback.say("JupyterLab is running already:")
                _show(server, chapter, browser=browser)
                return
            # A polite kill and a closed terminal count as Ctrl-C. What is ignored stays so: that
            # is how 'nohup' keeps a program.
            for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, signal.default_int_handler)
            feedback.say("Starting JupyterLab.")
            process = _launch(state, engine, folder=folder, port=port)
            ending.callback(_end, process.pid)
            wait_until(lambda: process.poll() is not None or find(state), seconds=90)
            server = find(state)
            if server is None:
                raise LabError(
                    f"starting JupyterLab: it did not answer; the end of '{_log(state)}' says why. "
                    "If its port is taken, name another with --port."
                )
        with contextlib.suppress(KeyboardInterrupt):
            feedback.say("JupyterLab is ready:")
            _show(server, chapter, browser=browser)
            feedback.say("Ctrl-C ends it; the lab's engine and registry then run on.")
            if status := process.wait():
                raise LabError(
                    f"serving the notebooks: JupyterLab ended with {status}. Its log: "
                    f"'{_log(state)}'. 'python3 -m labapp start' starts it again."
                )
    feedback.say("JupyterLab has ended. 'python3 -m labapp stop' ends engine and registry.")


def stop(state: State) -> None:
    """End this lab's JupyterLab, with its kernels, if it runs."""
    server = find(state)
    if server is not None:
        feedback.say("Ending JupyterLab.")
        _end(server.pid)


def environment(state: State, engine: Engine) -> dict[str, str]:
    """Return the environment of JupyterLab, its kernels and its terminals."""
    found = engine.environment()
    programs = str(Path(sys.executable).parent)
    found["PATH"] = os.pathsep.join([programs, found.get("PATH", os.defpath)])
    found["LABAPP_STATE"] = str(state.folder)
    found["JUPYTER_RUNTIME_DIR"] = str(_log(state).parent)
    # Else a kernel of the same name that the learner once installed would come first.
    found["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Else, on Windows, cells would read and write files in the code page of the country.
    found["PYTHONUTF8"] = "1"
    if any(found.get(proxy) for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        # So that 'curl http://localhost:…' in a terminal tab reaches the registry.
        for name in ("NO_PROXY", "no_proxy"):
            found[name] = ",".join(filter(None, [found.get(name), "localhost", "127.0.0.1"]))
    # In a conda environment, nothing else tells where the package is.
    paths = [str(REPOSITORY), found.get("PYTHONPATH")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


def _launch(
    state: State, engine: Engine, *, folder: Path, port: int | None
) -> subprocess.Popen[bytes]:
    overrides = state.path("jupyter", "settings", "overrides.json")
    overrides.write_text(json.dumps(OVERRIDES), encoding="utf-8")
    command = [
        # From the folder where it runs, it imports nothing.
        *(sys.executable, "-P", "-m", "jupyterlab", "--no-browser", "--allow-root"),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder}",
        # A password in the learner's own settings would refuse the token.
        "--PasswordIdentityProvider.hashed_password=",
        f"--LabApp.app_settings_dir={overrides.parent}",
        # In the window is what belongs to the lab, whatever else adds menus to JupyterLab here.
        "--LabApp.labextensions_path=[]",
        # Without one that was asked for, it takes the first free one from 8888.
        *([f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port else []),
    ]
    with _log(state).open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,  # where its terminals open
            # In no command line, which others on this machine could read.
            env={**environment(state, engine), "JUPYTER_TOKEN": secrets.token_hex(24)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C comes to this process, which then ends the server in order.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def _end(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        for left in psutil.wait_procs([process], timeout=20)[1]:
            left.kill()


def _show(server: Server, chapter: str, *, browser: bool) -> None:
    url = server.url.replace("/lab?", f"/lab/tree/{quote(chapter)}?") if chapter else server.url
    feedback.say(f"  {url}")
    if chapter:
        feedback.say(f"That is '{chapter}', where you go on. Shift+Enter runs a cell.")
    # Without a screen, Python would open a text browser in this terminal.
    names = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
    screen = sys.platform in {"darwin", "win32"} or any(map(os.environ.get, names))
    if browser and not (screen and webbrowser.open(url)):
        feedback.say("Open this address in a browser.")


def _log(state: State) -> Path:
    return state.path("jupyter", "jupyter.log")
