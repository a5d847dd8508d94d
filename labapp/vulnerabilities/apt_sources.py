"""Which mirrors an image's own apt configuration names for its security updates.

Source: sources.list(5), "One-line-style format" and "deb822-style format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from debian.deb822 import Deb822

from labapp.errors import VulnerabilityError

_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s*(.*)")
_FIELD = re.compile(r"^(types|uris|suites)\s*:", re.IGNORECASE | re.MULTILINE)
_CODENAME = re.compile(r"\(([a-z]+)\)")


@dataclass(frozen=True)
class Release:
    """A release of Debian: its number (``13``) and its codename (``trixie``)."""

    number: str
    codename: str


@dataclass(frozen=True)
class Suite:
    """A suite on a mirror, as in ``deb http://… trixie-security main``."""

    mirror: str
    name: str
    components: tuple[str, ...]


def release(os_release: Mapping[str, str]) -> Release:
    """Return which Debian an image is.

    Args:
        os_release: the fields of its ``/etc/os-release`` (os-release(5)).

    Raises:
        VulnerabilityError: it isn't Debian, or a testing one, which has no number yet.
    """
    name = os_release.get("PRETTY_NAME") or os_release.get("ID") or "a system without os-release"
    number = os_release.get("VERSION_ID", "")
    match = _CODENAME.search(os_release.get("VERSION", ""))
    codename = os_release.get("VERSION_CODENAME") or (match[1] if match else "")
    if os_release.get("ID") != "debian" or not number or not codename:
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the image is '{name}', and only releases of Debian "
            "have them. Take Grype or Trivy for it."
        )
    return Release(number, codename)


def security_suites(texts: Iterable[str], release: Release) -> tuple[Suite, ...]:
    """Return the release's security suite, once for each mirror that the configuration names.

    Args:
        texts: the files ``sources.list`` and ``sources.list.d/*``, in either form.
        release: of the image.

    Raises:
        VulnerabilityError: there is none, so that nothing can be told.
    """
    names = security_names(release.codename)
    found = [suite for text in texts for suite in _suites(text) if suite.name in names]
    if not found:
        raise VulnerabilityError(
            f"looking up Debian's own fixes: the image's apt configuration names no mirror with "
            f"'{release.codename}-security', so nobody can tell which fixes it lacks. Name the "
            "image that it was built on, or take a snapshot, Grype or Trivy."
        )
    return tuple(dict.fromkeys(found))


def security_names(codename: str) -> frozenset[str]:
    """Return the names of a release's security suite; until Debian 10 it had a slash in it."""
    return frozenset({f"{codename}-security", f"{codename}/updates"})


def _suites(text: str) -> Iterator[Suite]:
    for uri, name, components in _deb822(text) if _FIELD.search(text) else _one_line(text):
        # What comes from a disc or a folder of the image can't be read from here.
        if uri.startswith(("http://", "https://")):
            yield Suite(uri.rstrip("/"), name.rstrip("/"), components)


def _one_line(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in text.splitlines():
        if match := _ONE_LINE.fullmatch(line.partition("#")[0].strip()):
            yield match[1], match[2], tuple(match[3].split())


def _deb822(text: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for stanza in Deb822.iter_paragraphs(text.splitlines()):
        enabled = stanza.get("Enabled", "yes").strip().lower() not in ("no", "false", "0", "off")
        if enabled and "deb" in stanza.get("Types", "").split():
            for uri in stanza.get("URIs", "").split():
                for name in stanza.get("Suites", "").split():
                    yield uri, name, tuple(stanza.get("Components", "").split())
