"""A container that runs: what it answers, what it has printed, and when it is ready."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

import docker.errors
import requests
from docker.models.containers import Container

from labapp.engine import Engine
from labapp.errors import RunError

READY_SECONDS = 30.0
"""How long a service may take until it answers."""

SETTLE_SECONDS = 0.5
"""How long a container without a port must run to count as started."""

LOG_LINES = 15
"""How many of the last lines of a container's log a message shows."""


@dataclass(frozen=True)
class Running:
    """A running container.

    Attributes:
        name: of the container.
        reference: of the image, as it was given.
        url: where the first of its published ports is reached; None if it publishes none.
    """

    name: str
    reference: str
    url: str | None
    _container: Container = field(repr=False, compare=False)
    _engine: Engine = field(repr=False, compare=False)

    def get(self, path: str = "/") -> str:
        """Ask the service for a path, and return the text it answers.

        Raises:
            RunError: it publishes no port, does not answer, or answers with an error.
        """
        doing = f"asking '{self.name}' for '{path}'"
        if self.url is None:
            raise RunError(f"{doing}: it publishes no port. Run it with 'ports'.")
        try:
            answer = _ask(self.url + path, seconds=10)
        except requests.RequestException as error:
            raise RunError(
                f"{doing}: nothing answers at '{self.url}'. 'docker logs {self.name}' may say why."
            ) from error
        if not answer.ok:
            raise RunError(f"{doing}: it answers with status {answer.status_code}: {answer.text}")
        return answer.text

    def logs(self) -> str:
        """Return what the container has printed."""
        with self._engine.doing(f"reading the log of '{self.name}'", RunError):
            return self._container.logs().decode("utf-8", "replace")

    def stop(self) -> None:
        """Stop the container and remove it."""
        with self._engine.doing(f"stopping '{self.name}'", RunError):
            discard(self._container)


def wait_until_ready(
    container: Container,
    port: int | None,
    path: str | None,
    *,
    doing: str,
    seconds: float = READY_SECONDS,
) -> str | None:
    """Wait until a container's service answers.

    Args:
        container: it has been started.
        port: inside the container, published; None without one.
        path: the path that must answer with success; None where any answer of a web server will
            do, and none at all is no error.
        doing: the work in words, for messages.
        seconds: how long to wait.

    Returns:
        The address of the port; None without one.

    Raises:
        RunError: the container ended, or does not answer in time.
    """
    began = time.monotonic()
    while True:
        container.reload()
        if container.status in {"exited", "dead"}:
            status = container.attrs["State"].get("ExitCode")
            raise RunError(
                f"{doing}: the container ended with status {status}. Its log ends:\n"
                f"{log_end(container)}"
            )
        url = None if port is None else published_url(container, port)
        if url is not None and _answers(url, path):
            return url
        if time.monotonic() - began > (SETTLE_SECONDS if port is None else seconds):
            break
        time.sleep(0.05)
    if path is None or port is None:
        return url
    raise RunError(
        f"{doing}: it has not answered on port {port}{path} for {seconds:.0f} s. "
        f"Does its program listen there, on 0.0.0.0? Its log ends:\n{log_end(container)}"
    )


def published_url(container: Container, port: int | None = None) -> str | None:
    """Return where a port of a container is reached on this machine; by default its first one."""
    ports = container.ports
    for name in sorted(ports) if port is None else [f"{port}/tcp"]:
        for binding in ports.get(name) or ():
            return f"http://127.0.0.1:{binding['HostPort']}"
    return None


def discard(container: Container) -> None:
    """Remove a container, running or not; one that is gone already is fine."""
    with contextlib.suppress(docker.errors.NotFound):
        container.remove(force=True, v=True)


def log_end(container: Container) -> str:
    """Return the last lines of what a container has printed."""
    lines = container.logs(tail=LOG_LINES).decode("utf-8", "replace").rstrip()
    return lines or "(it printed nothing)"


def _answers(url: str, path: str | None) -> bool:
    try:
        answer = _ask(url + (path or "/"), seconds=2)
    except requests.RequestException:
        return False
    return answer.ok or path is None


def _ask(url: str, *, seconds: float) -> requests.Response:
    with requests.Session() as session:
        # A proxy that is set for the internet does not lead to this machine.
        session.trust_env = False
        return session.get(url, timeout=seconds)
