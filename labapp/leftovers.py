"""What work that was cut off left on the engine, found by the lab's labels and removed."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

import docker.errors
import psutil

from labapp.engine import Engine
from labapp.state import LABEL, ROLE_LABEL, State

OWNER_LABEL = "labapp.owner"
"""The process that waits for a one-shot container: ``host:pid``."""


def remove_leftovers(engine: Engine, state: State) -> list[str]:
    """Remove what an engine, a build or a client that died left behind.

    These are: one-shot containers whose client is gone, containers that were made and never
    started, stopped containers of the classic builder, and images that lost their tag. Nothing
    that does not carry this lab's label is touched, and nothing that runs, but for the one-shots.

    Returns:
        A line for each thing that was removed.

    Raises:
        EngineLost: the engine went away meanwhile.
    """
    label = f"{LABEL}={state.lab_id}"
    removed = []
    api = engine.client.api
    with engine.doing("looking for what earlier work left behind"):
        for found in api.containers(all=True, filters={"label": label}):
            with contextlib.suppress(docker.errors.NotFound):
                why = _why_left_over(api.inspect_container(found["Id"]))
                if why is not None:
                    api.remove_container(found["Id"], force=True, v=True)
                    removed.append(f"container {found['Names'][0].lstrip('/')}: {why}")
        for image in api.images(filters={"label": label, "dangling": True}):
            # An image that a container uses, or that another one builds on, is not left over.
            with contextlib.suppress(docker.errors.APIError):
                api.remove_image(image["Id"], noprune=True)
                removed.append(f"image {image['Id'][7:19]}: no tag names it")
    return removed


def owner() -> str:
    """Return this process, as the value of :data:`OWNER_LABEL`."""
    return f"{platform.node()}:{os.getpid()}"


def _why_left_over(container: dict[str, Any]) -> str | None:
    config = container["Config"]
    labels = config.get("Labels") or {}
    role = labels.get(ROLE_LABEL)
    status = container["State"]["Status"]
    if role == "oneshot":
        return None if _is_alive(labels.get(OWNER_LABEL, "")) else "its client is gone"
    if status == "created" and role in {"run", "service"}:
        return "it was never started"
    # The classic builder names the image by its ID; a person names it by a reference.
    if status in {"created", "exited", "dead"} and config["Image"].startswith("sha256:"):
        return "a build that was cut off"
    return None


def _is_alive(name: str) -> bool:
    host, _, pid = name.rpartition(":")
    return host == platform.node() and pid.isdigit() and psutil.pid_exists(int(pid))
