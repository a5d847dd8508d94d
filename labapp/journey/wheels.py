"""The application's wheels: fetched once on this machine, so that builds need no package index."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labapp import feedback
from labapp.errors import BaseError
from labapp.journey.debian import PYTHON, lines_of
from labapp.registry.manifests import digest_of

STAMP = ".complete.json"
"""The file in the wheel folder that says what the wheels are for, and their digests."""

_PROCESSORS = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBCS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_34")


def fetch(folder: Path, *, platform: str) -> None:
    """Put the wheels of the application in the folder above into its wheel folder, if need be.

    An interrupted download goes on where it was; older wheels go when all is there.
    """
    if is_complete(folder, platform=platform):
        return
    wanted = wanted_by(folder.parent)
    with _renewed(folder) as new:
        _download(new, folder.parent, platform)
        (new / STAMP).write_text(json.dumps(_stamp(new, wanted, platform)), encoding="utf-8")


def is_complete(folder: Path, *, platform: str) -> bool:
    """Tell if the folder holds, whole, what its application asks for on this platform."""
    wanted = wanted_by(folder.parent)
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return bool(stamp == _stamp(folder, wanted, platform))
    except (OSError, ValueError):
        return False


def packed(folder: Path) -> dict[str, bytes]:
    """Return the wheels and what is known of them as files to be carried elsewhere, by name."""
    return {path.name: path.read_bytes() for path in (*_wheels_in(folder), folder / STAMP)}


def unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put what :func:`packed` returned into a wheel folder; the wheels that are there go."""
    with _renewed(folder) as new:
        for name, data in files.items():
            (new / Path(name).name).write_bytes(data)


def wanted_by(application: Path) -> list[str]:
    """Return the requirements of an application, by the files in its folder: to run, to build."""
    return [*lines_of(application / "requirements.txt"), *_to_build(application)]


def _to_build(application: Path) -> list[str]:
    if not (application / "pyproject.toml").exists():
        return []
    project = tomllib.loads((application / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["build-system"]["requires"])


def _wheels_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))


def _stamp(folder: Path, wanted: list[str], platform: str) -> dict[str, Any]:
    digests = {wheel.name: digest_of(wheel.read_bytes()) for wheel in _wheels_in(folder)}
    return {"wanted": wanted, "platform": platform, "python": PYTHON, "wheels": digests}


def _download(folder: Path, application: Path, platform: str) -> None:
    """Run ``pip download`` with the learner's own settings; hashes that are there have to fit."""
    machine = _PROCESSORS.get(platform.split("/")[1], platform.split("/")[1])
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--retries=2", "--only-binary=:all:", "--implementation=cp"]
    command += [f"--platform={glibc}_{machine}" for glibc in _GLIBCS]
    command += [f"--python-version={PYTHON}", f"--dest={folder}", *_to_build(application)]
    requirements = application / "requirements.txt"
    command.append(f"--requirement={requirements}")
    if "--hash=" in requirements.read_text(encoding="utf-8"):
        # Such a file names all there is; pip would go by the needs of the Python that it runs on.
        command.append("--no-deps")
    feedback.say(f"Fetching the wheels for '{application.name}'.")
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    if ran.returncode != 0:
        said = "\n  ".join(ran.stdout.splitlines()[-6:])
        raise BaseError(
            f"fetching the wheels for '{platform}': pip ended with {ran.returncode}:\n  {said}\n"
            "If no index can be reached here, name a proxy in HTTPS_PROXY and its authority's file "
            "in PIP_CERT, or take the wheels from a bundle ('labapp bundle load')."
        )


@contextlib.contextmanager
def _renewed(folder: Path) -> Iterator[Path]:
    """Yield a folder for new wheels, which take the place of the old ones at the end."""
    new = folder / ".download"
    try:
        new.mkdir(parents=True, exist_ok=True)
        yield new
        for old in (folder / STAMP, *_wheels_in(folder)):
            old.unlink(missing_ok=True)
        for file in (*_wheels_in(new), new / STAMP):  # the stamp comes last
            file.replace(folder / file.name)
        shutil.rmtree(new)
    except OSError as error:
        raise BaseError(
            f"writing the wheels to '{folder}': {error.strerror or error}. Make the folder "
            "writable and free some disk space, then try again."
        ) from error
