"""Packages of a Debian or Ubuntu system: which are there, and the installation of those missing."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from labapp.errors import EngineError
from labapp.feedback import Bars, Feedback
from labapp.system.privileges import as_root, why_not_root

LISTS = Path("/var/lib/apt/lists")
"""Where apt keeps what the package indexes say."""

STALE_SECONDS = 24 * 3600
"""After this long, apt's lists name packages that the mirrors may no longer have."""


def why_not() -> str | None:
    """Return why packages can't be installed here, or None when they can."""
    if shutil.which("apt-get") is None or not distribution() & {"debian", "ubuntu"}:
        return "it installs packages on Debian and Ubuntu only."
    return why_not_root()


def distribution() -> set[str]:
    """Return the names of this Linux distribution and of those it derives from."""
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        return set()
    return {found.get("ID", ""), *found.get("ID_LIKE", "").split()}


def missing(names: Iterable[str]) -> list[str]:
    """Return those packages that are not installed."""
    return [name for name in names if not _is_installed(name)]


def candidates(names: Iterable[str]) -> dict[str, str]:
    """Return the packages that apt could install now, with the version it would take.

    Args:
        names: names of packages, known to the distribution or not.
    """
    return parse_policy(_run(["env", "LC_ALL=C", "apt-cache", "policy", *names]).stdout)


def parse_policy(text: str) -> dict[str, str]:
    """Return the packages with a candidate, and its version, from ``apt-cache policy``."""
    found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)", text, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def refresh(*, feedback: Feedback) -> None:
    """Bring apt's lists up to date if they are missing or a day old.

    An index that can't be reached is no failure here: the installation tells what it misses.
    """
    known = any(LISTS.glob("*_Packages*"))
    if known and time.time() - LISTS.stat().st_mtime < STALE_SECONDS:
        return
    with feedback.bars("Reading the package indexes (apt-get update)", unit="steps") as bars:
        _apt(["update"], key="indexes", bars=bars)


def install(names: Sequence[str], *, feedback: Feedback) -> None:
    """Install packages, without those they only recommend.

    Args:
        names: names that the distribution has.
        feedback: where progress is told.

    Raises:
        EngineError: apt failed; its last lines are told.
    """
    wanted = missing(names)
    if not wanted:
        return
    command = ["install", "--yes", "--no-install-recommends", *wanted]
    feedback.command(as_root(["apt-get", *command]))
    title = f"Installing {', '.join(wanted)}"
    for again in (False, True):
        with feedback.bars(title, unit="steps") as bars:
            status, log = _apt(command, key="packages", bars=bars)
        if status == 0:
            return
        if not again:
            # The likeliest cause is a list that names a version the mirror no longer has.
            with feedback.bars("Reading the package indexes again", unit="steps") as bars:
                _apt(["update"], key="indexes", bars=bars)
    tail = "\n  ".join(log[-8:])
    raise EngineError(
        f"installing the packages '{' '.join(wanted)}': apt-get ended with {status}:\n  {tail}\n"
        f"Try 'apt-get install {' '.join(wanted)}' yourself, then start the lab again."
    )


def _is_installed(name: str) -> bool:
    answer = _run(["dpkg-query", "-W", "-f", "${db:Status-Status}", name])
    return answer.stdout == "installed"


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True)


def _apt(arguments: Sequence[str], *, key: str, bars: Bars) -> tuple[int, list[str]]:
    """Run apt-get as root; return its exit code and the lines that it printed.

    Source: apt's README.progress-reporting (``kind:item:percent:words`` lines).
    """
    command = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "LC_ALL=C",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "APT::Status-Fd=1",
        *arguments,
    ]
    log = []
    bars.update(key, 0, None)
    with subprocess.Popen(
        as_root(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            status = re.match(r"(dl|pm)status:[^:]*:([\d.]+):(.*)", line)
            if status is None:
                log.append(line.rstrip())
                continue
            # Fetching counts as the first half of the way, unpacking as the second.
            done = float(status[2]) / 2 + (50 if status[1] == "pm" else 0)
            bars.update(key, done, 100, status[3].strip()[:40])
    if process.returncode == 0:
        bars.finish(key)
    return process.returncode, log
