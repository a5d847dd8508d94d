"""The lab's own engine on Debian and Ubuntu: started, found again, mended and stopped.

Everything it has lies in ``engine/`` under the lab's state folder: its data, its socket, its pid
file, its settings and its log. It shares with another engine on this machine nothing but the
kernel: its bridge, its addresses and its containerd namespace are its own.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import time
from pathlib import Path
from typing import Any

from labapp.engine import own_network
from labapp.errors import EngineError
from labapp.feedback import Feedback
from labapp.state import State
from labapp.system import apt_packages, processes
from labapp.system.privileges import (
    as_root,
    program,
    run_as_root,
    search_path,
    why_not_privileged,
    why_not_root,
)

RECORD = "own_engine"
"""The state's file about this engine: its addresses, and whether it has run."""

LONGEST_FOLDER = 69
"""How long the path of the run folder may be, in bytes: a socket's path ends at 107, and the
longest one inside is ``exec/containerd/containerd.sock.ttrpc``."""

CONTAINERD_PID = "exec/containerd/containerd.pid"

START_SECONDS = 60.0

KEPT_SETTINGS = ("registry-mirrors", "insecure-registries", "proxies", "dns", "mtu")
"""What the administrator set for the system's engine and holds for this machine's network."""


def can_start() -> str | None:
    """Return why the lab can't start an engine on this machine, or None when it can."""
    if not Path("/proc/self/status").exists():
        return "an engine of its own runs on Linux only."
    if not is_installed():
        reason = apt_packages.why_not()
        if reason is not None:
            return reason
    return why_not_root() or why_not_privileged()


def is_installed() -> bool:
    """Tell whether the programs that an engine needs are on this machine."""
    return all(program(name) for name in ("dockerd", "ip"))


def socket(state: State) -> Path:
    """Return the path of the engine's socket, whether or not it runs."""
    return run_folder(state) / "docker.sock"


def host(state: State) -> str | None:
    """Return the engine's address if this lab has ever started one, else None."""
    return f"unix://{socket(state)}" if state.read(RECORD).get("started") else None


def is_running(state: State) -> bool:
    """Tell whether the engine runs and answers."""
    return bool(_running(state)) and _answers(socket(state))


def log(state: State) -> Path:
    """Return the path of the engine's log."""
    return state.path("engine", "engine.log")


def start(state: State, *, feedback: Feedback) -> str:
    """Start the engine, or find it running.

    Args:
        state: the lab's own files.
        feedback: where progress is told.

    Returns:
        Its address, as ``DOCKER_HOST`` names it.

    Raises:
        EngineError: it could not be started; the end of its log is told.
    """
    with state.lock("engine", waiting=lambda: feedback.say("Waiting for another start.")):
        if not is_running(state):
            _clear(state)
            record = state.read(RECORD)
            network = own_network.choose(state.lab_id, before=record.get("block"))
            state.write(RECORD, {**record, "block": str(network.block)})
            problem = network.up()
            if problem is not None:
                feedback.say(f"Containers will have no way to the internet: {problem}")
            _launch(state, network, feedback=feedback)
            state.write(RECORD, {"block": str(network.block), "started": True})
    return f"unix://{socket(state)}"


def stop(state: State, *, feedback: Feedback) -> None:
    """Stop the engine with its containers, and remove its bridge; its data stay.

    Args:
        state: the lab's own files.
        feedback: where progress is told.

    Raises:
        EngineError: a process of it does not end.
    """
    with state.lock("engine", waiting=lambda: feedback.say("Waiting for another start.")):
        if _running(state):
            feedback.say("Stopping the lab's own engine.")
        _clear(state)
        block = state.read(RECORD).get("block")
        if block:
            own_network.choose(state.lab_id, before=block).down()


def remove(state: State, *, feedback: Feedback) -> None:
    """Stop the engine and delete all its data: every image, container and volume in it."""
    stop(state, feedback=feedback)
    for folder in {run_folder(state), _data(state).parent}:
        run_as_root(["rm", "-rf", "--one-file-system", str(folder)])
    state.path(f"{RECORD}.json").unlink(missing_ok=True)


def settings(state: State, network: own_network.Network) -> dict[str, Any]:
    """Return the engine's settings file, as dockerd reads it.

    Source: dockerd's reference, "Daemon configuration file".
    """
    run = run_folder(state)
    return {
        **_system_settings(),
        "hosts": [f"unix://{socket(state)}"],
        "group": str(os.getgid()),
        "data-root": str(_data(state)),
        "exec-root": str(run / "exec"),
        "pidfile": str(run / "docker.pid"),
        "bridge": network.bridge,
        "default-address-pools": [{"base": network.pool, "size": 24}],
        "iptables": False,
        "ip6tables": False,
        "shutdown-timeout": 10,
    }


def _launch(state: State, network: own_network.Network, *, feedback: Feedback) -> None:
    dockerd = program("dockerd")
    if dockerd is None:
        raise EngineError("starting the lab's own engine: there is no 'dockerd' on this machine.")
    run = run_folder(state)
    if not run.exists():
        # Only the learner and root may reach the engine through it.
        run_as_root(["install", "-d", "-m", "0700", "-o", str(os.getuid()), str(run)])
    config = _config(state)
    config.write_text(json.dumps(settings(state, network), indent=2) + "\n", encoding="utf-8")
    proxies = [
        f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")
    ]
    # These two have no working name in the settings file of every version.
    options = [
        f"--config-file={config}",
        f"--containerd-namespace={network.name}",
        f"--containerd-plugins-namespace={network.name}-plugins",
    ]
    command = ["env", f"PATH={search_path()}", *proxies, dockerd, *options]
    feedback.command(as_root(["dockerd", *options]))
    with log(state).open("wb") as output:
        process = subprocess.Popen(
            as_root(command),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with feedback.bars("Starting the lab's own engine", unit="steps") as bars:
        bars.update("engine", 0, None)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(socket(state)):
            if process.poll() is not None or time.monotonic() > deadline:
                _clear(state)
                network.down()
                raise EngineError(_why_it_failed(state, process.returncode))
            time.sleep(0.1)


def _why_it_failed(state: State, status: int | None) -> str:
    how = "it did not answer in time" if status is None else f"dockerd ended with {status}"
    lines = log(state).read_text(encoding="utf-8", errors="replace").splitlines()
    serious = [line for line in lines if "level=info" not in line and "level=debug" not in line]
    tail = "\n  ".join((serious or lines)[-8:])
    return (
        f"starting the lab's own engine: {how}. The end of '{log(state)}':\n  {tail}\n"
        "Mend what it names, then start the lab again; or name another engine in DOCKER_HOST."
    )


def _clear(state: State) -> None:
    """End every process of this engine, and remove what a crash leaves: mounts, stale files."""
    run = run_folder(state)
    processes.end(_running(state))
    # dockerd takes its containers and its containerd with it, unless it was killed.
    for shim in processes.running("containerd-shim", f"labapp-{state.lab_id}"):
        processes.end([*processes.children(shim), shim], at_once=True)
    processes.end(processes.running("containerd", str(run / "exec/containerd/containerd.toml")))
    processes.unmount([run / "exec", _data(state)])
    # A pid file that a crash left names another process after a reboot.
    stale = [str(run / name) for name in ("docker.pid", "docker.sock", CONTAINERD_PID)]
    if any(Path(name).exists() for name in stale):
        run_as_root(["rm", "-f", *stale])


def _running(state: State) -> list[int]:
    """Return the engine's process, found by its settings: the pid file's may be another's."""
    return processes.running("dockerd", f"--config-file={_config(state)}")


def _answers(path: Path) -> bool:
    """Tell whether an engine answers at a socket.

    Source: Docker Engine API, ``GET /_ping``.
    """
    try:
        with sockets.socket(sockets.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def run_folder(state: State) -> Path:
    """Return the folder of socket and pid file: the state's, unless its path is too long."""
    folder = state.folder / "engine"
    if len(os.fsencode(folder)) <= LONGEST_FOLDER:
        return folder
    return Path("/run", f"labapp-{state.lab_id}")


def _data(state: State) -> Path:
    return state.path("engine", "data")


def _config(state: State) -> Path:
    return state.path("engine", "daemon.json")


def _system_settings() -> dict[str, Any]:
    try:
        found = json.loads(Path("/etc/docker/daemon.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in KEPT_SETTINGS if name in found}
