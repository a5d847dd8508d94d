"""The packages of Debian and Ubuntu that make a container engine, and base images for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from labapp.feedback import Feedback
from labapp.system import apt_packages
from labapp.system.privileges import program

NEEDED = ("docker.io", "iproute2", "mmdebstrap", "mount", "procps")
"""The last two bring ``umount`` and ``kill``, which the smallest systems lack."""

WELCOME = (
    "docker-cli",
    "docker-buildx",
    "docker-compose",
    "docker-compose-v2",
    "iptables",
    "ca-certificates",
)
"""Packages that not every distribution has, or has inside another one."""


def install(*, feedback: Feedback) -> None:
    """Install the distribution's engine, and what the lab needs to build base images.

    Args:
        feedback: where progress is told.

    Raises:
        EngineError: apt failed.
    """
    feedback.say("No container engine answers: installing the distribution's docker.io.")
    apt_packages.refresh(feedback=feedback)
    wanted = wanted_packages(
        apt_packages.candidates([*NEEDED, *WELCOME]),
        installed={name for name in ("dockerd", "docker") if program(name)},
        ubuntu="ubuntu" in apt_packages.distribution(),
    )
    apt_packages.install(wanted, feedback=feedback)


def wanted_packages(
    offered: Mapping[str, str], *, installed: Collection[str], ubuntu: bool
) -> list[str]:
    """Return the packages to install on a distribution.

    Args:
        offered: the packages that it has, with their versions.
        installed: which of the programs ``dockerd`` and ``docker`` are there already.
        ubuntu: whether it is Ubuntu, where the keys of Debian's archive come extra.
    """
    wanted = [*NEEDED, *(["debian-archive-keyring"] if ubuntu else [])]
    if "dockerd" in installed:
        wanted.remove("docker.io")
    for name in WELCOME:
        # Before version 2, docker-compose is a program of its own and no plugin of docker.
        version = re.match(r"(?:\d+:)?(\d+)", offered.get(name, ""))
        too_old = name == "docker-compose" and version is not None and int(version[1]) < 2
        there = name == "docker-cli" and "docker" in installed
        if name in offered and not too_old and not there:
            wanted.append(name)
    return wanted
