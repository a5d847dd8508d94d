"""Ports of this machine: which are free."""

from __future__ import annotations

import random
import re
import socket

LOOPBACK = "127.0.0.1"

PORTS = range(20000, 30000)
"""Where a free one is looked for: below what systems hand out to outgoing connections."""

_TAKEN = re.compile(
    r"address already in use|port is already allocated|ports are not available|"
    r"only one usage of each socket address",
    re.IGNORECASE,
)


def says_taken(message: str) -> bool:
    """Tell whether an engine's error says that a port it should publish is taken."""
    return _TAKEN.search(message) is not None


def is_listening(port: int, *, host: str = LOOPBACK) -> bool:
    """Tell whether a program listens on a port of an address of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def free_port(*, host: str = LOOPBACK) -> int:
    """Return a port of an address of this machine that no program listens on just now."""
    return next(port for port in random.sample(PORTS, len(PORTS)) if _is_free(port, host))


def _is_free(port: int, host: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
