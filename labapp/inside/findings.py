"""What an attacker looks for: tools that widen what he can do, and forgotten secrets.

Of a secret only where it is, is kept. Looked at are text files of up to 256 KiB where people put
things, and files whose names are known for secrets. Not looked at: what a distribution's package
brought, folders of libraries (such as ``site-packages`` and ``node_modules``), archives, databases
and programs, larger files, texts that are only conspicuous by their randomness, and the image's
config (``ENV``, build arguments).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any

from labapp.errors import RegistryError

TOOLS = {
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

_GENERIC = {"sh", "ash", "cc", "c++"}
"""Names that tell less than another name of the same file; else the shortest tells best."""
_PROGRAM = re.compile(r"/(?:(?:usr/|usr/local/)?s?bin|opt/[^/]+/bin)/([^/]+)")
MAX_NAMES = 20_000
_MAX_LINKS = 40
"""As many symbolic links as Linux follows (path_resolution(7))."""


def tools(paths: Iterable[str], link: Callable[[str], str | None]) -> list[tuple[str, str, str]]:
    """Find the tools among programs: name, kind, and the file behind all links.

    Several names of one file count once a kind. ``link`` tells where a symbolic link leads: empty
    if the path is none, None if it is not there.
    """
    patterns = {kind: re.compile(pattern) for kind, pattern in TOOLS.items()}
    names: dict[tuple[str, str], list[str]] = {}
    alike = [
        (program, kind)
        for program in filter(None, map(_PROGRAM.fullmatch, paths))
        for kind, pattern in patterns.items()
        if pattern.fullmatch(program[1])
    ]
    if len(alike) > MAX_NAMES:
        raise RegistryError(
            f"looking for tools: more than {MAX_NAMES:,} paths are named so. Take another image."
        )
    for program, kind in alike:
        if real := resolve(program[0], link):
            names.setdefault((kind, real), []).append(program[1])
    found = [
        (min(known, key=lambda name: (name in _GENERIC, len(name), name)), kind, real)
        for (kind, real), known in names.items()
    ]
    return sorted(found, key=lambda tool: (tool[1], tool))


def resolve(path: str, link: Callable[[str], str | None]) -> str | None:
    """Follow symbolic links, folders included, within the image; None for one to nothing."""
    rest = path.split("/")[::-1]
    at, followed = "", 0
    while rest:
        part = rest.pop()
        if part == "..":
            at = at.rpartition("/")[0]
        elif part not in ("", "."):
            target = link(f"{at}/{part}")
            if not target:
                at = f"{at}/{part}"
                continue
            followed += 1
            if followed > _MAX_LINKS:
                return None
            rest += target.split("/")[::-1]
            at = "" if target.startswith("/") else at
    return None if link(at) is None else at


# --- secrets

MAX_FILE_BYTES = 256 * 1024
MAX_LINE = 2_000

_KEYS = ("/id_rsa", "/id_dsa", "/id_ecdsa", "/id_ed25519")
_NAMED = dict.fromkeys(_KEYS, ("Private Key", rb"PRIVATE KEY")) | {
    "/.netrc": ("Login in .netrc", rb"\bpassword\s+\S"),
    "/.pypirc": ("Login in .pypirc", rb"(?m)^\s*password\s*[=:]\s*\S"),
    "/.git-credentials": ("Login in .git-credentials", rb"://[^/\s]+@"),
    "/.aws/credentials": ("AWS Access Key", rb"aws_secret_access_key\s*=\s*\S"),
    "/.docker/config.json": ("Registry login", rb'"(?:auth|identitytoken)"\s*:\s*"[^"]'),
}
"""Names that tell what the whole file is for, and what is in it where it holds a secret."""

_LOOKED_INTO = ("/.npmrc", "/.env", ".pem", ".key", *_NAMED)
"""Endings of files that are looked at wherever they are."""
_LIBRARIES = re.compile(
    r"/etc/nsswitch\.conf|/(?:usr/(?:lib|lib32|lib64|libexec|share|include|bin|sbin|games)|lib"
    r"|lib64|bin|sbin|boot|dev|proc|sys|var/(?:lib|cache|log))/"
    r"|.*/(?:site-packages|dist-packages|node_modules|vendor|python3\.\d+|\.git|\.cache)/"
)
_TOKENS = """
    akia asia ghp_ gho_ ghu_ ghs_ ghr_ glpat- npm_ _authtoken pypi- sk- sk_live rk_live sg. xox eyj
    accountkey=
"""
_KEYWORDS = """
    passw passphrase pwd secret token api_key apikey private_key privatekey access_key accesskey
    credential
"""
_SUSPICIOUS = re.compile(
    "|".join(
        [
            *map(re.escape, _TOKENS.split()),
            rf"(?:{'|'.join(_KEYWORDS.split())})[\w\-\"'\]]{{0,40}}\s{{0,8}}[:=]",
            r"begin [\w ]{0,20}private key",
            r"://[^/\s:]{1,80}:[^@\s]{1,80}@",
        ]
    ).encode()
)
"""What is in every suspicious line, in small letters."""

_PLUGINS = """
    aws:AWSKeyDetector azure_storage_key:AzureStorageKeyDetector basic_auth:BasicAuthDetector
    github_token:GitHubTokenDetector gitlab_token:GitLabTokenDetector jwt:JwtTokenDetector
    keyword:KeywordDetector npm:NpmDetector openai:OpenAIDetector private_key:PrivateKeyDetector
    pypi_token:PypiTokenDetector sendgrid:SendGridDetector slack:SlackDetector stripe:StripeDetector
"""
"""Those of detect-secrets that go by more than randomness."""


Secret = tuple[str, int | None, str]
"""Where a secret is: the file, the line from 1 (None: all of the file), and its kind."""


def is_looked_at(path: str, length: int) -> bool:
    """Tell if a file of so many bytes is looked at; see the module's text for what is not."""
    if not 0 < length <= MAX_FILE_BYTES:
        return False
    return _LIBRARIES.match(path) is None or path.endswith(_LOOKED_INTO)


def suspicious_lines(path: str, content: bytes) -> list[tuple[int | None, str]]:
    """Return the lines (number, text) that deserve the close look, which takes longer.

    A whole file that is suspicious by its name comes with the number None and its kind as text.
    """
    if b"\0" in content:
        return []
    for ending, (kind, pattern) in _NAMED.items():
        if path.endswith(ending) and re.search(pattern, content):
            return [(None, kind)]
    lowered = content.lower()
    if not _SUSPICIOUS.search(lowered):
        return []
    lines = zip(content.splitlines(), lowered.splitlines(), strict=True)
    return [
        (number, line.decode("utf-8", "replace"))
        for number, (line, small) in enumerate(lines, 1)
        if len(line) <= MAX_LINE and _SUSPICIOUS.search(small)
    ]


def secrets(suspicious: Mapping[str, list[tuple[int | None, str]]]) -> list[Secret]:
    """Look closely at suspicious lines, by path, with what detect-secrets knows."""
    plugins = [resolve_name(f"detect_secrets.plugins.{name}")() for name in _PLUGINS.split()]
    found = [
        (path, number, kind)
        for path, lines in suspicious.items()
        for number, line in lines
        for kind in ([line] if number is None else _kinds(path, line, plugins))
    ]
    return list(dict.fromkeys(found))


def _kinds(path: str, line: str, plugins: list[Any]) -> Iterator[str]:
    from detect_secrets.filters import heuristic

    if heuristic.is_indirect_reference(line):
        return
    harmless = (
        heuristic.is_templated_secret,
        heuristic.is_sequential_string,
        heuristic.is_not_alphanumeric_string,
        heuristic.is_prefixed_with_dollar_sign,
    )
    # Settings have other rules than programs.
    name = path if re.search(r"\.\w+$", path) and "/.env" not in path else f"{path}.ini"
    for plugin in plugins:
        for secret in plugin.analyze_line(filename=name, line=line, line_number=0):
            value = secret.secret_value or ""
            if not any(is_harmless(value) for is_harmless in harmless):
                yield secret.type
                break
