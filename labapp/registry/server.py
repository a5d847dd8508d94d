"""The lab's registry: CNCF Distribution in a container of the lab, its storage in a volume.

Source: the paths in the volume are those of CNCF Distribution 2 and 3, registry/storage/paths.go.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import docker.errors
from docker.models.containers import Container
from docker.types import LogConfig

from labapp import feedback
from labapp.errors import RegistryError, RegistryUnreachable
from labapp.machine.engine import OWNER_LABEL, Engine, owner, tar_of
from labapp.machine.ports import LOOPBACK, free_port, is_listening, says_taken
from labapp.machine.waiting import wait_until
from labapp.registry.client import Registry
from labapp.registry.manifests import digest_of
from labapp.state import ROLE_LABEL, State

CONFIG = Path(__file__).parents[2] / "dockerfiles" / "registry" / "config.yml"
CONFIG_LABEL = "labapp.registry.config"
CONFIG_INSIDE = "/etc/labapp/registry.yml"
PORT_INSIDE = "5000/tcp"
PORT_TRIES = 5
START_SECONDS = 30.0

STORAGE = "/var/lib/registry"
"""Where the registry has its files, in its container."""

CONTENT = f"{STORAGE}/docker/registry/v2"

# Removes the uploads none of whose files was written to in the last $2 minutes, and names them.
_PURGE = """
cd "$1" 2>/dev/null || exit 0
find . -type d -path "*/_uploads/*" -prune | while read -r upload; do
    [ -n "$(find "$upload" -type f -mmin "-$2" | head -n 1)" ] && continue
    rm -rf "$upload" && echo "${upload#./}"
done
"""


class RegistryServer:
    """A registry of one lab on one engine; ``name`` is that of its container and its volume."""

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
        """Prepare to work with a registry; the engine is not asked yet.

        ``kind`` is part of its name and its role, and names its record; its port is opened on
        ``host``; ``advice`` says in errors how to start it.
        """
        self.name = f"labapp-{kind}-{state.lab_id}"
        self._engine, self._state, self._kind = engine, state, kind
        self._host, self._client, self._advice = host, client, advice
        self._bound = LOOPBACK if host == "localhost" else host
        self._labels = {**state.labels, ROLE_LABEL: kind}

    @property
    def address(self) -> str:
        """Host and port; RegistryUnreachable if it has never been started."""
        return self._at(int(self._recorded("port")))

    @property
    def image(self) -> str:
        """The engine's name of the image that it runs; RegistryUnreachable if it never did."""
        return self._recorded("image")

    def is_running(self) -> bool:
        """Tell whether the registry's container runs."""
        container = self._container()
        return container is not None and container.status == "running"

    def registry(self) -> Registry:
        """Return the client of the running registry; RegistryUnreachable if it does not run."""
        address = self.address
        if not self.is_running():
            raise RegistryUnreachable(
                f"finding the lab's registry '{address}': its container '{self.name}' does not "
                f"run. {self._advice}"
            )
        return self._client(address)

    def start(
        self, *, image: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> Registry:
        """Make the registry run and answer, whatever state it was left in.

        One that runs is left alone. Where it did not run, nobody can be in mid-upload: half uploads
        are removed. ``image`` is the engine's name of an image of CNCF Distribution, by default as
        last time; ``files`` go into the container, which is made anew when they change.
        """
        image = image or self.image
        files = files or {CONFIG_INSIDE: CONFIG.read_bytes()}
        made_of = digest_of(b"".join(files.values()))
        note = "Another process of this lab is starting the registry; waiting for it."
        with self._state.lock(self._kind, waiting=lambda: feedback.say(note)):
            container = self._container()
            if container is not None and not self._is_usable(container, image, made_of):
                self._discard(container)
                container = None
            if container is None or container.status != "running":
                if self._make_volume():
                    # Before it runs: a push that waits for it begins anew as soon as it answers.
                    found = container.attrs["Image"] if container else image
                    self.purge_uploads(image=found)
                if container is not None:
                    feedback.command(["docker", "start", self.name])
                create = functools.partial(self._create, image, files, made_of)
                container = self._run(container, create)
                self._await(container)
                feedback.say(f"The registry runs at {self._at(_port_of(container))}.")
            port = _port_of(container)
            self._state.write(self._kind, {"port": port, "image": image})
            return self._client(self._at(port))

    def stop(self) -> None:
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
                # The next one has the same port, if it can.
                self._state.write(self._kind, {"port": self._state.read(self._kind).get("port")})

    def logs(self, *, since: datetime | None = None) -> bytes:
        """Return what the registry's container has logged, from a moment on."""
        with self._engine.doing(f"reading the log of '{self.name}'"):
            container = self._container()
            return container.logs(since=since and since.timestamp()) if container else b""

    def storage(self, argv: Sequence[str], *, image: str | None = None) -> str:
        """Run a command over the registry's files; see :func:`run_over`."""
        return run_over(
            self._engine, self.name, argv, image=image or self.image, labels=self._state.labels
        )

    def purge_uploads(self, *, older_than: float = 0.0, image: str | None = None) -> list[str]:
        """Remove half uploads, which stay when a push is cut off, and return their paths.

        Nothing may have been written to one for ``older_than`` seconds, in whole minutes.
        """
        minutes = str(math.ceil(older_than / 60))
        argv = ["sh", "-c", _PURGE, "purge", f"{CONTENT}/repositories", minutes]
        return self.storage(argv, image=image).splitlines()

    def discard_blobs(self, digests: Iterable[str]) -> None:
        """Remove the bytes of damaged blobs, so that the next push stores them anew.

        CNCF Distribution never writes over a blob that it has; that is why a push over a damaged
        one says "Layer already exists" and heals nothing.
        """
        parts = [digest.partition(":") for digest in digests]
        paths = [f"{CONTENT}/blobs/{kind}/{value[:2]}/{value}" for kind, _, value in parts]
        if paths:
            self.storage(["rm", "-rf", *paths])

    def _at(self, port: int) -> str:
        return f"{self._host}:{port}"

    def _recorded(self, name: str) -> str:
        found = self._state.read(self._kind).get(name)
        if found is None:
            raise RegistryUnreachable(
                f"finding the registry '{self.name}': it has never been started. {self._advice}"
            )
        return str(found)

    def _container(self) -> Container | None:
        with self._engine.doing(f"looking for the registry '{self.name}'"):
            try:
                return self._engine.client.containers.get(self.name)
            except docker.errors.NotFound:
                return None

    def _is_usable(self, container: Container, image: str, made_of: str) -> bool:
        """Tell if a container can be left or started: of these files and image, not hung."""
        if container.labels.get(CONFIG_LABEL) != made_of or not _port_of(container):
            return False
        with self._engine.doing(f"looking at the image '{image}'"):
            found = self._engine.image(image)
        runs = container.attrs["Image"].removeprefix("sha256:")
        if found is not None and str(found.id).removeprefix("sha256:") != runs:
            return False
        if container.status != "running":
            return container.status == "exited"  # one that was only created may have no config
        return self._answers(container)

    def _answers(self, container: Container) -> bool:
        with contextlib.suppress(RegistryError):
            self._client(self._at(_port_of(container))).ping()
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
        volumes = self._engine.client.volumes
        with self._engine.doing(f"making the registry's volume '{self.name}'"):
            try:
                volumes.get(self.name)
                return True
            except docker.errors.NotFound:
                volumes.create(self.name, labels=self._labels)
                return False

    def _run(self, container: Container | None, create: Callable[[int], Container]) -> Container:
        """Start the container, or a new one where its port has been taken meanwhile."""
        port = self._state.read(self._kind).get("port")
        taken: list[int] = []
        while len(taken) < PORT_TRIES:
            container = container or create(port or free_port(host=self._bound))
            port = _port_of(container)
            if not is_listening(port, host=self._bound) and self._start(container):
                if taken:
                    feedback.say(
                        f"Another program has taken port {taken[0]}: the registry is now at "
                        f"{self._at(port)}. Images named by the old address have to be tagged anew."
                    )
                return container
            taken.append(port)
            self._discard(container)
            container = port = None
        raise RegistryError(
            f"starting the registry '{self.name}': the ports {taken} are all taken. "
            "Free one of them, then run 'python3 -m labapp start'."
        )

    def _create(self, image: str, files: Mapping[str, bytes], made_of: str, port: int) -> Container:
        with _making(self._engine, image, f"making the registry's container '{self.name}'"):
            container = self._engine.client.containers.create(
                image,
                command=["serve", CONFIG_INSIDE],
                name=self.name,
                labels=self._labels | {CONFIG_LABEL: made_of},
                ports={PORT_INSIDE: (self._bound, port)},
                volumes={self.name: {"bind": STORAGE, "mode": "rw"}},
                log_config=LogConfig(type="json-file", config={"max-size": "20m", "max-file": "2"}),
            )
            container.put_archive(
                "/", tar_of({path.lstrip("/"): data for path, data in files.items()})
            )
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

    def _await(self, container: Container) -> None:
        """Wait until a registry that was started answers."""

        def ended() -> bool:
            container.reload()
            return self._answers(container) or container.status != "running"

        with self._engine.doing(f"looking at the registry '{self.name}'"):
            if wait_until(ended, seconds=START_SECONDS, every=0.05) and self._answers(container):
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
    with _making(engine, image, doing):
        container = engine.client.containers.create(
            image,
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


@contextlib.contextmanager
def _making(engine: Engine, image: str, doing: str) -> Iterator[None]:
    """Turn the engine's errors into the lab's, and say what to do where it lacks the image."""
    try:
        with engine.doing(doing, RegistryError):
            yield
    except RegistryError as error:
        if not isinstance(error.__cause__, docker.errors.ImageNotFound):
            raise
        raise RegistryError(
            f"{doing}: the engine has no image '{image}'. 'python3 -m labapp start' makes it."
        ) from error


def _port_of(container: Container) -> int:
    """Return the port of this machine that leads to a registry's container; 0 if none does."""
    bindings = container.attrs["HostConfig"].get("PortBindings") or {}
    return next((int(bound["HostPort"] or 0) for bound in bindings.get(PORT_INSIDE) or ()), 0)


def port_in(state: State) -> int | None:
    """Return the port of a lab's registry; None if it has never been started."""
    port = state.read("registry").get("port")
    return port if isinstance(port, int) else None
