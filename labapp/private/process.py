"""The token service's process: started apart from the kernel, found again, ended."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from labapp.errors import RegistryError
from labapp.state import State
from labapp.system.ports import free_port, is_listening

PROGRAM = "labapp.private.service"
"""The module that the process runs."""

FOLDER = "private"
"""The part of the state folder that is the private registry's."""

SETTINGS = "private/settings"
"""What it is told: ``host``, ``port``, ``tls``, and how many ``seconds`` tokens are valid."""

RUNNING = "private/service"
"""What it tells of itself once it listens: ``pid``, ``port``, ``nonce`` and ``certificates``."""

START_SECONDS = 30.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class TokenService:
    """A token service that runs: its process, and the address that gives tokens."""

    pid: int
    realm: str


def find(state: State) -> TokenService | None:
    """Return the token service of this lab if it runs and answers."""
    settings, told = state.read(SETTINGS), state.read(RUNNING)
    if not settings or _process(state) is None:
        return None
    scheme = "https" if settings.get("tls") else "http"
    url = f"{scheme}://{settings.get('host')}:{told.get('port')}"
    try:
        with requests.Session() as session:
            session.trust_env = False  # an address of this machine: no proxy
            session.verify = str(state.folder / FOLDER / "authority.pem")
            answer = session.get(f"{url}/alive", timeout=ANSWER_SECONDS)
            if answer.json().get("nonce") == told.get("nonce"):
                return TokenService(int(told["pid"]), f"{url}/token")
    except (requests.RequestException, ValueError, OSError):
        pass
    return None


def start(state: State, *, host: str, tls: bool) -> TokenService:
    """Make the token service run and answer; one that does already is left alone.

    Args:
        state: the lab's own files; certificates and keys are there.
        host: the address of this machine to listen on.
        tls: whether it speaks HTTPS.

    Raises:
        RegistryError: it does not start.
    """
    settings = state.read(SETTINGS)
    same = (settings.get("host"), settings.get("tls")) == (host, tls)
    new = state.read(RUNNING).get("certificates") != certificates(state)
    if same and not new and (found := find(state)):
        return found
    stop(state)
    port = settings.get("port")
    if not same or not isinstance(port, int) or is_listening(port, host=host):
        port = free_port(host=host)
    state.write(SETTINGS, {**settings, "host": host, "tls": tls, "port": port})
    log = state.path("private", "service.log")
    detached = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    detached |= getattr(subprocess, "CREATE_NO_WINDOW", 0)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, str(state.folder)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # It goes on when the kernel ends, and Ctrl-C in a terminal is not for it.
            start_new_session=True,
            creationflags=detached,
        )
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if state.read(RUNNING).get("pid") == process.pid and (found := find(state)):
            return found
        time.sleep(0.05)
    process.kill()
    process.wait()
    tail = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:])
    raise RegistryError(
        f"starting the token service at '{host}:{port}': it does not answer. The end of '{log}':"
        f"\n  {tail}\nStart the private registry again."
    )


def stop(state: State) -> bool:
    """End the token service; return whether it ran."""
    process = _process(state)
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
    return True


def certificates(state: State) -> str:
    """Return the digest of the certificates in the state folder, to tell when they are new."""
    folder = state.folder / FOLDER
    both = b"".join((folder / name).read_bytes() for name in ("server.pem", "tokens.pem"))
    return hashlib.sha256(both).hexdigest()


def _process(state: State) -> psutil.Process | None:
    """Return the process that was started last, if it is alive and no other with its number."""
    pid = state.read(RUNNING).get("pid")
    if not isinstance(pid, int):
        return None
    try:
        process = psutil.Process(pid)
        line = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    mine = PROGRAM in line and Path(line[-1]) == state.folder
    return process if mine else None
