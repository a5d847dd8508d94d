"""The container engine: found on this machine, or the lab's own; and the client that talks to it.

An engine is looked for in this order, and the first place that applies decides:

1. ``DOCKER_HOST``: who sets it means it, so nothing else is tried.
2. The lab's own engine, if this lab has started one before: its images are there.
3. The current docker context, which Docker Desktop, Colima, Rancher Desktop and OrbStack set.
4. The sockets of rootless Docker and of Podman, which set neither.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import platform
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker
import docker.constants
import docker.errors
import docker.utils
import requests
import urllib3
from docker.context import ContextAPI
from docker.models.containers import Container
from docker.models.images import Image
from docker.utils.config import find_config_file

from labapp.errors import EngineError, EngineLost, EngineNotFound, LabError, on_a_full_disk
from labapp.machine import own_engine
from labapp.state import ROLE_LABEL, State

OWNER_LABEL = "labapp.owner"
"""The process that waits for a one-shot container: ``host:pid``."""

START = "'python3 -m labapp start'"

PIPE_ERROR: type[Exception] = getattr(sys.modules.get("pywintypes"), "error", OSError)
"""What the SDK raises for a named pipe, on Windows, where no engine answers: no OSError."""

SET_ASIDE = ("DOCKER_API_VERSION", "DOCKER_DEFAULT_PLATFORM", "DOCKER_TLS_VERIFY")
"""Variables that would lead the docker command another way than the lab, and so are emptied."""

# What the SDK makes of JSON that is something else than it should be.
_GARBLED = (KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Engine:
    """A container engine that answered.

    Attributes:
        source: what named it: ``DOCKER_HOST``, ``docker context``, ``socket``, ``the lab's own``.
        name: ``Docker`` or ``Podman``.
        platform: what its containers run on by default, ``linux/amd64``.
        store: how it keeps images: ``classic``, ``containerd`` or ``podman``.
        data_root: the folder of its images and volumes, on the machine it runs on.
        rootless: whether it runs as an ordinary user.
        variables: the environment variables by which the docker command line reaches it.
        labels: what everything that this lab makes on the engine carries.
    """

    client: docker.DockerClient = field(repr=False, compare=False)
    host: str
    source: str
    name: str
    version: str
    platform: str
    store: str
    data_root: str
    rootless: bool = False
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environment(self) -> dict[str, str]:
        """Return this process's environment with what makes ``docker`` talk to this engine."""
        return {**os.environ, **self.variables}

    def describe(self) -> str:
        """Return the engine in one line."""
        return (
            f"{self.name} {self.version} ({self.platform}, {self.store} image store) "
            f"at {self.host}, found by {self.source}"
        )

    @functools.cached_property
    def builder(self) -> str:
        """What ``docker build`` builds with: ``buildx`` and its version, or ``classic``."""
        command = ["docker", "buildx", "version"]
        # Podman speaks the classic build API, and not that of BuildKit.
        with contextlib.suppress(OSError):
            said = subprocess.run(command, env=self.environment(), capture_output=True)
            version = re.search(rb"buildx v?(\d+\.\d+)", said.stdout)
            if version and self.name != "Podman":
                return f"buildx {version[1].decode()}"
        return "classic"

    def is_alive(self) -> bool:
        """Tell whether the engine still answers."""
        with contextlib.suppress(docker.errors.DockerException, OSError, PIPE_ERROR):
            return bool(self.client.ping())
        return False

    def image(self, reference: str) -> Image | None:
        """Return an image that the engine holds, by any of its names; None when it has none."""
        # Podman's answer is no ImageNotFound.
        missing = contextlib.suppress(docker.errors.NotFound)
        with self.doing(f"looking for the image '{reference}'"), missing:
            return self.client.images.get(reference)
        return None

    def container(self, name: str) -> Container | None:
        """Return a container by its name, running or not; None when there is none."""
        missing = contextlib.suppress(docker.errors.NotFound)
        with self.doing(f"looking for the container '{name}'"), missing:
            return self.client.containers.get(name)
        return None

    def containers(self, labels: Mapping[str, str] | None = None) -> list[Container]:
        """Return this lab's containers, running or not, that carry these labels as well."""
        wanted = [f"{name}={value}" for name, value in {**self.labels, **(labels or {})}.items()]
        found: list[Container] = self.client.containers.list(
            all=True, filters={"label": wanted}, ignore_removed=True
        )
        return found

    @contextlib.contextmanager
    def doing(self, what: str, failure: type[LabError] = EngineError) -> Iterator[None]:
        """Turn what the SDK raises into the lab's errors; ``what`` is told: ``removing 'x'``."""
        try:
            yield
        except docker.errors.DockerException as error:
            said = getattr(error, "explanation", None) or error
            raise failure(f"{what}: the engine says: {said}{on_a_full_disk(said)}") from error
        except KeyError as error:
            # Podman refuses a push without the "message" that the SDK then misses.
            if not isinstance(error.__context__, requests.HTTPError):
                raise
            answer = error.__context__.response.text.strip()
            raise failure(f"{what}: the engine says: {answer}") from error
        except (urllib3.exceptions.HTTPError, OSError, PIPE_ERROR) as error:
            if self.is_alive():
                raise failure(f"{what}: the engine broke off the answer: {error}") from error
            raise EngineLost(
                f"{what}: the engine at '{self.host}' does not answer any more. "
                f"{START} starts it again where the lab can."
            ) from error


def find(state: State, *, environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine that this lab works with; the error tells why each place answers not."""
    told, advised = ["looking for a container engine: none answers."], False
    for host, source in places(environ, own=own_engine.host(state)):
        try:
            return _connect(host, source, state.labels)
        except (docker.errors.DockerException, OSError, PIPE_ERROR, ValueError, *_GARBLED) as error:
            cause, advice = _why(host, source, error)
            told.append(f"  - {source} '{host}': {cause} {advice}".rstrip())
            advised = advised or bool(advice)
    if not advised and (reason := own_engine.can_start()):
        told.append(
            f"The lab starts none itself: {reason}\nInstall and start one: Docker Desktop or "
            "Colima on macOS, Docker Desktop on Windows, your system's package 'docker.io' or "
            f"'podman' on Linux. Then run {START} again."
        )
    elif not advised:
        told.append(f"{START} installs and starts one.")
    raise EngineNotFound("\n".join(told))


def start(state: State, *, environ: Mapping[str, str] = os.environ) -> Engine:
    """Return the engine that this lab works with; where it can, install and start a missing one."""
    try:
        return find(state, environ=environ)
    except EngineNotFound:
        mine = f"unix://{own_engine.socket(state)}"
        if (environ.get("DOCKER_HOST") or mine) != mine or own_engine.can_start() is not None:
            raise
    if not own_engine.is_installed():
        own_engine.install()
        # The package may have started the system's engine.
        with contextlib.suppress(EngineNotFound):
            return find(state, environ=environ)
    own_engine.start(state)
    return find(state, environ=environ)


def places(environ: Mapping[str, str], *, own: str | None) -> Iterator[tuple[str, str]]:
    """Yield the addresses to try, in order, each with what named it.

    ``own`` is that of the lab's own engine if it has one. None is on another machine: there, the
    registry would be out of this one's reach.
    """
    if named := environ.get("DOCKER_HOST"):
        yield named, "the lab's own" if named == own else "DOCKER_HOST"
        return
    if own is not None:
        yield own, "the lab's own"
        return
    context = _context(environ.get("DOCKER_CONTEXT") or None)
    yield context, "docker context"
    if sys.platform == "win32":
        return
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    for path in (
        "/var/run/docker.sock",
        f"{runtime}/docker.sock",
        f"{runtime}/podman/podman.sock",
        "/run/podman/podman.sock",
        f"{environ.get('TMPDIR') or '/tmp'}/podman/podman-machine-default-api.sock",
    ):
        with contextlib.suppress(OSError):
            if Path(path).is_socket() and f"unix://{path}" != context:
                yield f"unix://{path}", "socket"


def _context(name: str | None) -> str:
    # The SDK raises a bare Exception for a damaged context file.
    with contextlib.suppress(Exception):
        if (context := ContextAPI.get_context(name)) and context.Host:
            return str(context.Host).removeprefix("http+")
    return f"(context {name})"


def _connect(host: str, source: str, labels: Mapping[str, str]) -> Engine:
    def client(version: str) -> docker.DockerClient:
        # Seconds, for the first questions.
        made = docker.DockerClient(base_url=host, version=version, timeout=10)
        made.api.trust_env = False  # No proxy belongs before an engine.
        return made

    # A version that is given keeps the constructor from asking before proxies are ruled out.
    known = docker.constants.DEFAULT_DOCKER_API_VERSION
    try:
        probe = client(known)
    except (docker.errors.InvalidConfigFile, *_GARBLED) as error:
        raise docker.errors.InvalidConfigFile(f"'{find_config_file()!s}': {error}") from error
    with contextlib.closing(probe):
        about = probe.version(api_version=False)
    # The newest that both know; never one that the engine serves no more.
    newest, oldest = about["ApiVersion"], about.get("MinAPIVersion") or known
    both = newest if docker.utils.version_lt(newest, known) else known
    found = client(oldest if docker.utils.version_lt(both, oldest) else both)
    info = found.info()
    found.api.timeout = 900  # An import of a large image says nothing for long.
    podman = any(part.get("Name") == "Podman Engine" for part in about.get("Components") or ())
    snapshots = ["driver-type", "io.containerd.snapshotter.v1"]
    containerd = snapshots in (info.get("DriverStatus") or ())
    variables = {"DOCKER_HOST": host, **dict.fromkeys(SET_ASIDE, "")}
    if podman:  # Its API has no BuildKit; a docker command that tries would start one of its own.
        variables |= {"DOCKER_BUILDKIT": "0", "CONTAINER_HOST": host}
    else:  # One that 'docker buildx create' made is a container, where "localhost" is another.
        variables["BUILDX_BUILDER"] = "default"
    return Engine(
        client=found,
        host=host,
        source=source,
        name="Podman" if podman else "Docker",
        version=about["Version"],
        platform=f"{about['Os']}/{about['Arch']}",
        store="podman" if podman else "containerd" if containerd else "classic",
        data_root=info.get("DockerRootDir") or "",
        rootless=any("rootless" in str(each) for each in info.get("SecurityOptions") or ()),
        variables=variables,
        labels=labels,
    )


def _why(host: str, source: str, error: Exception) -> tuple[str, str]:
    """Return why a place does not answer; and what to do, unless only another engine helps."""
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    if host.startswith("(context"):
        return "there is no such context, or it is damaged.", "'docker context ls' lists them."
    if isinstance(cause, PermissionError):
        return "your account may not use it.", _way_in(host.removeprefix("unix://"))
    if isinstance(error, docker.errors.InvalidConfigFile):
        return f"docker's settings can't be used: {error}.", "Mend that file, or move it away."
    said = " ".join(str(getattr(error, "explanation", None) or cause).split())
    if host.startswith("ssh:") or "to an HTTPS server" in said:
        far = "Run it on the engine's own machine: the registry is out of reach from elsewhere."
        return "the lab speaks neither SSH nor TLS to an engine.", far
    if isinstance(error, (json.JSONDecodeError, *_GARBLED)):
        said = "what answers is none"
    advice = {
        "the lab's own": f"{START} starts it.",
        "DOCKER_HOST": f"Start that engine, or correct or unset DOCKER_HOST; then run {START}.",
    }
    return f"no engine answers there ({said}).", advice.get(source, "")


def _way_in(path: str) -> str:
    """Return how an account comes to use a socket: by the group that it belongs to."""
    with contextlib.suppress(ImportError, OSError, KeyError):
        import grp  # Windows has neither.
        import pwd

        about, me = Path(path).stat(), pwd.getpwuid(os.geteuid())
        group = grp.getgrgid(about.st_gid).gr_name
        news = f"Log out and in again, or run 'newgrp {group}' and the lab from there."
        if about.st_gid in {*os.getgrouplist(me.pw_name, me.pw_gid)} - {*os.getgroups()}:
            return f"You are in its group '{group}', but this session does not know yet. {news}"
        if group != "root" and about.st_mode & stat.S_IWGRP:
            return f"Join its group: 'sudo usermod -aG {group} {me.pw_name}'. {news}"
    return f"'ls -l {path}' tells who may."


def owner() -> str:
    """Return this process, as the value of :data:`OWNER_LABEL`."""
    return f"{platform.node()}:{os.getpid()}"


def remove_leftovers(engine: Engine) -> list[str]:
    """Remove the containers that an engine, a build or a client that died left; return their names.

    These are one-shot ones whose client is gone, those that were made and never started, and
    stopped ones of the classic builder. Only this lab's are touched, and, but for the one-shots,
    none that runs. Images without a tag stay: they are the cache of the learner's builds.
    """
    removed = []
    with engine.doing("looking for what earlier work left behind"):
        for container in filter(_is_left_over, engine.containers()):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
                removed.append(str(container.name))
    return removed


def _is_left_over(container: Container) -> bool:
    import psutil

    role, status = container.labels.get(ROLE_LABEL), str(container.status)
    if role == "oneshot":
        host, _, pid = container.labels[OWNER_LABEL].rpartition(":")
        return host != platform.node() or not psutil.pid_exists(int(pid))
    if role in {"run", "service"}:
        return status == "created"
    # The classic builder names the image by its ID; a person names it by a reference.
    by_id = str(container.attrs["Config"]["Image"]).startswith("sha256:")
    return by_id and status in {"created", "exited", "dead"}


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of some files, by their paths; the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
