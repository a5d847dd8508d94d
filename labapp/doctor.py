"""What the lab needs of this machine, checked one by one; nothing is changed or started."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labapp import bases as base_images
from labapp import engine as engines
from labapp.bases.sources import NAMES
from labapp.engine import Engine, own_engine
from labapp.engine.places import advice
from labapp.errors import BaseError, EngineNotFound, LabError
from labapp.manifests import Manifest
from labapp.registry.server import RegistryServer
from labapp.state import State

NEEDED_GB = 6.0

START = "Run 'python3 -m labapp start'."


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        subject: what was looked at.
        ok: whether it will do.
        text: what was found and, if it won't do, what to do.
    """

    subject: str
    ok: bool
    text: str


def examine(state: State, *, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings about this machine and this lab.

    Args:
        state: the lab's own files.
        environ: the environment that names engine and proxies.
    """
    python = Finding("Python", True, f"{platform.python_version()} at {sys.executable}")
    findings = [python, disk("disk", state.folder)]
    try:
        engine = engines.find(state, environ=environ)
    except EngineNotFound as error:
        return [*findings, *_without_engine(error), proxies({}, environ)]
    findings.append(Finding("engine", True, engine.describe()))
    if Path(engine.data_root).exists():
        findings.append(disk("engine's disk", Path(engine.data_root)))
    findings.append(Finding("store", True, f"{engine.store} image store"))
    findings += [_builder(engine), _docker(engine), *_delivery(engine, state)]
    with engine.doing("asking the engine about itself"):
        return [*findings, proxies(engine.client.info(), environ)]


def examine_lab(state: State, *, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings about what runs: engine, registry, base images.

    Args:
        state: the lab's own files.
        environ: the environment that names the engine.
    """
    try:
        engine = engines.find(state, environ=environ)
    except EngineNotFound as error:
        return _without_engine(error)
    return [Finding("engine", True, engine.describe()), *_delivery(engine, state)]


def _without_engine(error: EngineNotFound) -> list[Finding]:
    to_do = START if own_engine.can_start() is None else advice()
    later = "can be looked at once an engine answers."
    unseen = [Finding(subject, False, later) for subject in ("registry", "base images")]
    return [Finding("engine", False, f"{error}\n{to_do}"), *unseen]


def _delivery(engine: Engine, state: State) -> list[Finding]:
    server = RegistryServer(engine=engine, state=state)
    registry = _tried("registry", lambda: _registry(server))
    if not registry.ok:
        later = "can be looked at once the registry answers."
        return [registry, Finding("base images", False, later)]
    checks = {name: functools.partial(_base, server, state, name) for name in NAMES}
    return [registry, *(_tried(f"base {name}", check) for name, check in checks.items())]


def _tried(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except LabError as error:
        known = "labapp start" in str(error)
        return Finding(subject, False, str(error) if known else f"{error} {START}")


def disk(subject: str, folder: Path) -> Finding:
    """Look whether a folder's disk has room for images."""
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{free:.1f} GB free at '{folder}'"
    if free >= NEEDED_GB:
        return Finding(subject, True, text)
    return Finding(subject, False, f"{text}: the lab needs {NEEDED_GB:.0f} GB. Free some space.")


def _builder(engine: Engine) -> Finding:
    if engine.builder != "classic":
        return Finding("builder", True, engine.builder)
    return Finding(
        "builder", True, "classic (the plugin buildx is not there; the lab does without)"
    )


def _docker(engine: Engine) -> Finding:
    """Look for the command line, which the chapters show beside each step."""
    command = ["docker", "version", "--format", "{{.Client.Version}}"]
    try:
        answer = subprocess.run(
            command, env=engine.environment(), capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return Finding(
            "docker",
            False,
            "there is no 'docker' command on PATH, and cells that start with '!docker' need it. "
            "Install your system's package 'docker-cli' (or Docker Desktop).",
        )
    return Finding("docker", answer.returncode == 0, (answer.stdout or answer.stderr).strip())


def _registry(server: RegistryServer) -> str:
    registry = server.registry()
    registry.ping()
    return f"answers at {registry.address}"


def _base(server: RegistryServer, state: State, name: str) -> str:
    registry = server.registry()
    found = {base.name: base for base in base_images.recorded(server, state)}
    if name not in found:
        raise BaseError("the base image is not prepared.")
    base = found[name]
    manifest = registry.manifest(base.reference.repository, base.digest)
    if not isinstance(manifest, Manifest):
        raise BaseError(f"'{base.reference}' is an index, not an image.")
    damaged = registry.damaged_blobs(base.reference.repository, manifest)
    if damaged:
        raise BaseError(f"'{base.reference}': {'; '.join(str(damage) for damage in damaged)}.")
    return f"{base.digest[:19]}… from {base.source}"


def proxies(info: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    """Look at the proxies of this shell and of the engine.

    A proxy between the learner and the registry on this machine makes every request fail.
    """
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    here = {name: environ[name] for name in names if environ.get(name)}
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
