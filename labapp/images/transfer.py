"""What pushes and pulls have in common: the stream of events, and the registry's side."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labapp.engine import Engine
from labapp.errors import DamagedContent, LabError, RegistryError, RegistryUnreachable
from labapp.feedback import Bars
from labapp.manifests import Index, Manifest, Platform
from labapp.reference import DEFAULT_TAG, Reference
from labapp.registry import BlobDamage, Registry
from labapp.registry.addresses import is_loopback, same_address
from labapp.registry.credentials import Credentials
from labapp.registry.server import RegistryServer

START = "'python3 -m labapp status' tells whether it runs, 'python3 -m labapp start' starts it."

PATIENCE = 10.0
"""Seconds for which a registry may be silent before a transfer is given up."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

_REFUSALS = (
    (
        r"no such host",
        "Check the registry's name, before the first '/', and the network.",
    ),
    (
        r"connection refused",
        "The machine is there, and no registry listens at that port. Is it right? The lab's own "
        "registry is started by 'python3 -m labapp start'.",
    ),
    (
        r"certificate signed by unknown authority|certificate is not trusted",
        "The engine does not trust the authority that signed the registry's certificate. If you "
        "know whose it is, put its certificate into the engine's folder 'certs.d', then try again.",
    ),
    (
        r"certificate has expired or is not yet valid",
        "Look at the clock of the engine's machine; if it is right, whoever runs the registry has "
        "to renew its certificate.",
    ),
    (
        r"certificate is (?:not )?valid for|doesn't contain any IP SANs|not valid for any names",
        "The certificate is for another host. Use the name that it was made for; if this is the "
        "name, something else answers in its place.",
    ),
    (
        r"access to the resource is denied|insufficient_scope|no basic auth credentials",
        "The account that is logged in has no right to that, or nobody is logged in. Log in with "
        "'docker login' as one that has it, or ask the repository's owner for the right.",
    ),
    (
        r"unauthorized: |401 Unauthorized",
        "The registry does not know that account, or its password is another. Log in anew with "
        "'docker login'.",
    ),
)
"""What engines say of a registry that doesn't let them in, and what to do."""


@dataclass(frozen=True)
class Login:
    """An account at a registry, for the engine to push and pull with.

    Attributes:
        registry: the client that is logged in with the same account.
        config: the folder of docker's configuration that keeps the login.
        credentials: name and password; None for nobody.
    """

    registry: Registry
    config: Path
    credentials: Credentials | None = None

    def command(self, *words: str) -> list[str]:
        """Return a docker command line that uses the login."""
        return ["docker", "--config", str(self.config), *words]

    @property
    def auth_config(self) -> dict[str, str]:
        """The login as the Docker SDK takes it; nothing of what it finds elsewhere is added."""
        if self.credentials is None:
            return {}
        return {"username": self.credentials.username, "password": self.credentials.password}


class Refused(Exception):
    """The engine ended a stream with an error."""


@dataclass
class Told:
    """What the engine told of a transfer.

    Attributes:
        ends: maps a layer's last status to its outcome.
        registry: the registry, where it can be asked whether it is still there.
        outcomes: of each layer, by the start of its digest.
        digest: of the manifest.
    """

    ends: dict[str, str]
    registry: Registry | None
    outcomes: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    def read(self, events: Generator[dict[str, Any]], bars: Bars) -> None:
        """Take all events of a stream.

        Raises:
            Refused: the last of them is an error, or the registry is gone.
        """
        with closing(events):
            self._read(events, bars)

    def _read(self, events: Generator[dict[str, Any]], bars: Bars) -> None:
        silent_since = None
        for event in events:
            if "error" in event:
                detail = event.get("errorDetail") or {}
                raise Refused(str(detail.get("message") or event["error"]))
            key, status = event.get("id", ""), event.get("status", "")
            if status.startswith("Retrying in"):
                silent_since = None if self._answers() else silent_since or time.monotonic()
                if silent_since and time.monotonic() - silent_since >= PATIENCE:
                    raise Refused(f"silent for {PATIENCE:.0f} s")
            progress = event.get("progressDetail") or {}
            outcome = next((self.ends[end] for end in self.ends if status.startswith(end)), None)
            if outcome is not None:
                self.outcomes[key] = outcome
                bars.finish(key, outcome)
            elif "progressDetail" in event and key:
                now, total = progress.get("current") or 0, progress.get("total") or None
                bars.update(key, now, total, status.lower())
            elif found := _DIGEST.search(status):
                self.digest = found[0]
            if "aux" in event and isinstance(event["aux"], dict):
                self.digest = event["aux"].get("Digest", self.digest)

    def _answers(self) -> bool:
        try:
            if self.registry is not None:
                self.registry.ping()
        except RegistryUnreachable:
            return False
        except RegistryError:
            pass
        return True

    def outcome(self, *digests: str) -> str | None:
        """Return a layer's outcome; the engine names layers by the start of one of its digests."""
        keys = [digest.partition(":")[2][:12] for digest in digests]
        return next((self.outcomes[key] for key in keys if key in self.outcomes), None)


def with_tag(reference: Reference | str) -> Reference:
    """Read a reference; one without tag and digest means ``latest``, as for docker."""
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    if reference.tag is None and reference.digest is None:
        return reference.with_tag(DEFAULT_TAG)
    return reference


def checkable(
    server: RegistryServer | None, reference: Reference, doing: str, failure: type[LabError]
) -> Registry | None:
    """Return a client of a registry on this machine that answers without a login, else None."""
    host = reference.registry.rpartition(":")[0] or reference.registry
    if not is_loopback(host.strip("[]")):
        return None
    registry = Registry(reference.registry)
    try:
        registry.ping()
    except RegistryUnreachable as error:
        raise failure(
            f"{doing}: nothing answers at the registry '{reference.registry}'. {START}"
        ) from error
    except RegistryError as error:
        if is_own(server, registry):
            raise failure(f"{doing}: {error}") from error
        return None
    return registry


def is_own(server: RegistryServer | None, registry: Registry) -> bool:
    """Tell whether a registry is the lab's own."""
    return server is not None and same_address(server.address, registry.address)


@contextmanager
def translated(doing: str, failure: type[LabError]) -> Iterator[None]:
    """Turn what the registry refuses inside the block into the transfer's own error."""
    try:
        yield
    except RegistryError as error:
        raise failure(f"{doing}: {error}") from error


def manifest_for(
    engine: Engine, registry: Registry, reference: Reference, identifier: str
) -> tuple[str, Manifest]:
    """Return the digest that an identifier leads to, and the manifest for the engine's platform."""
    found = registry.manifest(reference.repository, identifier)
    digest = found.digest
    if isinstance(found, Index):
        entry = found.for_platform(Platform.parse(engine.platform))
        found = registry.manifest(reference.repository, entry.digest)
    if isinstance(found, Index):
        raise DamagedContent(f"the index {digest} leads to another index, not to an image")
    return digest, found


def refusal_advice(cause: str) -> str:
    """Return what to do where the registry did not let the engine in; empty for another cause."""
    return next((advice for words, advice in _REFUSALS if re.search(words, cause)), "")


def listed(damage: Sequence[BlobDamage]) -> str:
    """Return damaged blobs as messages name them."""
    return ", ".join(map(str, damage))
