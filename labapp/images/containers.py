"""Containers that the lab runs: services that answer on a port, and single commands."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import docker.errors
import requests

from labapp.engine import Engine
from labapp.errors import RunError
from labapp.feedback import Feedback
from labapp.images.pulls import pull
from labapp.images.running import Running, discard, log_end, published_url, wait_until_ready
from labapp.images.transfer import with_tag
from labapp.leftovers import OWNER_LABEL, owner
from labapp.reference import Reference
from labapp.state import ROLE_LABEL


def run(
    engine: Engine,
    reference: Reference | str,
    *,
    name: str | None = None,
    ports: Sequence[int] = (8000,),
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    labels: Mapping[str, str],
    wait_for: str | None = "/health",
    feedback: Feedback,
) -> Running:
    """Start a container in the background, and wait until its service answers.

    The engine publishes its ports on free ones of 127.0.0.1, and pulls an image it has not got.

    Args:
        engine: where to run it.
        reference: the image.
        name: the container's name; a container of this lab that has it is replaced.
        ports: the ports inside the container to publish.
        environment: environment variables.
        command: what to run instead of the image's own command.
        labels: the lab's labels, not shown in the command that is printed.
        wait_for: the path that answers with success once the service is ready, on the first
            port; None to not wait.
        feedback: where the command is told.

    Raises:
        InvalidReference: it is no reference.
        RunError: the container ended, its service does not answer, or its name is taken.
        PullError: the image is neither on the engine nor in its registry.
        EngineLost: the engine went away.
    """
    reference = with_tag(reference)
    doing = f"running '{reference}'"
    shown = ["docker", "run", "-d", *(["--name", name] if name else [])]
    shown += [word for port in ports for word in ("-p", f"127.0.0.1::{port}")]
    shown += [word for pair in (environment or {}).items() for word in ("-e", "=".join(pair))]
    feedback.command([*shown, str(reference), *(command or ())])
    _have(engine, reference, feedback)
    with engine.doing(doing, RunError):
        if name is not None:
            _make_room(engine, name, labels, doing)
        container = engine.client.containers.create(
            str(reference),
            command=list(command) if command is not None else None,
            name=name,
            environment=dict(environment or {}),
            ports={f"{port}/tcp": ("127.0.0.1", 0) for port in ports},
            labels={**labels, ROLE_LABEL: "run"},
        )
        try:
            container.start()
            url = None
            if ports and wait_for is not None:
                url = wait_until_ready(container, ports[0], wait_for, doing=doing)
            elif ports:
                container.reload()
                url = published_url(container, ports[0])
        except BaseException:
            with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                discard(container)
            raise
    if url is not None:
        feedback.say(f"{container.name} answers at {url}")
    return Running(str(container.name), str(reference), url, container, engine)


def run_once(
    engine: Engine,
    reference: Reference | str,
    command: Sequence[str],
    *,
    beside: Running | None = None,
    labels: Mapping[str, str],
    seconds: float = 120.0,
    feedback: Feedback,
) -> str:
    """Run one command in a new container, and remove the container.

    Args:
        engine: where to run it.
        reference: the image; pulled if the engine has not got it.
        command: the program and its arguments.
        beside: a running container whose processes, files (below ``/proc/1/root``) and network
            the command sees: the way to look into a container that has no shell.
        labels: the lab's labels, not shown in the command that is printed.
        seconds: how long it may take.
        feedback: where the command is told.

    Returns:
        What it printed to its standard output.

    Raises:
        InvalidReference: it is no reference.
        RunError: it can't be started, failed, or took too long; the message has its log's end.
        PullError: the image is neither on the engine nor in its registry.
        EngineLost: the engine went away.
    """
    reference = with_tag(reference)
    doing = f"running {' '.join(command)[:60]!r} in '{reference}'"
    shared = _shared(beside)
    place = [f"--{space}=container:{beside.name}" for space in ("pid", "network")] if beside else []
    shown = [*place, *(f"--cap-add={name}" for name in shared.get("cap_add", ()))]
    feedback.command(["docker", "run", "--rm", *shown, str(reference), *command])
    _have(engine, reference, feedback)
    with engine.doing(doing, RunError):
        container = engine.client.containers.create(
            str(reference),
            command=list(command),
            **shared,
            # Should this process die, the next start knows by the owner that nobody waits any more.
            labels={**labels, ROLE_LABEL: "oneshot", OWNER_LABEL: owner()},
        )
        try:
            container.start()
            try:
                status = container.wait(timeout=seconds)["StatusCode"]
            except requests.RequestException as error:
                if not engine.is_alive():
                    raise
                raise RunError(
                    f"{doing}: it did not end within {seconds:.0f} s. Its log ends:\n"
                    f"{log_end(container)}"
                ) from error
            if status != 0:
                raise RunError(
                    f"{doing}: it ended with status {status}. Its log ends:\n{log_end(container)}"
                )
            return container.logs(stdout=True, stderr=False).decode("utf-8", "replace")
        finally:
            with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                discard(container)


def remove_running(engine: Engine, labels: Mapping[str, str]) -> list[str]:
    """Remove the containers that ``run`` and ``deploy`` of this lab started; return their names."""
    wanted = [f"{name}={value}" for name, value in labels.items()]
    removed = []
    with engine.doing("removing this lab's containers", RunError):
        for container in engine.client.containers.list(
            all=True, filters={"label": wanted}, ignore_removed=True
        ):
            if container.labels.get(ROLE_LABEL) in {"run", "service"}:
                discard(container)
                removed.append(str(container.name))
    return removed


def _shared(beside: Running | None) -> dict[str, Any]:
    """Return the options that put a container into the view of another one.

    Without the capability to trace, Linux shows a process' files to its own user and group only.
    """
    if beside is None:
        return {}
    place = f"container:{beside.name}"
    return {"pid_mode": place, "network_mode": place, "cap_add": ["SYS_PTRACE"]}


def _have(engine: Engine, reference: Reference, feedback: Feedback) -> None:
    """Pull an image if the engine has not got it, as ``docker run`` does."""
    name = reference.pinned(reference.digest) if reference.digest else reference
    with engine.doing(f"looking for the image '{reference}'", RunError):
        try:
            engine.client.images.get(str(name))
            return
        except docker.errors.ImageNotFound:
            pass
    pull(engine, None, reference, feedback=feedback)


def _make_room(engine: Engine, name: str, labels: Mapping[str, str], doing: str) -> None:
    """Remove this lab's container of that name, if there is one."""
    wanted = {**labels, ROLE_LABEL: "run"}  # An image passes its own labels on to all comers.
    for container in engine.client.containers.list(all=True, filters={"name": f"^/?{name}$"}):
        if not wanted.items() <= container.labels.items():
            raise RunError(
                f"{doing}: the name '{name}' belongs to a container that the lab did not start. "
                f"Choose another name, or remove that one with 'docker rm -f {name}'."
            )
        discard(container)
