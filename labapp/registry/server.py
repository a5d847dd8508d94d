"""The lab's registry: CNCF Distribution in a container of the lab, its storage in a volume.

Source: the paths in the volume are those of CNCF Distribution 2 and 3, registry/storage/paths.go.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import docker.errors
from docker.models.containers import Container
from docker.types import LogConfig

from labapp import feedback
from labapp.errors import RegistryError, RegistryUnreachable
from labapp.machine.engine import OWNER_LABEL, Engine, owner, tar_of
from labapp.machine.ports import LOOPBACK, free_port, says_taken, wait_until
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of
from labapp.state import ROLE_LABEL, State

CONFIG = Path(__file__).parents[2] / "dockerfiles" / "registry" / "config.yml"
CONFIG_LABEL = "labapp.registry.config"
CONFIG_INSIDE = "/etc/labapp/registry.yml"
PORT_INSIDE = "5000/tcp"

STORAGE = "/var/lib/registry"
"""Where the registry has its files, in its container."""

CONTENT = f"{STORAGE}/docker/registry/v2"


class RegistryServer:
    """A registry of one lab on one engine; ``name`` is that of its container and its volume.

    ``kind`` is part of its name and its role, and names its record; its port is opened on
    ``host``; ``advice`` says in errors how to start it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        state: State,
        kind: str = "registry",
        host: str = "localhost",
        client: Callable[[str], Registry] = Registry,
        advice: str = "'python3 -m labapp start' starts it.",
    ) -> None:
        self.name = f"labapp-{kind}-{state.lab_id}"
        self._engine, self._state, self._kind = engine, state, kind
        self._host, self._client, self._advice = host, client, advice
        self._bound = LOOPBACK if host == "localhost" else host
        self._labels = {**state.labels, ROLE_LABEL: kind}

    @property
    def address(self) -> str:
        """Host and port; RegistryUnreachable if it has never been started."""
        return f"{self._host}:{self._recorded('port')}"

    @property
    def image(self) -> str:
        """The engine's name of the image that it runs; RegistryUnreachable if it never did."""
        return self._recorded("image")

    def is_running(self) -> bool:
        """Tell whether the registry's container runs."""
        with self._engine.doing(f"looking for the registry '{self.name}'"):
            container = self._container()
        return container is not None and container.status == "running"

    def registry(self) -> Registry:
        """Return the client of the running registry; RegistryUnreachable if it does not run."""
        if not self.is_running():
            raise RegistryUnreachable(
                f"finding the lab's registry '{self.address}': its container '{self.name}' does "
                f"not run. {self._advice}"
            )
        return self._client(self.address)

    def start(
        self, *, image: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> Registry:
        """Make the registry run and answer, whatever state it was left in; one that does is left.

        ``image`` is the engine's name of an image of CNCF Distribution, by default as last time;
        ``files`` go into the container, which is made anew when they change.
        """
        image = image or self.image
        files = files or {CONFIG_INSIDE: CONFIG.read_bytes()}
        made_of = digest_of(b"".join(files.values()))
        note = "Another process of this lab is starting the registry; waiting for it."
        doing = self._engine.doing(f"starting the registry '{self.name}'", RegistryError)
        with self._state.lock(self._kind, waiting=note), doing:
            container = self._container()
            if container is not None and not self._is_usable(container, image, made_of):
                self._discard(container)
                container = None
            if container is None or container.status != "running":
                create = functools.partial(self._create, image, files, made_of)
                container = self._run(container, create)
                self._await(container)
                feedback.say(f"The registry runs at {self._address_of(container)}.")
            self._state.write(self._kind, {"port": _port_of(container), "image": image})
            return self._client(self.address)

    def stop(self) -> None:
        """Stop the registry and keep its container, its log and its content."""
        with self._engine.doing(f"stopping the registry '{self.name}'"):
            container = self._container()
            if container is not None and container.status != "exited":
                feedback.command(["docker", "stop", self.name])
                container.stop(timeout=5)

    def remove(self, *, volume: bool) -> None:
        """Remove the registry's container, and its content too if ``volume`` is true."""
        doing = self._engine.doing(f"removing the registry '{self.name}'")
        with self._state.lock(self._kind), doing:
            if container := self._container():
                self._discard(container)
            if volume:
                with contextlib.suppress(docker.errors.NotFound):
                    self._engine.client.api.remove_volume(self.name)
                # The next one has the same port, if it can.
                self._state.write(self._kind, {"port": self._state.read(self._kind).get("port")})

    def logs(self, *, since: datetime | None = None) -> bytes:
        """Return what the registry's container has logged, from a moment on."""
        with self._engine.doing(f"reading the log of '{self.name}'"):
            container = self._container()
            return container.logs(since=since and since.timestamp()) if container else b""

    def storage(self, argv: Sequence[str]) -> str:
        """Run a command over the registry's files; see :func:`run_over`."""
        labels = self._state.labels
        return run_over(self._engine, self.name, argv, image=self.image, labels=labels)

    def discard_blobs(self, digests: Iterable[str]) -> None:
        """Remove the bytes of damaged blobs: a push never writes over one that is there."""
        parts = [digest.partition(":") for digest in digests]
        paths = [f"{CONTENT}/blobs/{kind}/{value[:2]}/{value}" for kind, _, value in parts]
        if paths:
            self.storage(["rm", "-rf", *paths])

    def _address_of(self, container: Container) -> str:
        return f"{self._host}:{_port_of(container)}"

    def _recorded(self, name: str) -> str:
        found = self._state.read(self._kind).get(name)
        if found is None:
            raise RegistryUnreachable(
                f"finding the registry '{self.name}': it has never been started. {self._advice}"
            )
        return str(found)

    def _container(self) -> Container | None:
        with contextlib.suppress(docker.errors.NotFound):
            return self._engine.client.containers.get(self.name)
        return None

    def _is_usable(self, container: Container, image: str, made_of: str) -> bool:
        found = self._engine.image(image)
        # Podman writes IDs without what they are digests by.
        same = found is None or str(found.id)[-64:] == container.attrs["Image"][-64:]
        if not same or container.labels.get(CONFIG_LABEL) != made_of:
            return False
        # One that was only created may have no files.
        runs = container.status == "running"
        return self._answers(container) if runs else container.status == "exited"

    def _answers(self, container: Container) -> bool:
        with contextlib.suppress(RegistryError):
            self._client(self._address_of(container)).ping()
            return True
        return False

    def _discard(self, container: Container) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            container.remove(force=True, v=True)

    def _run(self, container: Container | None, create: Callable[[int], Container]) -> Container:
        """Start the container, or a new one where its port has been taken meanwhile."""
        port = self._state.read(self._kind).get("port") or free_port(host=self._bound)
        if container is not None:
            feedback.command(["docker", "start", self.name])
        container = container or create(port)
        try:
            container.start()
        except docker.errors.APIError as error:
            if not says_taken(str(error.explanation)):
                raise
            self._discard(container)
            container = create(free_port(host=self._bound))
            container.start()
            feedback.say(
                f"Another program has taken port {port}: the registry is now at "
                f"{self._address_of(container)}. Images named by the old address have to be "
                "tagged anew."
            )
        return container

    def _create(self, image: str, files: Mapping[str, bytes], made_of: str, port: int) -> Container:
        self._engine.client.volumes.create(self.name, labels=self._labels)
        container = _created(
            self._engine,
            image,
            f"making the registry's container '{self.name}'",
            command=["serve", CONFIG_INSIDE],
            name=self.name,
            labels=self._labels | {CONFIG_LABEL: made_of},
            ports={PORT_INSIDE: (self._bound, port)},
            volumes={self.name: {"bind": STORAGE, "mode": "rw"}},
            log_config=LogConfig(type="json-file", config={"max-size": "20m", "max-file": "2"}),
        )
        inside = {path.lstrip("/"): data for path, data in files.items()}
        container.put_archive("/", tar_of(inside))
        return container

    def _await(self, container: Container) -> None:
        def ended() -> bool:
            container.reload()
            return self._answers(container) or container.status != "running"

        wait_until(ended, seconds=30, every=0.05)
        if self._answers(container):
            return
        log = container.logs(tail=12).decode("utf-8", "replace").strip()
        raise RegistryError(
            f"starting the registry '{self.name}': it does not answer. Its log ends with:\n"
            f"{log}\n'docker logs {self.name}' shows all of it."
        )


def run_over(
    engine: Engine, place: str, argv: Sequence[str], *, image: str, labels: Mapping[str, str]
) -> str:
    """Run a command over a volume or a folder of the engine's machine, and return what it printed.

    It runs as root in a short-lived container of the registry's own image, which has busybox; the
    place is at ``STORAGE`` there. RegistryError if it fails.
    """
    doing = f"working on the files of '{place}' with '{shlex.join(argv)[:80]}'"
    with engine.doing(doing, RegistryError):
        container = _created(
            engine,
            image,
            doing,
            entrypoint=[argv[0]],
            command=list(argv[1:]),
            labels={**labels, ROLE_LABEL: "oneshot", OWNER_LABEL: owner()},
            volumes={place: {"bind": STORAGE, "mode": "rw"}},
            network_mode="none",
        )
        try:
            container.start()
            status = container.wait()["StatusCode"]
            printed = container.logs(stdout=True, stderr=status != 0).decode("utf-8", "replace")
        finally:
            container.remove(force=True, v=True)
    if status != 0:
        raise RegistryError(f"{doing}: it ended with {status}: {printed.strip()[-400:]}")
    return printed


def _created(engine: Engine, image: str, doing: str, **options: Any) -> Container:
    try:
        return engine.client.containers.create(image, **options)
    except docker.errors.ImageNotFound as error:
        raise RegistryError(
            f"{doing}: the engine has no image '{image}'. 'python3 -m labapp start' makes it."
        ) from error


def _port_of(container: Container) -> int:
    """Return the port of this machine that leads to a registry's container; 0 if none does."""
    bindings = container.attrs["HostConfig"].get("PortBindings") or {}
    return next((int(bound["HostPort"] or 0) for bound in bindings.get(PORT_INSIDE) or ()), 0)


def port_in(state: State) -> int | None:
    """Return the port of a lab's registry; None if it has never been started."""
    port: int | None = state.read("registry").get("port")
    return port
