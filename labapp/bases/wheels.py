"""The application's wheels: fetched once on this machine, so that builds need no package index."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from labapp.errors import BaseError
from labapp.feedback import Feedback

STAMP = ".complete.json"
"""The file in the wheel folder that says what the wheels are for, and their digests."""

DOWNLOAD = ".download"
"""The folder in it where new wheels wait until all are there."""

PYTHON = "3.13"
"""The Python in the base images."""

_MACHINES = {
    "linux/386": "i686",
    "linux/amd64": "x86_64",
    "linux/arm64": "aarch64",
    "linux/arm": "armv7l",
    "linux/ppc64le": "ppc64le",
    "linux/s390x": "s390x",
}
_GLIBCS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34")

_CAUSES = (
    (r"No space left on device", "the disk is full", "Free some disk space"),
    (
        r"ProxyError|Cannot connect to proxy|Tunnel connection failed",
        "the proxy that is set here does not let the package index by",
        "Correct HTTPS_PROXY, or take the wheels from a bundle ('labapp bundle load')",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED|SSLCertVerification",
        "the package index's certificate is not trusted here, as behind a proxy with its own "
        "certificate authority",
        "Name that authority's file in PIP_CERT",
    ),
    (
        r"name resolution|Name or service not known|getaddrinfo|nodename nor servname",
        "the package index's name is not known here: no network, or no name server",
        "Connect to the network, or take the wheels from a bundle ('labapp bundle load')",
    ),
    (
        r"NewConnectionError|Connection refused|Network is unreachable|ConnectTimeout|"
        r"Read timed out|Connection reset|ConnectionError",
        "the package index can't be reached",
        "Connect to the network, or take the wheels from a bundle ('labapp bundle load')",
    ),
    (
        r"No matching distribution found for (\S+)",
        "there is no wheel of '{0}' for this platform",
        "Correct that line in requirements.txt",
    ),
)


def fetch(
    folder: Path, *, platform: str, python: str = PYTHON, feedback: Feedback
) -> tuple[Path, ...]:
    """Put the wheels of an application into its wheel folder, unless they are there.

    What ``requirements.txt`` and ``pyproject.toml`` in the folder above ask for is fetched, to run
    and to build. An interrupted download goes on where it was; older wheels go when all is there.

    Args:
        folder: the wheel folder inside the application's folder.
        platform: what the images run on, as in ``linux/amd64``.
        python: the version of the Python in the images.
        feedback: where the progress is shown.

    Returns:
        The wheels, sorted by name.

    Raises:
        BaseError: the package index can't be reached, or has no such wheel; it says why.
    """
    wanted = wanted_by(folder.parent)
    stamp = {"wanted": wanted, "platform": platform, "python": python}
    if is_complete(folder, platform=platform, python=python):
        return wheels_in(folder)
    download = folder / DOWNLOAD
    try:
        download.mkdir(parents=True, exist_ok=True)
        _download(download, wanted, platform=platform, python=python, feedback=feedback)
        _replace_by(download, folder)
        digests = {wheel.name: _digest(wheel) for wheel in wheels_in(folder)}
        (folder / STAMP).write_text(json.dumps(stamp | {"wheels": digests}, indent=2) + "\n")
    except OSError as error:
        raise _not_written(folder, error) from error
    return wheels_in(folder)


def wheels_in(folder: Path) -> tuple[Path, ...]:
    """Return the wheels in a folder, sorted by name."""
    return tuple(sorted(folder.glob("*.whl")))


def is_complete(folder: Path, *, platform: str, python: str = PYTHON) -> bool:
    """Tell if the folder holds, whole, what its application asks for on this platform."""
    try:
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        found = {wheel.name: _digest(wheel) for wheel in wheels_in(folder)}
    except (OSError, ValueError):
        return False
    expected = {"wanted": wanted_by(folder.parent), "platform": platform, "python": python}
    return bool(found) and stamp == expected | {"wheels": found}


def packed(folder: Path) -> dict[str, bytes]:
    """Return the wheels and what is known of them as files to be carried elsewhere, by name."""
    return {path.name: path.read_bytes() for path in (*wheels_in(folder), folder / STAMP)}


def unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put carried wheels into a wheel folder; what is there already goes.

    Args:
        folder: the wheel folder inside the application's folder.
        files: what :func:`packed` returned.

    Raises:
        BaseError: they are not whole, or the folder can't be written.
    """
    try:
        expected = json.loads(files[STAMP])["wheels"]
    except (KeyError, TypeError, ValueError):
        expected = None
    carried = {name: data for name, data in files.items() if name != STAMP}
    if expected != {name: _digest_of(data) for name, data in carried.items()}:
        raise BaseError(
            f"unpacking the wheels into '{folder}': they are not whole. Copy the file again."
        )
    try:
        (folder / DOWNLOAD).mkdir(parents=True, exist_ok=True)
        for name, data in carried.items():
            (folder / DOWNLOAD / name).write_bytes(data)
        _replace_by(folder / DOWNLOAD, folder)
        (folder / STAMP).write_bytes(files[STAMP])
    except OSError as error:
        raise _not_written(folder, error) from error


def wanted_by(application: Path) -> list[str]:
    """Return the requirements of an application: to run it, then to build it.

    Args:
        application: its folder, with ``requirements.txt`` and ``pyproject.toml``.

    Raises:
        BaseError: one of the two files is missing or can't be read.
    """
    try:
        lines = (application / "requirements.txt").read_text(encoding="utf-8").splitlines()
        project = tomllib.loads((application / "pyproject.toml").read_text(encoding="utf-8"))
        to_build: list[str] = project["build-system"]["requires"]
    except (OSError, KeyError, ValueError) as error:
        raise BaseError(
            f"reading what the application in '{application}' needs: {error}. "
            "Restore its files with 'git checkout dockerfiles/app'."
        ) from error
    stripped = (line.partition("#")[0].strip() for line in lines)
    return [*(line for line in stripped if line), *to_build]


def _download(
    folder: Path, wanted: list[str], *, platform: str, python: str, feedback: Feedback
) -> None:
    """Run ``pip download``; its lines move the bar, and explain a failure."""
    log: list[str] = []
    command = [sys.executable, "-m", "pip", "download", *_options(platform, python)]
    command += [f"--dest={folder}", *wanted]
    with (
        feedback.bars("Fetching the application's wheels", unit="steps") as bars,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        collected: list[str] = []
        for line in process.stdout:
            log.append(line.rstrip())
            if match := re.match(r"Collecting ([\w.-]+)", line):
                collected.append(match[1])
                total = max(len(wanted), len(collected))
                bars.update("wheels", len(collected) - 1, total, match[1])
        if process.wait() != 0:
            cause, step = _why(log)
            raise BaseError(
                f"fetching the wheels for '{platform}': {cause}. {step}, then try again."
            )
        bars.finish("wheels")


def _replace_by(new: Path, folder: Path) -> None:
    """Put the wheels of one folder in the place of those in another."""
    for old in wheels_in(folder):
        old.unlink()
    for wheel in wheels_in(new):
        wheel.replace(folder / wheel.name)
    shutil.rmtree(new)


def _options(platform: str, python: str) -> list[str]:
    machine = _MACHINES.get("/".join(platform.split("/")[:2]))
    if machine is None:
        raise BaseError(
            f"fetching the wheels for '{platform}': no wheels are published for it. "
            "Use an engine on amd64 or arm64."
        )
    return [
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--retries=2",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        *(f"--platform={glibc}_{machine}" for glibc in _GLIBCS),
    ]


def _why(log: list[str]) -> tuple[str, str]:
    """Return the cause that pip's lines tell of, and what to do."""
    text = "\n".join(log)
    for proxy in map(urlsplit, getproxies().values()):
        if proxy.hostname and f"host='{proxy.hostname}', port={proxy.port}" in text:
            text = f"ProxyError {text}"
    for pattern, cause, step in _CAUSES:
        if match := re.search(pattern, text):
            return cause.format(*match.groups()), step
    tail = " | ".join([line for line in log if line.startswith("ERROR")][-2:] or log[-3:])
    return f"pip said: {tail or 'nothing'}", "Correct that"


def _not_written(folder: Path, error: OSError) -> BaseError:
    return BaseError(
        f"writing the wheels to '{folder}': {error.strerror or error}. Make the folder writable "
        "and free some disk space, then try again."
    )


def _digest(path: Path) -> str:
    return _digest_of(path.read_bytes())


def _digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
