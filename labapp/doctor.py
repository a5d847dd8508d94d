"""What the lab needs of this machine, checked one by one; nothing is changed or started."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labapp import feedback
from labapp.errors import BaseError, EngineNotFound, LabError, RegistryError
from labapp.journey import bases
from labapp.machine import engine as engines
from labapp.machine.engine import Engine
from labapp.registry import podman
from labapp.registry.server import RegistryServer
from labapp.state import State

NEEDED_GB = 6.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, whether it will do, else what to do."""

    subject: str
    ok: bool
    text: str


def examine(state: State) -> list[Finding]:
    """Return the findings about this machine and this lab."""
    python = Finding("Python", True, f"{platform.python_version()} at {sys.executable}")
    found = [python, disk("disk", state.folder), *examine_lab(state)]
    with contextlib.suppress(EngineNotFound):
        engine = engines.find(state)
        if Path(engine.data_root).exists():
            found.append(disk("engine's disk", Path(engine.data_root)))
        found += [_builder(engine), _docker(engine)]
        if aside := [name for name in engines.SET_ASIDE if os.environ.get(name)]:
            told = "the lab agrees on that with the engine; its cells and terminals have it empty."
            found.append(Finding("variables", True, f"{', '.join(aside)}: {told}"))
    return found


def examine_lab(state: State) -> list[Finding]:
    """Return the findings about engine, registry, base images: each if the one before will do."""
    try:
        engine = engines.find(state)
    except EngineNotFound as error:
        return [Finding("engine", False, str(error))]
    server = RegistryServer(engine=engine, state=state)
    found = [Finding("engine", True, engine.describe()), _tried("registry", _registry, server)]
    if found[-1].ok:
        if engine.name == "Podman":
            found.append(_tried("plain HTTP", _plain_http, engine, state, server.address))
        known = {base.name: base for base in bases.recorded(server, state)}
        for name in bases.NAMES:
            found.append(_tried(f"base {name}", _base, server, known.get(name)))
    return found


def disk(subject: str, folder: Path) -> Finding:
    """Look whether a folder's disk has room for images."""
    free = shutil.disk_usage(folder).free / 1e9
    needed = f": the lab needs {NEEDED_GB:.0f} GB. Free some space; 'python3 -m labapp tidy' helps."
    advice = "" if free >= NEEDED_GB else needed
    return Finding(subject, not advice, f"{free:.1f} GB free at '{folder}'{advice}")


def _builder(engine: Engine) -> Finding:
    """Tell what the lab builds with, and if ``docker build`` takes another builder elsewhere."""
    told = "Podman's own" if engine.name == "Podman" else f"{engine.builder}, the engine's own"
    if engine.builder != "classic":
        now = subprocess.run(["docker", "buildx", "inspect"], capture_output=True).stdout.decode()
        if other := re.match(r"Name: +(\S+)\nDriver: +(?!docker$)(\S+)$", now, re.MULTILINE):
            # 'docker build' goes by the variable alone, not by 'docker buildx use'.
            way = "docker build" if os.environ.get("BUILDX_BUILDER") else "docker buildx build"
            told += (
                f". In other terminals '{way}' takes '{other[1]}' ({other[2]}), which does not "
                "reach the lab's registry and gives the engine no image; 'unset BUILDX_BUILDER' "
                "and 'docker buildx use default' set that back."
            )
    return Finding("builder", True, told)


def _docker(engine: Engine) -> Finding:
    """Look for the command line, which the chapters show beside each step."""
    command = ["docker", "version", "--format", "{{.Client.Version}}"]
    try:
        answer = subprocess.run(command, env=engine.environment(), capture_output=True)
    except OSError:
        package = "'docker-cli', or Docker Desktop"
        if feedback.program() == "podman":
            package = "'podman-docker'; all else the lab does with 'podman'"
        needed = "cells that start with '!docker' need this command: install your system's package"
        return Finding("docker", False, f"{needed} {package}.")
    said = (answer.stdout or answer.stderr).decode("utf-8", "replace").strip()
    return Finding("docker", answer.returncode == 0, said)


def _tried(subject: str, look: Callable[..., str], *arguments: object) -> Finding:
    try:
        return Finding(subject, True, look(*arguments))
    except LabError as error:
        advice = "" if "labapp start" in str(error) else f" Run {engines.START}."
        return Finding(subject, False, f"{error}{advice}")


def _registry(server: RegistryServer) -> str:
    server.registry().ping()
    return f"answers at {server.address}"


def _plain_http(engine: Engine, state: State, address: str) -> str:
    if podman.takes_http(engine, address):
        return f"Podman takes it from {address}, by '{podman.written(state) or 'its settings'}'"
    raise RegistryError(podman.advice(engine, state, address))


def _base(server: RegistryServer, base: bases.Base | None) -> str:
    if base is None:
        raise BaseError("the base image is not prepared.")
    registry = server.registry()
    manifest = registry.image(base.reference).manifest
    if damaged := registry.damaged_blobs(base.reference.repository, manifest):
        raise BaseError(f"'{base.reference}': {'; '.join(str(damage) for damage in damaged)}.")
    return f"{base.digest[:19]}… from {base.source}"
