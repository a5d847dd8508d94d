"""Acting as root on Linux: commands that do, the packages of Debian and Ubuntu, mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from labapp import feedback
from labapp.errors import EngineError


def why_not_root() -> str | None:
    """Return why this process can't act as root, or None when it can."""
    able = os.geteuid() == 0 or run_as_root(["true"]).returncode == 0
    return None if able else "that needs root, or a sudo that asks no password."


def why_no_packages() -> str | None:
    """Return why packages can't be installed here, or None when they can."""
    if shutil.which("apt-get") is None:
        return "it installs packages on Debian and Ubuntu only."
    return why_not_root()


def search_path() -> str:
    """Return PATH with the folders of system programs, which an ordinary user's lacks."""
    folders = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])


def program(name: str) -> str | None:
    """Return the path of a program, system programs included; None when there is none."""
    return shutil.which(name, path=search_path())


def as_root(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs another one as root."""
    return [*argv] if os.name == "nt" or os.geteuid() == 0 else ["sudo", "-n", *argv]


def run_as_root(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as root and return what it printed; a missing program is exit code 127."""
    try:
        return subprocess.run(
            as_root(argv),
            env={**os.environ, "PATH": search_path()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")


def unmount(folders: Collection[Path]) -> None:
    """Unmount everything that is mounted on folders or inside them."""
    import psutil

    mounts = [Path(mount.mountpoint) for mount in psutil.disk_partitions(all=True)]
    inside = [str(mount) for mount in mounts if any(map(mount.is_relative_to, folders))]
    if inside:
        run_as_root(["umount", "--lazy", *reversed(inside)])


def install_packages(needed: Sequence[str], *, welcome: Sequence[str] = ()) -> None:
    """Install what is missing, and then also those welcome packages that the distribution has."""
    if not _missing(needed):
        return
    # An index that can't be reached is no failure here: the installation tells what it misses.
    _apt_get("update")
    names = subprocess.run(["apt-cache", "pkgnames"], capture_output=True, encoding="utf-8").stdout
    wanted = _missing([*needed, *sorted({*welcome} & {*names.split()})])
    if status := _apt_get("install", "--yes", "--no-install-recommends", *wanted):
        names = " ".join(wanted)
        raise EngineError(
            f"installing '{names}': apt-get ended with {status}; its last lines are above. Try "
            f"'apt-get install {names}' yourself, then start the lab again."
        )


def _missing(names: Sequence[str]) -> list[str]:
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]
    listing = subprocess.run(query, capture_output=True, encoding="utf-8").stdout.splitlines()
    return [name for name in names if f"{name} installed" not in listing]


def _apt_get(*arguments: str) -> int:
    """Run apt-get as root, whose output the user sees; return its exit code."""
    feedback.command(as_root(["apt-get", *arguments]))
    # Another program that installs just now, such as the system's own updates, is waited for.
    command = ["apt-get", "--option=DPkg::Lock::Timeout=300", *arguments]
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    return subprocess.run(as_root([*quiet, *command]), stdin=subprocess.DEVNULL).returncode
