"""What this machine is asked: which ports are free, and whether something is so by now."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import requests

LOOPBACK = "127.0.0.1"

PORTS = range(20000, 30000)
"""Where a free one is looked for: below what systems hand out to outgoing connections."""

T = TypeVar("T")


def free_port(*, host: str = LOOPBACK) -> int:
    """Return a port of an address of this machine that nothing has just now."""
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            return port
    raise OSError(f"no port of {PORTS} is free")


def wait_until(ready: Callable[[], T], *, seconds: float, every: float = 0.1) -> T:
    """Ask again and again until the answer is truthy or the time is over; return the last one."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()) and time.monotonic() < deadline:
        time.sleep(every)
    return answer


def ask(
    url: str,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    authority: Path | None = None,
) -> requests.Response:
    """Ask a program on this machine: no proxy and no password file has a part in it.

    ``authority`` is whom to trust for its TLS, a PEM file.
    """
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(authority) if authority else True
        return session.get(url, headers=headers, timeout=seconds)
