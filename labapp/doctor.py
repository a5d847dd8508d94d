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
from labapp.journey.bases import NAMES, Base
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


def examine(state: State, *, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings about this machine and this lab."""
    python = Finding("Python", True, f"{platform.python_version()} at {sys.executable}")
    findings = [python, disk("disk", state.folder)]
    try:
        engine = engines.find(state, environ=environ)
    except EngineNotFound as error:
        return [*findings, *_without_engine(error), proxies({}, environ)]
    findings.append(Finding("engine", True, engine.describe()))
    findings.append(Finding("store", True, f"{engine.store} image store"))
    if Path(engine.data_root).exists():
        findings.append(disk("engine's disk", Path(engine.data_root)))
    without = " (the plugin buildx is not there; the lab does without)"
    buildx = engine.builder != "classic" or engine.name == "Podman"
    findings.append(Finding("builder", True, engine.builder + ("" if buildx else without)))
    findings += [_docker(engine), *_delivery(engine, state)]
    with engine.doing("asking the engine about itself"):
        return [*findings, proxies(engine.client.info(), environ)]


def examine_lab(state: State, *, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings about what runs: engine, registry, base images."""
    try:
        engine = engines.find(state, environ=environ)
    except EngineNotFound as error:
        return _without_engine(error)
    return [Finding("engine", True, engine.describe()), *_delivery(engine, state)]


def disk(subject: str, folder: Path) -> Finding:
    """Look whether a folder's disk has room for images."""
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:.1f} GB free at '{folder}'"
    if free >= NEEDED_GB:
        return Finding(subject, True, text)
    return Finding(subject, False, f"{text}: the lab needs {NEEDED_GB:.0f} GB. Free some space.")


def proxies(info: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    """Look at the proxies of this shell and, by its ``info``, of the engine.

    A proxy between the learner and the registry on this machine makes every request fail.
    """
    names = {"http_proxy", "https_proxy", "all_proxy"}
    here = {name: value for name, value in environ.items() if value and name.lower() in names}
    engine = {info[name] for name in ("HttpProxy", "HttpsProxy") if info.get(name)}
    words = [f"{name} is '{value}'" for name, value in here.items()]
    words += [f"the engine fetches from the internet through '{value}'" for value in sorted(engine)]
    passed = f"{environ.get('NO_PROXY', '')},{environ.get('no_proxy', '')}".split(",")
    if here and not {"localhost", "127.0.0.1"} <= {part.strip() for part in passed}:
        words.append(
            "'curl' would ask the proxy for the registry on this machine. Set "
            "NO_PROXY=localhost,127.0.0.1 (in JupyterLab the lab has set it)"
        )
        return Finding("proxies", False, "; ".join(words) + ".")
    return Finding("proxies", True, "; ".join(words) or "none set")


def _without_engine(error: EngineNotFound) -> list[Finding]:
    later = "can be looked at once an engine answers."
    unseen = [Finding(subject, False, later) for subject in ("registry", "base images")]
    return [Finding("engine", False, str(error)), *unseen]


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


def _delivery(engine: Engine, state: State) -> list[Finding]:
    server = RegistryServer(engine=engine, state=state)
    registry = _tried("registry", _registry, server)
    if not registry.ok:
        later = "can be looked at once the registry answers."
        return [registry, Finding("base images", False, later)]
    found = {base.name: base for base in bases.recorded(server, state)}
    return [registry, *(_tried(f"base {name}", _base, server, found.get(name)) for name in NAMES)]


def _tried(subject: str, look: Callable[..., str], *arguments: object) -> Finding:
    try:
        return Finding(subject, True, look(*arguments))
    except LabError as error:
        advice = "" if "labapp start" in str(error) else f" Run {engines.START}."
        return Finding(subject, False, f"{error}{advice}")


def _registry(server: RegistryServer) -> str:
    server.registry().ping()
    return f"answers at {server.registry().address}"


def _base(server: RegistryServer, base: Base | None) -> str:
    if base is None:
        raise BaseError("the base image is not prepared.")
    registry = server.registry()
    manifest = registry.image(base.reference).manifest
    if damaged := registry.damaged_blobs(base.reference.repository, manifest):
        raise BaseError(f"'{base.reference}': {'; '.join(str(damage) for damage in damaged)}.")
    return f"{base.digest[:19]}… from {base.source}"
