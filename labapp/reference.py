"""Image references: ``registry/repository:tag@digest``, read and printed as docker does.

Source: the grammar in the package documentation of https://github.com/distribution/reference,
and its rules for short names (``python`` is ``docker.io/library/python``).

Three slips that the grammar lets through are refused here, because docker fails on them later with
a message that names something else: a port above 65535, a digest algorithm that no registry
serves, and a first part in upper case (``Shop/web``), which newer engines take for a host name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from labapp.errors import InvalidReference

DOCKER_HUB = "docker.io"
"""The registry of references that name none."""

DEFAULT_TAG = "latest"
"""The tag that docker means when a reference has neither tag nor digest."""

_OFFICIAL = "library/"
_LONGEST_NAME = 255
_LONGEST_TAG = 128
_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://+")
_HOST = re.compile(r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True)
class Reference:
    """Which image is meant: by tag, by digest, by both, or by neither.

    Attributes:
        registry: host and port, such as ``localhost:41233``; ``docker.io`` is Docker Hub.
        repository: the path in that registry, such as ``shop/web``.
        tag: a label that can move, such as ``1.4``.
        digest: ``sha256:`` and 64 hexadecimal digits, which can't.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        try:
            _check_parts(self.registry, self.repository, self.tag, self.digest)
        except _Slip as slip:
            raise _invalid(str(self), slip) from None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference the way docker reads it.

        Args:
            text: such as ``python:3.13``, ``localhost:41233/shop/web`` or ``shop/web@sha256:…``.

        Raises:
            InvalidReference: it is not a reference; the message says what is wrong with it.
        """
        try:
            parts = _split(text)
            _check_parts(*parts)
        except _Slip as slip:
            raise _invalid(text, slip) from None
        return cls(*parts)

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
        if (slash and _is_registry(first)) or _IDENTIFIER.fullmatch(short):
            return f"{DOCKER_HUB}/{self.repository}"
        return short

    @property
    def identifier(self) -> str:
        """What a registry is asked for: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def is_pinned(self) -> bool:
        """Whether the reference names its image by digest."""
        return self.digest is not None

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
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


class _Slip(ValueError):
    """What is wrong with a text, and what to write instead."""


def _invalid(text: str, slip: _Slip) -> InvalidReference:
    return InvalidReference(f"reading the image reference '{text}': {slip}.")


def _is_registry(first: str) -> bool:
    """Whether docker takes the part before the first slash for a registry."""
    return "." in first or ":" in first or "[" in first or first == "localhost"


def _split(text: str) -> tuple[str, str, str | None, str | None]:
    """Return registry, repository, tag and digest, not checked yet."""
    _check_whole(text)
    name, at, digest = text.partition("@")
    if at and not digest:
        raise _Slip("the digest after the '@' is empty; add 'sha256:…', or drop the '@'")
    if "@" in digest:
        raise _Slip("it has two digests; an image has one, leave one out")
    if digest.count(":") > 1:
        raise _Slip("a tag follows the digest; the tag comes first: 'repository:tag@sha256:…'")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    if not head + last:
        raise _Slip("the repository is missing; write it first: 'shop/web:1.0'")
    if not last:
        raise _Slip("it ends in a slash; add the repository after it, or drop the slash")
    if ":" in tag:
        tags = "' and '".join(tag.split(":"))
        raise _Slip(f"it has two tags, '{tags}'; an image is named by one, leave one out")
    if colon and not tag:
        raise _Slip("the tag after the ':' is empty; add a tag, or drop the ':'")
    first, _, rest = (head + slash + last).partition("/")
    if rest and _is_registry(first):
        registry, repository = first, rest
    else:
        registry, repository = DOCKER_HUB, head + slash + last
    if registry == "index.docker.io":
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository, tag or None, digest or None


def _check_whole(text: str) -> None:
    if not text.strip():
        raise _Slip("it is empty; write one such as 'shop/web:1.0'")
    if text != text.strip():
        raise _Slip("a space stands before or after it; take it away")
    if any(character.isspace() for character in text):
        raise _Slip("it has a space in it; take it away, and put options before the image")
    if scheme := _SCHEME.match(text):
        raise _Slip(
            f"'{scheme[0]}' is in front; a reference is no URL, write '{text[scheme.end() :]}'"
        )
    if text.startswith("-"):
        raise _Slip("it begins with '-', like an option; begin with the registry or repository")
    if "\\" in text:
        raise _Slip("it has a backslash; parts are separated by '/'")
    if _IDENTIFIER.fullmatch(text):
        raise _Slip(
            "64 hexadecimal digits are an image ID; for a digest, "
            f"write 'repository@sha256:{text[:8]}…'"
        )


def _check_parts(registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    _check_registry(registry)
    _check_repository(repository)
    length = len(f"{registry}/{repository}")
    if length > _LONGEST_NAME:
        raise _Slip(
            f"registry and repository together have {length} characters; "
            f"at most {_LONGEST_NAME} are allowed, shorten the repository"
        )
    if tag is not None:
        _check_tag(tag)
    if digest is not None:
        _check_digest(digest)


def _check_registry(registry: str) -> None:
    if registry.startswith("["):
        host, bracket, port = registry[1:].partition("]")
        try:
            scope = ipaddress.IPv6Address(host).scope_id
        except ValueError:
            scope = host
        if scope or not bracket or (port and not port.startswith(":")):
            raise _Slip(f"'{registry}' is no IPv6 address with a port; write it like '[::1]:41233'")
        colon, port = port[:1], port[1:]
    else:
        host, colon, port = registry.partition(":")
        if ":" in port:
            raise _Slip(
                f"the registry '{registry}' has two ':'; "
                "an IPv6 address goes into brackets, as in '[::1]:41233'"
            )
        if not all(_HOST.fullmatch(label) for label in host.split(".")):
            raise _Slip(
                f"'{host}' is no host name; it has letters, digits, and '-' or '.' between them"
            )
    if colon and not port:
        raise _Slip("the port after the registry's ':' is empty; write it, or drop the ':'")
    if colon and not (port.isascii() and port.isdigit()):
        raise _Slip(
            f"'{port}' is no port number; a port has digits only, "
            "and a tag comes last, after the last slash"
        )
    if colon and (len(port) > 5 or int(port) > 65535):
        raise _Slip(f"there is no port {port}; the highest one is 65535")


def _check_repository(repository: str) -> None:
    if ":" in repository:
        raise _Slip("a ':' is in the middle of the repository; a tag comes after the last slash")
    if repository != repository.lower():
        raise _Slip(
            "the repository has upper-case letters; "
            f"repositories are lower case, write '{repository.removeprefix(_OFFICIAL).lower()}'"
        )
    for component in repository.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if not component:
            raise _Slip("there is nothing between two slashes; take one slash away")
        if odd := re.search(r"[^a-z0-9._-]", component):
            raise _Slip(
                f"'{odd[0]}' is not allowed in a repository; "
                "it has a-z, 0-9, and '.', '_' or '-' between them"
            )
        if not component[0].isalnum() or not component[-1].isalnum():
            raise _Slip(
                f"the part '{component}' begins or ends with a separator; "
                "'.', '_' and '-' go between letters or digits"
            )
        raise _Slip(
            f"the part '{component}' has separators side by side; "
            "only '__' and any number of '-' are allowed"
        )


def _check_tag(tag: str) -> None:
    if len(tag) > _LONGEST_TAG:
        raise _Slip(f"the tag has {len(tag)} characters; at most {_LONGEST_TAG} are allowed")
    if odd := re.search(r"[^a-zA-Z0-9_.-]", tag):
        raise _Slip(f"'{odd[0]}' is not allowed in a tag; it has letters, digits, '_', '.' and '-'")
    if not _TAG.fullmatch(tag):
        raise _Slip(f"the tag '{tag}' has a wrong beginning; begin it with a letter, digit or '_'")


def _check_digest(digest: str) -> None:
    algorithm, colon, value = digest.partition(":")
    if not colon:
        raise _Slip(f"'{digest}' is no digest; write the algorithm too, 'sha256:' and 64 digits")
    if algorithm not in _HEX_DIGITS:
        raise _Slip(
            f"'{algorithm}' is no digest algorithm of registries; "
            "they use sha256, seldom sha384 or sha512, in lower case"
        )
    if odd := re.search(r"[^a-f0-9]", value):
        what = "in upper case" if odd[0] in "ABCDEF" else "no hexadecimal digit"
        raise _Slip(f"'{odd[0]}' in the digest is {what}; it has 0-9 and a-f only")
    if len(value) != _HEX_DIGITS[algorithm]:
        raise _Slip(
            f"the digest has {len(value)} digits after '{algorithm}:'; "
            f"it needs {_HEX_DIGITS[algorithm]}, copy all of it"
        )
