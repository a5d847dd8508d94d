"""The lab's registry: CNCF Distribution in a container of the lab, its storage in a volume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import docker.errors
from docker.models.containers import Container
from docker.types import LogConfig

from labapp.engine import Engine
from labapp.errors import RegistryError, RegistryUnreachable
from labapp.feedback import Feedback
from labapp.manifests import digest_of
from labapp.registry import Registry
from labapp.registry.container import PORT_INSIDE, archive, port_of
from labapp.registry.storage import STORAGE, RegistryStorage, no_image
from labapp.state import ROLE_LABEL, State
from labapp.system.ports import LOOPBACK, free_port, is_listening, says_taken

CONFIG = Path(__file__).parents[2] / "dockerfiles" / "registry" / "config.yml"
CONFIG_LABEL = "labapp.registry.config"
CONFIG_INSIDE = "/etc/labapp/registry.yml"
PORT_TRIES = 5

START_SECONDS = 30.0


class RegistryServer:
    """The registry of one lab on one engine; ``name`` is that of the container and the volume.

    What another registry of the lab does in another way is in the methods up to ``_client``.
    """

    _kind = "registry"
    """Part of the container's name, its role, and where the state keeps port and image."""

    _host = LOOPBACK
    """The address of this machine that the port is opened on."""

    _never_started = (
        "finding the lab's registry: it has never been started. "
        "'python3 -m labapp start' starts it."
    )

    def __init__(self, *, engine: Engine, state: State) -> None:
        self.name = f"labapp-{self._kind}-{state.lab_id}"
        self._engine = engine
        self._state = state

    def _files(self) -> dict[str, bytes]:
        """Return what is put into the container; it is made anew when that changes."""
        return {CONFIG_INSIDE: CONFIG.read_bytes()}

    def _at(self, port: int) -> str:
        return f"localhost:{port}"

    def _client(self, address: str) -> Registry:
        return Registry(address)

    @property
    def address(self) -> str:
        """Host and port; RegistryUnreachable if it has never been started."""
        port = self._state.read(self._kind).get("port")
        if not isinstance(port, int):
            raise RegistryUnreachable(self._never_started)
        return self._at(port)

    def is_running(self) -> bool:
        """Tell whether the registry's container runs."""
        container = self._container()
        return container is not None and container.status == "running"

    def registry(self) -> Registry:
        """Return the client of the running registry.

        Raises:
            RegistryUnreachable: the registry does not run.
        """
        address = self.address
        if not self.is_running():
            raise RegistryUnreachable(
                f"finding the lab's registry '{address}': its container '{self.name}' does not "
                "run. 'python3 -m labapp start' starts it."
            )
        return self._client(address)

    def start(self, *, image: str | None = None, feedback: Feedback) -> Registry:
        """Make the registry run and answer, whatever state it was left in.

        One that runs is left alone. Where it did not run, nobody can be in mid-upload: half uploads
        are removed.

        Args:
            image: the engine's name of an image of CNCF Distribution.
            feedback: where it is told.

        Raises:
            RegistryError: the image is missing, or the registry does not come up.
            EngineLost: the engine does not answer.
        """
        image = image or self._recorded_image()
        note = "Another process of this lab is starting the registry; waiting for it."
        with self._state.lock(self._kind, waiting=lambda: feedback.say(note)):
            container = self._container()
            if container is not None and not self._is_usable(container, image):
                self._discard(container)
                container = None
            if container is not None and container.status == "running":
                return self._answering(container, image)
            if self._make_volume():
                # Before it runs: a push that waits for it begins anew as soon as it answers.
                self._storage(container.attrs["Image"] if container else image).purge_uploads()
            if container is not None:
                feedback.command(["docker", "start", self.name])
            registry = self._answering(self._run(container, image, feedback), image)
            feedback.say(f"The registry runs at {registry.address}.")
            return registry

    def stop(self, *, feedback: Feedback) -> None:
        """Stop the registry and keep its container, its log and its content."""
        container = self._container()
        if container is not None and container.status != "exited":
            feedback.command(["docker", "stop", self.name])
            with self._engine.doing(f"stopping the registry '{self.name}'"):
                container.stop(timeout=5)

    def remove(self, *, volume: bool) -> None:
        """Remove the registry's container, and its content too if ``volume`` is true."""
        with self._state.lock(self._kind):
            if container := self._container():
                self._discard(container)
            if volume:
                with (
                    self._engine.doing(f"removing the registry's volume '{self.name}'"),
                    contextlib.suppress(docker.errors.NotFound),
                ):
                    self._engine.client.api.remove_volume(self.name)
                port = self._state.read(self._kind).get("port")
                self._state.write(self._kind, {"port": port})

    def logs(self, *, since: datetime | None = None) -> bytes:
        """Return what the registry's container has logged, from a moment on."""
        with self._engine.doing(f"reading the log of '{self.name}'"):
            container = self._container()
            return container.logs(since=since and since.timestamp()) if container else b""

    def storage(self, argv: Sequence[str]) -> str:
        """Run a command over the registry's files; see :meth:`RegistryStorage.run`."""
        return self._storage().run(argv)

    def purge_uploads(self, *, older_than: float = 0.0) -> list[str]:
        """Remove half uploads; see :meth:`RegistryStorage.purge_uploads`."""
        return self._storage().purge_uploads(older_than=older_than)

    def discard_blobs(self, digests: Iterable[str]) -> None:
        """Remove damaged blobs; see :meth:`RegistryStorage.discard_blobs`."""
        self._storage().discard_blobs(digests)

    def _storage(self, image: str | None = None) -> RegistryStorage:
        image = image or self._recorded_image()
        return RegistryStorage(self._engine, self._state, volume=self.name, image=image)

    def _recorded_image(self) -> str:
        image = self._state.read("registry").get("image")
        if not isinstance(image, str):
            raise RegistryUnreachable(self._never_started)
        return image

    def _made_of(self) -> str:
        return digest_of(b"".join(self._files().values()))

    def _labels(self) -> dict[str, str]:
        return {**self._state.labels, ROLE_LABEL: self._kind}

    def _container(self) -> Container | None:
        with self._engine.doing(f"looking for the registry '{self.name}'"):
            try:
                return self._engine.client.containers.get(self.name)
            except docker.errors.NotFound:
                return None

    def _is_usable(self, container: Container, image: str) -> bool:
        """Tell if a container can be left or started: of this configuration and image, not hung."""
        made_for = container.labels.get(CONFIG_LABEL)
        if made_for != self._made_of() or not port_of(container):
            return False
        with (
            self._engine.doing(f"looking at the image '{image}'"),
            contextlib.suppress(docker.errors.ImageNotFound),
        ):
            found = self._engine.client.images.get(image).id or ""
            if found.removeprefix("sha256:") != container.attrs["Image"].removeprefix("sha256:"):
                return False
        if container.status != "running":
            return container.status == "exited"  # one that was only created may have no config
        with contextlib.suppress(RegistryError):
            self._client(self._at(port_of(container))).ping()
            return True
        return False

    def _discard(self, container: Container) -> None:
        with (
            self._engine.doing(f"removing the registry's container '{self.name}'"),
            contextlib.suppress(docker.errors.NotFound),
        ):
            container.remove(force=True, v=True)

    def _make_volume(self) -> bool:
        """Make the volume; return whether it was there before."""
        client = self._engine.client
        with self._engine.doing(f"making the registry's volume '{self.name}'"):
            try:
                client.volumes.get(self.name)
                return True
            except docker.errors.NotFound:
                client.volumes.create(self.name, labels=self._labels())
                return False

    def _run(self, container: Container | None, image: str, feedback: Feedback) -> Container:
        """Start the container, or a new one where its port has been taken meanwhile."""
        taken: set[int] = set()
        while len(taken) < PORT_TRIES:
            if container is None:
                container = self._create(image, self._choose_port(taken))
            port = port_of(container)
            if not is_listening(port, host=self._host) and self._start(container):
                if taken:
                    feedback.say(
                        f"Another program has taken port {min(taken)}: the registry is now at "
                        f"{self._at(port)}. Images named by the old address have to be tagged anew."
                    )
                return container
            taken.add(port)
            self._discard(container)
            container = None
        raise RegistryError(
            f"starting the registry '{self.name}': the ports {sorted(taken)} are all taken. "
            "Free one of them, then run 'python3 -m labapp start'."
        )

    def _choose_port(self, taken: set[int]) -> int:
        port = self._state.read(self._kind).get("port")
        return port if isinstance(port, int) and port not in taken else free_port(host=self._host)

    def _create(self, image: str, port: int) -> Container:
        with self._engine.doing(f"making the registry's container '{self.name}'", RegistryError):
            try:
                container = self._engine.client.containers.create(
                    image,
                    command=["serve", CONFIG_INSIDE],
                    name=self.name,
                    labels=self._labels() | {CONFIG_LABEL: self._made_of()},
                    ports={PORT_INSIDE: (self._host, port)},
                    volumes={self.name: {"bind": STORAGE, "mode": "rw"}},
                    log_config=LogConfig(
                        type="json-file", config={"max-size": "20m", "max-file": "2"}
                    ),
                )
            except docker.errors.ImageNotFound as error:
                raise no_image(f"starting the registry '{self.name}'", image) from error
            container.put_archive("/", archive(self._files()))
        return container

    def _start(self, container: Container) -> bool:
        """Start a container; return False if its port is taken."""
        with self._engine.doing(f"starting the registry '{self.name}'", RegistryError):
            try:
                container.start()
            except docker.errors.APIError as error:
                if says_taken(str(error.explanation)):
                    return False
                raise
        return True

    def _answering(self, container: Container, image: str) -> Registry:
        """Wait until the registry answers, and remember where."""
        port = port_of(container)
        self._state.write(self._kind, {"port": port, "image": image})
        registry = self._client(self._at(port))
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                registry.ping()
                return registry
            except RegistryError as error:
                with self._engine.doing(f"looking at the registry '{self.name}'"):
                    container.reload()
                    if container.status == "running" and time.monotonic() < end:
                        time.sleep(0.05)
                        continue
                    log = container.logs(tail=12).decode("utf-8", "replace").strip()
                raise RegistryError(
                    f"starting the registry '{registry.address}': it does not answer. Its log "
                    f"ends with:\n{log}\n'docker logs {self.name}' shows all of it."
                ) from error
