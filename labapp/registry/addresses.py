"""Where a registry is: host names, this machine's own names, and what counts as the same place."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import psutil

from labapp.reference import DOCKER_HUB

_HUB_HOST = "registry-1.docker.io"
"""The host that speaks for Docker Hub; ``docker.io``, as references name it, serves web pages."""


def url_of(address: str, *, secure: bool | None = None) -> str:
    """Return the URL of a registry, without a path.

    Args:
        address: host and port as in a reference, such as ``localhost:41233`` or ``docker.io``.
        secure: whether to speak HTTPS; by default except on this machine, as docker does.
    """
    host = (urlsplit(f"//{address}").hostname or "").lower()
    scheme = "https" if (not is_loopback(host) if secure is None else secure) else "http"
    if address == DOCKER_HUB:
        return f"{scheme}://{_HUB_HOST}"
    # Windows spends two seconds on [::1] before it tries 127.0.0.1, where the registry is.
    reach = address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
    return f"{scheme}://{reach}"


def is_loopback(host: str) -> bool:
    """Tell if a host name or address is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(url: str) -> bool:
    """Tell if a URL leads to this machine itself, by a loopback name or its own address."""
    host = (urlsplit(url).hostname or "").lower()
    return is_loopback(host) or any(
        host == one.address for found in psutil.net_if_addrs().values() for one in found
    )


def same_address(one: str, other: str) -> bool:
    """Tell if two addresses lead to the same registry, for all names of this machine."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    local = is_loopback(host.strip("[]")) and is_loopback(other_host.strip("[]"))
    return one == other or (local and port == other_port)


def same_origin(one: str, other: str) -> bool:
    """Tell if two URLs have the same scheme, host and port, so that one's secrets fit the other."""
    first, second = urlsplit(one), urlsplit(other)
    ports = [url.port or {"http": 80, "https": 443}.get(url.scheme) for url in (first, second)]
    hosts = [(url.hostname or "").lower() for url in (first, second)]
    same_host = hosts[0] == hosts[1] or all(map(is_loopback, hosts))
    return first.scheme == second.scheme and same_host and ports[0] == ports[1]
