"""Image references: ``registry/repository:tag@digest``, read and printed as docker does.

Source: the grammar in the package documentation of https://github.com/distribution/reference,
and its rules for short names (``python`` is ``docker.io/library/python``).

Three slips that the grammar lets through are refused here, because docker fails on them later with
a message that names something else: a port above 65535, a digest algorithm that no registry
serves, and a first part in upper case (``Shop/web``), which newer engines take for a host name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from labapp.errors import InvalidReference

DOCKER_HUB = "docker.io"
"""The registry of references that name none."""

DEFAULT_TAG = "latest"
"""The tag that docker means when a reference has neither tag nor digest."""

_READING = "reading the image reference"
_OFFICIAL = "library/"

_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128}")
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")

_SLIPS = (
    (r"\s*", "it is empty; write one such as 'shop/web:1.0'"),
    (r".*\s.*", "it has a space in it; take it away, and put options before the image"),
    (r"[a-zA-Z0-9+.-]+://+(.*)", "a reference is no URL; write '{}'"),
    (r"-.*", "it begins with '-', like an option; begin with the registry or repository"),
    (_IMAGE_ID.pattern, "this is an image ID; for a digest, write 'repository@sha256:…'"),
    (r"(?:.*/)?(?:[:@][^/]*)?", "there is no repository before its end, as in 'shop/web:1.0'"),
)
"""What a whole text can be instead of a reference, in this order, and what to write."""


@dataclass(frozen=True)
class Reference:
    """Which image is meant: by tag, which can move, by digest, which can't, by both, or neither."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if slip := _slip(self.registry, self.repository, self.tag, self.digest):
            raise InvalidReference(f"{_READING} '{self}': {slip}.")

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as docker does; InvalidReference says what is wrong with a text."""
        for pattern, words in _SLIPS:
            if found := re.fullmatch(pattern, text, re.DOTALL):
                raise InvalidReference(f"{_READING} '{text}': {words.format(*found.groups())}.")
        name, at, digest = text.partition("@")
        head, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        registry, _, repository = (head + slash + last).partition("/")
        if not repository or not _is_registry(registry):
            registry, repository = DOCKER_HUB, head + slash + last
        if registry == "index.docker.io":
            registry = DOCKER_HUB
        if registry == DOCKER_HUB and "/" not in repository:
            repository = _OFFICIAL + repository
        return cls(registry, repository, tag if colon else None, digest if at else None)

    @property
    def name(self) -> str:
        """Registry and repository without tag and digest, as short as docker prints them."""
        if self.registry != DOCKER_HUB:
            return f"{self.registry}/{self.repository}"
        short = self.repository.removeprefix(_OFFICIAL)
        if "/" in short:
            short = self.repository
        first, slash, _ = short.partition("/")
        # These short forms would be read back as something else.
        if (slash and _is_registry(first)) or _IMAGE_ID.fullmatch(short):
            return f"{DOCKER_HUB}/{self.repository}"
        return short

    @property
    def identifier(self) -> str:
        """What a registry is asked for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_tag(self, tag: str) -> Reference:
        """Return the same reference with another tag."""
        return replace(self, tag=tag)

    def with_digest(self, digest: str) -> Reference:
        """Return the same reference with a digest; its tag stays, for humans."""
        return replace(self, digest=digest)

    def pinned(self, digest: str) -> Reference:
        """Return ``repository@digest``, without a tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Tell if a text is a whole digest (OCI descriptor.md, "Digests") of a known algorithm."""
    return _DIGEST.fullmatch(text) is not None


def _is_registry(first: str) -> bool:
    """Whether docker takes the part before the first slash for a registry."""
    return first == "localhost" or any(sign in first for sign in ".:[")


def _is_host(registry: str) -> bool:
    """Whether a program can look for a registry there."""
    try:
        return urlsplit(f"//{registry}").port != 0 and bool(_REGISTRY.fullmatch(registry))
    except ValueError:  # an IPv6 address or a port that is none
        return False


def _slip(registry: str, repository: str, tag: str | None, digest: str | None) -> str:
    """Say what is wrong with one of the parts, and what to write instead; empty if nothing is."""
    if not _is_host(registry):
        return (
            f"'{registry}' is no host name with a port up to 65535, as in 'localhost:41233' or "
            "'[::1]:41233'; a tag comes last, after the last slash"
        )
    own = repository.removeprefix(_OFFICIAL)
    if repository != repository.lower():
        return f"repositories are lower case; write '{own.lower()}'"
    if not _REPOSITORY.fullmatch(repository):
        return (
            f"'{own}' is no repository; it has a-z and 0-9, and between them '/', '.', '_', '__' "
            "or '-'. A tag comes after the last slash"
        )
    if (length := len(f"{registry}/{repository}")) > 255:
        return f"its name has {length} characters; at most 255 are allowed"
    if tag is not None and not _TAG.fullmatch(tag):
        return (
            f"'{tag}' is no tag; that is one word of letters, digits, '_', '.' and '-', at most "
            "128, and begins with none of the last two"
        )
    if digest is not None and not is_digest(digest):
        return (
            f"'{digest}' is no digest; that is 'sha256:' and 64 hexadecimal digits in lower case "
            f"(here are {len(digest.partition(':')[2])}), and comes last. Copy all of it"
        )
    return ""
