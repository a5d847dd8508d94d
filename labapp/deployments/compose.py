"""Docker compose, where the command line has it: runs the services of a deployment file."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from labapp.deployments.deployment_file import Service
from labapp.engine import Engine
from labapp.errors import DeploymentError

COMPOSE_SECONDS = 300.0
STOP_SECONDS = 3
"""How long a container that is replaced has to end by itself."""


def has_compose(engine: Engine) -> bool:
    """Tell whether ``docker compose`` answers."""
    try:
        answer = subprocess.run(
            ["docker", "compose", "version"],
            env=engine.environment(),
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def compose_up(
    engine: Engine,
    project: str,
    services: Sequence[Service],
    labels: Mapping[str, Mapping[str, str]],
    *,
    doing: str,
) -> None:
    """Let compose run services, each in place of its last container.

    Compose reads a file that says what the learner's file means here: published on this machine
    only, pulled already, labelled.

    Args:
        engine: where to run them.
        project: the name that their containers share.
        services: all services of the project; containers of others are removed.
        labels: for each service's container.
        doing: the work in words, for messages.

    Raises:
        DeploymentError: compose failed; the message has what it said last.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for service in services:
        wanted[service.name] = {
            "image": service.image,
            "labels": labels[service.name],
            "environment": variables(service),
            "ports": publish(service),
            "network_mode": "bridge",
            "pull_policy": "never",  # It has been pulled, and checked.
        }
        if service.command is not None:
            wanted[service.name]["command"] = list(service.command)
    # JSON is YAML; compose reads "$$" as "$".
    text = json.dumps({"services": wanted}).replace("$", "$$")
    argv = ["docker", "compose", "-p", project, "-f", "-"]
    argv += ["up", "-d", "--force-recreate", "--remove-orphans", f"--timeout={STOP_SECONDS}"]
    try:
        answer = subprocess.run(
            argv,
            input=text,
            env=engine.environment(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=COMPOSE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(
            f"{doing}: docker compose did not end within {COMPOSE_SECONDS:.0f} s. Try again."
        ) from error
    if answer.returncode != 0:
        told = [line for line in answer.stderr.splitlines() if not line.startswith(" Container")]
        cause = "\n".join(told[-6:])
        raise DeploymentError(f"{doing}: docker compose says:\n{cause}\nMend that, deploy again.")


def variables(service: Service) -> dict[str, str]:
    """Return a service's environment; a variable without a value is taken over from here."""
    pairs = ((n, os.environ.get(n) if value is None else value) for n, value in service.environment)
    return {name: value for name, value in pairs if value is not None}


def publish(service: Service) -> list[str]:
    """Return a service's ports as ``docker run -p`` takes them, on this machine only."""
    return [f"127.0.0.1:{port.outside or ''}:{port.inside}" for port in service.ports]
