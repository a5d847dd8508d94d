"""Where a container engine may listen on this machine, and why one that should does not answer."""

from __future__ import annotations

import getpass
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker.errors
import docker.utils
import requests
import requests.utils
from docker.context import ContextAPI


@dataclass(frozen=True)
class Place:
    """An address where an engine may answer.

    Attributes:
        host: the address, as ``DOCKER_HOST`` names it.
        source: what named it: ``DOCKER_HOST``, ``docker context``, ``socket``, ``the lab's own``.
        tls: the SDK's TLS settings, if the address needs any.
        variables: the environment variables by which the docker command line reaches it.
    """

    host: str
    source: str
    tls: Any = field(default=None, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict)


def places(environ: Mapping[str, str], *, own: str | None) -> Iterator[Place]:
    """Yield the places to try, in order; the first that applies may be the only one.

    Args:
        environ: the environment that names the engine.
        own: the address of the lab's own engine, if this lab has started one before.
    """
    named = environ.get("DOCKER_HOST")
    if named:
        found = docker.utils.kwargs_from_env(environment=dict(environ))
        source = "the lab's own" if named == own else "DOCKER_HOST"
        yield Place(named, source, found.get("tls"), {"DOCKER_HOST": named})
        return
    if own is not None:
        yield Place(own, "the lab's own", variables={"DOCKER_HOST": own})
        return
    context = _context(environ)
    yield context
    for host in _well_known(environ):
        if host != context.host:
            yield Place(host, "socket", variables={"DOCKER_HOST": host})


def _context(environ: Mapping[str, str]) -> Place:
    name = environ.get("DOCKER_CONTEXT") or None
    source = "docker context"
    try:
        context = ContextAPI.get_context(name)
    except Exception:
        # The SDK raises a bare Exception for a damaged context file.
        context = None
    if context is None or not context.Host:
        return Place(f"(context {name})", source)
    host = context.Host.removeprefix("http+")
    if context.name == "default":
        return Place(host, source, variables={"DOCKER_HOST": host})
    if context.TLSConfig is not None:
        # Keys and certificates lie in the context, where only its name leads to.
        return Place(host, source, context.TLSConfig, {"DOCKER_CONTEXT": context.name})
    return Place(host, source, variables={"DOCKER_HOST": host})


def _well_known(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the addresses of the usual engines that exist on this machine."""
    if sys.platform == "win32":
        for name in ("docker_engine", "dockerDesktopLinuxEngine", "podman-machine-default"):
            if os.path.exists(rf"\\.\pipe\{name}"):  # noqa: PTH110 (a pipe is not a path)
                yield f"npipe:////./pipe/{name}"
        return
    home = Path.home()
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    temporary = Path(environ.get("TMPDIR") or "/tmp")
    machine = home / ".local/share/containers/podman/machine"
    for path in (
        Path("/var/run/docker.sock"),
        runtime / "docker.sock",  # rootless Docker
        home / ".docker/run/docker.sock",  # Docker Desktop on macOS
        home / ".docker/desktop/docker.sock",  # Docker Desktop on Linux
        home / ".colima/default/docker.sock",
        config / "colima/default/docker.sock",
        home / ".rd/docker.sock",  # Rancher Desktop
        home / ".orbstack/run/docker.sock",
        runtime / "podman/podman.sock",  # rootless Podman
        Path("/run/podman/podman.sock"),
        machine / "podman.sock",  # Podman on macOS
        machine / "qemu/podman.sock",
        temporary / "podman/podman-machine-default-api.sock",
    ):
        try:
            if path.is_socket():
                yield f"unix://{path}"
        except OSError:
            continue


def is_loopback(host: str) -> bool:
    """Tell whether an engine's address is on this machine, where no proxy belongs in between."""
    name = urlsplit(host).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def proxy_for(host: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the variable and address of the proxy that stands before an engine, if one does."""
    address = urlsplit(host)
    if address.scheme not in {"tcp", "http", "https"} or is_loopback(host):
        return None
    if requests.utils.should_bypass_proxies(f"http://{address.netloc}", no_proxy=None):
        return None
    secure = address.scheme == "https" or bool(environ.get("DOCKER_TLS_VERIFY"))
    for name in ("https_proxy" if secure else "http_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if environ.get(variable):
                return variable, environ[variable]
    return None


def how_it_fails(place: Place, error: Exception, environ: Mapping[str, str]) -> str:
    """Return why a place does not answer and what to do, in one line.

    Args:
        place: where the engine was asked.
        error: what the attempt raised.
        environ: the environment that names the engine.
    """
    if place.host.startswith("(context"):
        return "there is no such context, or it is damaged. 'docker context ls' lists them."
    proxy = proxy_for(place.host, environ)
    if proxy is not None:
        variable, address = proxy
        name = urlsplit(place.host).hostname
        return (
            f"the question went through the proxy '{address}' that {variable} names, and "
            f"failed. Add '{name}' to NO_PROXY if the engine is inside your network."
        )
    if place.host.startswith("unix://"):
        return _how_a_socket_fails(Path(place.host.removeprefix("unix://")), error)
    if place.host.startswith("tcp://"):
        return _how_a_name_fails(place.host, error)
    return f"{error}"


def _how_a_socket_fails(path: Path, error: Exception) -> str:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
    except FileNotFoundError:
        return (
            f"there is no socket '{path}': the engine that makes it is not installed, "
            "or not started."
        )
    except PermissionError:
        user = getpass.getuser()
        return (
            f"the socket is there, but the user '{user}' may not use it. On Linux: "
            f"'sudo usermod -aG docker {user}', then log out and in again."
        )
    except ConnectionRefusedError:
        return "the socket is there, but no engine listens on it: it ended. Start it again."
    except OSError as cause:
        return f"{cause.strerror or cause}."
    return f"something listens there, but does not answer as an engine: {error}"


def _how_a_name_fails(host: str, error: Exception) -> str:
    address = urlsplit(host)
    try:
        with socket.create_connection((address.hostname or "", address.port or 2375), timeout=5):
            return f"something listens there, but does not answer as an engine: {error}"
    except socket.gaierror:
        return (
            f"the name '{address.hostname}' does not resolve. Correct the address, or unset it: "
            "the lab then looks for an engine on this machine."
        )
    except ConnectionRefusedError:
        return "nothing listens at this port. Start the engine there, or correct the address."
    except OSError as cause:
        return f"{cause.strerror or cause}."
    except ValueError as cause:
        return f"not an address: {cause}."


def advice() -> str:
    """Return what to install on this system to have an engine."""
    again = "Then run 'python3 -m labapp start' again."
    if sys.platform == "darwin":
        return (
            "Install and start Docker Desktop, or 'brew install colima docker docker-buildx' "
            f"and 'colima start'. {again}"
        )
    if sys.platform == "win32":
        return f"Install and start Docker Desktop, or Podman Desktop. {again}"
    return (
        "Install an engine with your system's packages: 'sudo apt-get install docker.io' on "
        "Debian and Ubuntu, 'sudo dnf install podman' and 'systemctl --user start podman.socket' "
        f"on Fedora. {again}"
    )
