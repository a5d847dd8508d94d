"""The container engine: found on this machine, or the lab's own; and the client that talks to it.

An engine is looked for in this order, and the first place that applies decides:

1. ``DOCKER_HOST``: who sets it means it, so nothing else is tried.
2. The lab's own engine, if this lab has started one before: its images are there.
3. The current docker context.
4. The sockets where Docker Desktop, Colima, Rancher Desktop, OrbStack, rootless Docker and Podman
   listen.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors
import requests
import urllib3
from docker.models.images import Image

from labapp.engine import own_engine
from labapp.engine import packages as engine_packages
from labapp.engine.places import Place, advice, how_it_fails, is_loopback, places
from labapp.errors import EngineError, EngineLost, EngineNotFound, LabError
from labapp.feedback import Feedback
from labapp.state import State

PROBE_SECONDS = 10
"""How long an engine may take to answer the first question."""

UNANSWERED = (docker.errors.DockerException, requests.RequestException, OSError, ValueError)
"""What an attempt to reach an engine raises; a ValueError is for an address that is none."""

CALL_SECONDS = 900
"""How long an engine may be silent in one call: an import of a large image says nothing."""


@dataclass(frozen=True)
class Engine:
    """A container engine that answered.

    Attributes:
        client: the Docker SDK's client of this engine.
        host: its address, as ``DOCKER_HOST`` names it.
        source: where it was found: ``DOCKER_HOST``, ``docker context``, ``socket`` or
            ``the lab's own``.
        name: ``Docker`` or ``Podman``.
        version: the engine's version.
        api: the version of the Docker API that it speaks.
        platform: what its containers run on by default, ``linux/amd64``.
        store: how it keeps images: ``classic``, ``containerd`` or ``podman``.
        builder: what builds: ``buildx`` and its version, or ``classic``.
        data_root: the folder of its images and volumes, on the machine it runs on.
        variables: the environment variables by which the docker command line reaches it.
        labels: what everything that this lab makes on the engine carries.
    """

    client: docker.DockerClient = field(repr=False, compare=False)
    host: str
    source: str
    name: str
    version: str
    api: str
    platform: str
    store: str
    builder: str
    data_root: str
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environment(self) -> dict[str, str]:
        """Return this process's environment with what makes ``docker`` talk to this engine."""
        return {**os.environ, **self.variables}

    def describe(self) -> str:
        """Return the engine in one line."""
        return (
            f"{self.name} {self.version} ({self.platform}, {self.store} image store, "
            f"{self.builder} builder) at {self.host}, found by {self.source}"
        )

    def is_alive(self) -> bool:
        """Tell whether the engine still answers."""
        try:
            return bool(self.client.ping())
        except (docker.errors.DockerException, requests.RequestException, OSError):
            return False

    def image(self, reference: str) -> Image | None:
        """Return an image that the engine holds, by any of its names; None when it has none."""
        try:
            return self.client.images.get(reference)
        except docker.errors.NotFound:  # Podman's answer is no ImageNotFound.
            return None

    @contextlib.contextmanager
    def doing(self, what: str, failure: type[LabError] = EngineError) -> Iterator[None]:
        """Turn what the SDK raises inside the block into the lab's errors.

        Args:
            what: the work in words, with its input in quotes: ``"removing 'x'"``.
            failure: the error to raise when the engine refuses.

        Raises:
            EngineLost: the engine does not answer any more.
        """
        try:
            yield
        except docker.errors.APIError as error:
            raise failure(f"{what}: the engine says: {error.explanation or error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if self.is_alive():
                raise failure(f"{what}: the engine broke off the answer: {error}") from error
            raise EngineLost(
                f"{what}: the engine at '{self.host}' does not answer any more. "
                "'python3 -m labapp start' starts it again where the lab can."
            ) from error
        except docker.errors.DockerException as error:
            raise failure(f"{what}: {error}") from error


def find(state: State, *, environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine that this lab works with; nothing is started.

    Args:
        state: the lab's own files.
        environ: the environment that names the engine.

    Raises:
        EngineNotFound: none answers; each place that was tried is told with its cause.
    """
    tried = []
    for place in places(environ, own=own_engine.host(state)):
        try:
            return _connect(place, state.labels)
        except UNANSWERED as error:
            cause = how_it_fails(place, error, environ)
            tried.append(f"  - {place.source} '{place.host}': {cause}")
            first = error
    raise EngineNotFound(
        "looking for a container engine: none answers.\n" + "\n".join(tried)
    ) from first


def start(state: State, *, feedback: Feedback, environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine that this lab works with; install and start one if there is none.

    Args:
        state: the lab's own files.
        feedback: where progress is told.
        environ: the environment that names the engine.

    Raises:
        EngineNotFound: no engine answers, and the lab cannot start one on this machine.
        EngineError: the lab's own engine could not be installed or started.
    """
    try:
        return find(state, environ=environ)
    except EngineNotFound as error:
        named = environ.get("DOCKER_HOST")
        if named and named != f"unix://{own_engine.socket(state)}":
            raise
        reason = own_engine.can_start()
        if reason is not None:
            raise EngineNotFound(
                f"{error}\nThe lab starts none itself: {reason}\n{advice()}"
            ) from error
    if not own_engine.is_installed():
        engine_packages.install(feedback=feedback)
        # The package may have started the system's engine.
        with contextlib.suppress(EngineNotFound):
            return find(state, environ=environ)
    own_engine.start(state, feedback=feedback)
    return find(state, environ=environ)


def stop(state: State, *, feedback: Feedback) -> None:
    """Stop the engine if it is the lab's own; any other is left alone."""
    if own_engine.host(state) is not None:
        own_engine.stop(state, feedback=feedback)


def _connect(place: Place, labels: Mapping[str, str]) -> Engine:
    options: dict[str, Any] = {"base_url": place.host, "use_ssh_client": True}
    if place.tls is not None:
        options["tls"] = place.tls
    # A version that is given keeps the constructor from asking, so a proxy can be ruled out first.
    probe = docker.APIClient(version="1.41", timeout=PROBE_SECONDS, **options)
    probe.trust_env = not is_loopback(place.host)
    with contextlib.closing(probe):
        version = probe.version(api_version=False)
        info = probe.info()
    client = docker.DockerClient(version=version["ApiVersion"], timeout=CALL_SECONDS, **options)
    client.api.trust_env = probe.trust_env
    components = {part.get("Name") for part in version.get("Components") or ()}
    podman = "Podman Engine" in components
    return Engine(
        client=client,
        host=place.host,
        source=place.source,
        name="Podman" if podman else "Docker",
        version=version["Version"],
        api=version["ApiVersion"],
        platform=f"{version['Os']}/{version['Arch']}",
        store="podman" if podman else _store(info),
        # Podman speaks the classic build API, and not that of BuildKit.
        builder="classic" if podman else _builder(place.variables),
        data_root=info.get("DockerRootDir") or "",
        variables=place.variables,
        labels=labels,
    )


def _store(info: Mapping[str, Any]) -> str:
    for pair in info.get("DriverStatus") or ():
        if list(pair) == ["driver-type", "io.containerd.snapshotter.v1"]:
            return "containerd"
    return "classic"


def _builder(variables: Mapping[str, str]) -> str:
    try:
        answer = subprocess.run(
            ["docker", "buildx", "version"],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "classic"
    version = re.search(r"buildx v?(\d+\.\d+)", answer.stdout)
    return f"buildx {version[1]}" if answer.returncode == 0 and version else "classic"


def tar_of(files: Mapping[str, bytes], *, mode: int = 0o644) -> bytes:
    """Return a tar archive of some files, by their names in it; the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
