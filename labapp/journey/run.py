"""Containers that the lab runs: services that answer on a port, and single commands."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import docker.errors
import requests
from docker.models.containers import Container

from labapp import feedback
from labapp.errors import RunError
from labapp.journey.transfer import pull, with_tag
from labapp.machine.engine import OWNER_LABEL, Engine, owner
from labapp.machine.ports import ask, wait_until
from labapp.reference import Reference
from labapp.state import ROLE_LABEL

PORT = 8000
"""The port that a container of ``run`` publishes."""

OPTIONS: Mapping[str, Callable[[list[str]], dict[str, Any]]] = {
    "read_only": lambda values: {"read_only": values == ["true"]},
    "tmpfs": lambda values: {"tmpfs": dict(each.partition(":")[::2] for each in values)},
    "cap_drop": lambda values: {"cap_drop": values},
    "security_opt": lambda values: {"security_opt": values},
    "user": lambda values: {"user": values[0]},
    "restart": lambda values: {"restart_policy": {"Name": values[0]}},
}
"""What a container can be told it may do: keys of ``docker compose``, in the SDK's words."""


@dataclass(frozen=True)
class Running:
    """A running container of an image; ``address`` is that of the first port that it publishes."""

    name: str
    reference: str
    address: str | None
    _container: Container = field(repr=False, compare=False)
    _engine: Engine = field(repr=False, compare=False)

    @property
    def url(self) -> str | None:
        """The address for a browser; where a hub serves the notebooks, it leads through the hub."""
        hub = os.environ.get("JUPYTERHUB_PUBLIC_URL")
        if self.address is None or not hub:
            return self.address
        return f"{hub.rstrip('/')}/proxy/{self.address.rpartition(':')[2]}/"

    def get(self, path: str = "/") -> str:
        """Ask the service for a path, and return the text it answers.

        Raises:
            RunError: it publishes no port, does not answer, or answers with an error.
        """
        doing = f"asking '{self.name}' for '{path}'"
        if self.address is None:
            raise RunError(f"{doing}: it publishes no port. Give it one, below 'ports'.")
        try:
            answer = ask(self.address + path, seconds=10)
        except requests.RequestException as error:
            raise RunError(
                f"{doing}: nothing answers at '{self.address}'. See 'docker logs {self.name}'."
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


def run(
    engine: Engine,
    reference: Reference | str,
    *,
    name: str | None = None,
    environment: Mapping[str, str] | None = None,
    wait_for: str = "/health",
) -> Running:
    """Start a container in the background, and wait until its service answers.

    The engine publishes its port 8000 on a free one of 127.0.0.1, and pulls an image it has not
    got. A container of this lab that has the name is replaced.
    """
    reference = with_tag(reference)
    _have(engine, reference)
    with engine.doing(f"running '{reference}'", RunError):
        for container in engine.containers({ROLE_LABEL: "run"}):
            if container.name == name:
                discard(container)
        running = start(
            engine,
            str(reference),
            labels={ROLE_LABEL: "run"},
            name=name,
            ports={PORT: 0},
            environment=environment or {},
            path=wait_for,
        )
    feedback.say(f"{running.name} answers at {running.url}")
    return running


def run_once(
    engine: Engine,
    reference: Reference | str,
    command: Sequence[str],
    *,
    beside: Running | None = None,
    platform: str | None = None,
) -> str:
    """Run one command in a new container, remove the container, return what was printed.

    ``platform`` is another than the engine's own, for which it has the image. ``beside`` is a
    running container whose processes, files (below ``/proc/1/root``) and network the command sees:
    the way to look into a container that has no shell.
    """
    reference = with_tag(reference)
    doing = f"running '{' '.join(command)[:60]}' in '{reference}'"
    shared: dict[str, Any] = {}
    shown = []
    if beside is not None:
        place = f"container:{beside.name}"
        # Without that capability Linux shows a process' files to its own user and group only.
        shared = {"pid_mode": place, "network_mode": place, "cap_add": ["SYS_PTRACE"]}
        shown = [f"--pid={place}", f"--network={place}", "--cap-add=SYS_PTRACE"]
    if platform is not None:
        shared["platform"] = platform
        shown += ["--platform", platform]
    feedback.command(["docker", "run", "--rm", *shown, str(reference), *command])
    _have(engine, reference)
    # Should this process die, the next start knows by the owner that nobody waits any more.
    labels = {**engine.labels, ROLE_LABEL: "oneshot", OWNER_LABEL: owner()}
    with engine.doing(doing, RunError):
        container = engine.client.containers.create(
            str(reference), command=list(command), labels=labels, **shared
        )
        try:
            container.start()
            status = container.wait(timeout=120)["StatusCode"]
            if status != 0:
                log = _log_end(container)
                raise RunError(f"{doing}: it ended with status {status}. Its log ends:\n{log}")
            return container.logs(stdout=True, stderr=False).decode("utf-8", "replace")
        finally:
            discard(container)


def remove_running(
    engine: Engine, *, of: Collection[str] | None = None, address: str | None = None
) -> list[str]:
    """Remove this lab's containers, ``of`` all images or of these IDs; return their names.

    With them go those that somebody started by hand from an image of the registry at ``address``.
    """
    removed = []
    with engine.doing("removing this lab's containers", RunError):
        found = [c for c in engine.containers() if c.labels.get(ROLE_LABEL) in {"run", "service"}]
        if address:
            every = engine.client.containers.list(all=True, ignore_removed=True)
            by_hand = [c for c in every if ROLE_LABEL not in c.labels]
            found += [c for c in by_hand if c.attrs["Config"]["Image"].startswith(f"{address}/")]
        for container in found:
            if of is None or container.attrs["Image"] in of:
                discard(container)
                removed.append(str(container.name))
    return removed


def start(
    engine: Engine,
    image: str,
    *,
    labels: Mapping[str, str],
    name: str | None,
    ports: Mapping[int, int],
    environment: Mapping[str, str],
    path: str | None,
    options: Mapping[str, list[str]] | None = None,
) -> Running:
    """Start a container, tell the same command line, and wait for the first of its ``ports``.

    A port of 0 on this machine is any free one. A container that came to nothing is removed.
    """
    words = ["docker", "run", "-d", *(["--name", name] if name else [])]
    for inside, outside in ports.items():
        words += ["-p", f"127.0.0.1:{outside or ''}:{inside}"]
    for pair in environment.items():
        words += ["-e", "=".join(pair)]
    told: dict[str, Any] = {}
    for key, values in (options or {}).items():
        words += [f"--{key.replace('_', '-')}={value}" for value in values]
        told |= OPTIONS[key](values)
    feedback.command([*words, image])
    container = engine.client.containers.create(
        image,
        name=name,
        environment=dict(environment),
        ports={f"{inside}/tcp": ("127.0.0.1", outside) for inside, outside in ports.items()},
        labels={**engine.labels, **labels},
        **told,
    )
    try:
        container.start()
        first = next(iter(ports), None)
        url = wait_until_ready(container, first, path, doing=f"running '{image}'")
    except BaseException:
        discard(container)
        raise
    return Running(str(container.name), image, url, container, engine)


def wait_until_ready(
    container: Container,
    port: int | None,
    path: str | None,
    *,
    doing: str,
    seconds: float = 30,
) -> str | None:
    """Wait until a container's service answers, and return the address of its port.

    ``path`` has to answer with success; None means that any answer will do, and that none at all
    is no error. Without ``port`` the container only has to run for half a second.
    """

    def answers() -> bool:
        container.reload()
        if container.status in {"exited", "dead"}:
            status = container.attrs["State"].get("ExitCode")
            raise RunError(
                f"{doing}: the container ended with status {status}. Its log ends:\n"
                f"{_log_end(container)}"
            )
        if port and (url := published_url(container, port)):
            with contextlib.suppress(requests.RequestException):
                return ask(url + (path or "/"), seconds=2).ok or path is None
        return False

    seconds = 0.5 if port is None else seconds
    if not wait_until(answers, seconds=seconds, every=0.05) and path is not None:
        raise RunError(
            f"{doing}: it has not answered on port {port}{path} for {seconds:.0f} s. "
            f"Does its program listen there, on 0.0.0.0? Its log ends:\n{_log_end(container)}"
        )
    return published_url(container, port) if port else None


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
        # Podman removes by force only after ten seconds of asking.
        with contextlib.suppress(docker.errors.APIError):
            container.kill()
        try:
            container.remove(force=True, v=True)
        except docker.errors.APIError:
            time.sleep(1)  # after the kill, Podman may be taking its network down just then
            container.remove(force=True, v=True)


def _log_end(container: Container) -> str:
    lines = container.logs(tail=15).decode("utf-8", "replace").rstrip()
    return lines or "(it printed nothing)"


def _have(engine: Engine, reference: Reference) -> None:
    """Pull an image if the engine has not got it, as ``docker run`` does."""
    name = reference.pinned(reference.digest) if reference.digest else reference
    if engine.image(str(name)) is None:
        pull(engine, None, reference)
