"""Acting as root on Linux: whether this process can, and commands that do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21


def why_not_root() -> str | None:
    """Return why this process can't act as root, or None when it can."""
    if os.geteuid() == 0:
        return None
    if shutil.which("sudo") is not None:
        answer = subprocess.run(["sudo", "-n", "true"], capture_output=True)
        if answer.returncode == 0:
            return None
    return "that needs root, or a sudo that asks no password."


def why_not_privileged() -> str | None:
    """Return why root can't mount or make networks here, or None when it can.

    Source: capabilities(7); ``CapEff`` in proc_pid_status(5).
    """
    if os.geteuid() != 0:
        return None
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    if held >> CAP_SYS_ADMIN & held >> CAP_NET_ADMIN & 1:
        return None
    return "root may not mount or make networks here: a container without '--privileged'."


def search_path() -> str:
    """Return PATH with the folders of system programs, which an ordinary user's lacks."""
    folders = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])


def program(name: str) -> str | None:
    """Return the path of a program, system programs included; None when there is none."""
    return shutil.which(name, path=search_path())


def as_root(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs another one as root."""
    return [*argv] if os.geteuid() == 0 else ["sudo", "-n", *argv]


def run_as_root(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as root and return what it printed; a missing program is exit code 127."""
    try:
        return subprocess.run(
            as_root(argv),
            env={**os.environ, "PATH": search_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")
