"""Linux processes and mounts that belong to one program's files: found, ended, unmounted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from labapp.errors import EngineError
from labapp.system.privileges import run_as_root

END_SECONDS = 45.0
"""How long a process may take to end after it was asked to."""


def arguments(pid: int) -> list[str]:
    """Return a process's command line; empty when it ended, or waits to be collected."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").rstrip("\0").split("\0") if line else []


def running(program: str, argument: str) -> list[int]:
    """Return the processes that run a program with a certain argument.

    Args:
        program: the beginning of the program's file name.
        argument: one of its arguments, whole.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            line = arguments(int(entry.name))
            if line and Path(line[0]).name.startswith(program) and argument in line[1:]:
                found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that still run."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.extend(int(number) for number in path.read_text(encoding="ascii").split())
    return found


def end(pids: Iterable[int], *, at_once: bool = False) -> None:
    """End processes: politely, then, when they don't end in time, by force.

    Args:
        pids: the processes' numbers.
        at_once: leave out the polite part.

    Raises:
        EngineError: one does not end.
    """
    left = list(pids)
    for number in [signal.SIGKILL] if at_once else [signal.SIGTERM, signal.SIGKILL]:
        _signal(left, number)
        deadline = time.monotonic() + END_SECONDS
        while left and time.monotonic() < deadline:
            left = [pid for pid in left if arguments(pid)]
            time.sleep(0.02)
    if left:
        raise EngineError(
            f"ending the processes {left}: they run on after 'kill -9'. Restart this machine."
        )


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            run_as_root(["kill", f"-{number.value}", str(pid)])


def unmount(folders: Collection[Path]) -> None:
    """Unmount everything that is mounted on folders or inside them.

    Source: proc_pid_mountinfo(5), the fifth field.
    """
    inside = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        escaped = line.split(" ")[4]
        mount = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), escaped))
        if any(mount.is_relative_to(folder) for folder in folders):
            inside.append(str(mount))
    if inside:
        run_as_root(["umount", "--lazy", *reversed(inside)])
