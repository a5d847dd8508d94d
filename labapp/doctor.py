"""What the lab needs of this machine, checked one by one; nothing is changed or started."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labapp.errors import BaseError, EngineNotFound, LabError
from labapp.journey import bases
from labapp.machine import engine as engines
from labapp.machine.engine import Engine
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
    machine = [python, disk("disk", state.folder)]
    try:
        engine = engines.find(state)
    except EngineNotFound as error:
        return [*machine, Finding("engine", False, str(error)), proxies({})]
    if Path(engine.data_root).exists():
        machine.append(disk("engine's disk", Path(engine.data_root)))
    without = " (the plugin buildx is not there; the lab does without)"
    buildx = engine.builder != "classic" or engine.name == "Podman"
    builder = Finding("builder", True, engine.builder + ("" if buildx else without))
    with engine.doing("asking the engine about itself"):
        passed = proxies(engine.client.info())
    return [*machine, *_delivery(engine, state), builder, _docker(engine), passed]


def examine_lab(state: State) -> list[Finding]:
    """Return the findings about what runs: engine, registry, base images."""
    try:
        return _delivery(engines.find(state), state)
    except EngineNotFound as error:
        return [Finding("engine", False, str(error))]


def disk(subject: str, folder: Path) -> Finding:
    """Look whether a folder's disk has room for images."""
    free = shutil.disk_usage(folder).free / 1e9
    advice = "" if free >= NEEDED_GB else f": the lab needs {NEEDED_GB:.0f} GB. Free some space."
    return Finding(subject, not advice, f"{free:.1f} GB free at '{folder}'{advice}")


def proxies(info: Mapping[str, Any]) -> Finding:
    """Look at the proxies of this shell and, by its ``info``, of the engine.

    A proxy between the learner and the registry on this machine makes every request fail.
    """
    names = {"http_proxy", "https_proxy", "all_proxy"}
    here = {name: value for name, value in os.environ.items() if value and name.lower() in names}
    engine = {info[name] for name in ("HttpProxy", "HttpsProxy") if info.get(name)}
    words = [f"{name} is '{value}'" for name, value in here.items()]
    words += [f"the engine fetches from the internet through '{value}'" for value in sorted(engine)]
    spared = f"{os.environ.get('NO_PROXY', '')},{os.environ.get('no_proxy', '')}".split(",")
    ok = not here or {"localhost", "127.0.0.1"} <= {each.strip() for each in spared}
    if not ok:
        words.append(
            "'curl' would ask the proxy for the registry on this machine. Set "
            "NO_PROXY=localhost,127.0.0.1 (in JupyterLab the lab has set it)."
        )
    return Finding("proxies", ok, "; ".join(words) or "none set")


def _delivery(engine: Engine, state: State) -> list[Finding]:
    """Look at the engine, its registry, and the base images; at each if the one before will do."""
    server = RegistryServer(engine=engine, state=state)
    found = [Finding("engine", True, engine.describe()), _tried("registry", _registry, server)]
    if found[-1].ok:
        known = {base.name: base for base in bases.recorded(server, state)}
        for name in bases.NAMES:
            found.append(_tried(f"base {name}", _base, server, known.get(name)))
    return found


def _docker(engine: Engine) -> Finding:
    """Look for the command line, which the chapters show beside each step."""
    command = ["docker", "version", "--format", "{{.Client.Version}}"]
    try:
        answer = subprocess.run(command, env=engine.environment(), capture_output=True, text=True)
    except FileNotFoundError:
        return Finding(
            "docker",
            False,
            "there is no 'docker' command on PATH, and cells that start with '!docker' need it. "
            "Install your system's package 'docker-cli' (or Docker Desktop).",
        )
    return Finding("docker", answer.returncode == 0, (answer.stdout or answer.stderr).strip())


def _tried(subject: str, look: Callable[..., str], *arguments: object) -> Finding:
    try:
        return Finding(subject, True, look(*arguments))
    except LabError as error:
        advice = "" if "labapp start" in str(error) else f" Run {engines.START}."
        return Finding(subject, False, f"{error}{advice}")


def _registry(server: RegistryServer) -> str:
    server.registry().ping()
    return f"answers at {server.address}"


def _base(server: RegistryServer, base: bases.Base | None) -> str:
    if base is None:
        raise BaseError("the base image is not prepared.")
    registry = server.registry()
    manifest = registry.image(base.reference).manifest
    if damaged := registry.damaged_blobs(base.reference.repository, manifest):
        raise BaseError(f"'{base.reference}': {'; '.join(str(damage) for damage in damaged)}.")
    return f"{base.digest[:19]}… from {base.source}"
