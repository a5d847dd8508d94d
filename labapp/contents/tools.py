"""Programs that widen what an attacker can do: shells, compilers, package managers, clients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

KINDS = {
    "shell": r"sh|bash|dash|ash|zsh|fish|r?ksh(?:93)?|mksh|csh|tcsh|busybox|toybox",
    "compiler": (
        r"(?:\w+-linux-\w+-)?(?:cc|c\+\+|gcc|g\+\+|cpp|clang|clang\+\+|gfortran|as)(?:-[\d.]+)?"
        r"|tcc|rustc|go|javac|ghc|make"
    ),
    "package manager": (
        r"apt|apt-get|dpkg|aptitude|apk|rpm|yum|dnf|microdnf|tdnf|zypper|pacman|opkg"
        r"|pip(?:[\d.]+)?|pipx|uv|poetry|conda|mamba|micromamba|npm|yarn|pnpm|gem|cargo|composer"
    ),
    "network client": (
        r"curl|wget2?|nc|ncat|netcat|nc\.(?:openbsd|traditional)|socat|telnet|ssh|scp|sftp|ftp|tftp"
        r"|rsync|lynx|w3m|aria2c|git"
    ),
}
"""Names of programs; the language's own name is not among them, as the application needs it."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
_GENERIC = {"sh", "ash", "cc", "c++"}
"""Names that tell less than another name of the same file; else the shortest tells best."""

_PROGRAM = re.compile(
    r"/(?:bin|sbin|usr/bin|usr/sbin|usr/local/bin|usr/local/sbin|opt/[^/]+/bin)/[^/]+"
)
_MAX_LINKS = 40
"""As many symbolic links as Linux follows (path_resolution(7))."""


class Tool(NamedTuple):
    """A program: the name that tells what it is, what it is, and the file behind all links."""

    name: str
    kind: str
    path: str


def find(paths: list[str], link: Callable[[str], str | None]) -> list[Tool]:
    """Find the tools among programs; several names of one file count once a kind.

    Args:
        paths: what a container sees, without folders.
        link: the target of a path that is a symbolic link; empty if it is there and none, None if
            it is not there.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        program = _PROGRAM.fullmatch(path)
        for kind, pattern in _PATTERNS.items() if program else ():
            if pattern.fullmatch(path, path.rindex("/") + 1) and (real := resolve(path, link)):
                names.setdefault((kind, real), []).append(path.rpartition("/")[2])
    found = [
        Tool(min(known, key=lambda name: (name in _GENERIC, len(name), name)), kind, real)
        for (kind, real), known in names.items()
    ]
    return sorted(found, key=lambda tool: (tool.kind, tool.name, tool.path))


def resolve(path: str, link: Callable[[str], str | None]) -> str | None:
    """Follow symbolic links, folders included, within the image.

    Returns:
        The path of what is there; None for a link to nothing, or in a circle.
    """
    rest = [part for part in path.split("/") if part]
    at, followed = "", 0
    while rest:
        part = rest.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        target = link(f"{at}/{part}")
        if not target:
            if target is None and not rest:
                return None
            at = f"{at}/{part}"
            continue
        followed += 1
        if followed > _MAX_LINKS:
            return None
        rest = target.split("/") + rest
        at = "" if target.startswith("/") else at
    return at or "/"
