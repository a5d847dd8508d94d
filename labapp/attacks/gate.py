"""The policy gate: what stands between a deployment file and the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from labapp.deployments.deployment_file import read_deployment
from labapp.errors import DeploymentError, InvalidReference, NotInRegistry
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.addresses import same_address


@dataclass(frozen=True)
class Refusal:
    """Why one service of a deployment file is refused.

    Attributes:
        service: its name.
        line: where its image stands, from 1.
        image: as it is written.
        reason: in words.
    """

    service: str
    line: int
    image: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, service '{self.service}', image '{self.image}': {self.reason}"


def refusals(
    file: Path, *, allowed: Sequence[str] = (), registry: Registry | None = None
) -> list[Refusal]:
    """Return what a gate would refuse in a deployment file; empty when it may pass.

    Args:
        file: the deployment file.
        allowed: patterns, such as ``localhost:41233/shop/*``, of which each image's registry and
            repository must fit one; by default any will do.
        registry: asked whether it has the digests that name it; by default nobody is asked.

    Raises:
        DeploymentError: the file can't be read or understood.
    """
    found = []
    for service in read_deployment(file).services:
        reason = _reason(service.image, allowed, registry)
        if reason:
            found.append(Refusal(service.name, service.image_line, service.image, reason))
    return found


def gate(file: Path, *, allowed: Sequence[str] = (), registry: Registry | None = None) -> None:
    """Let a deployment file pass, or refuse it; for the arguments see :func:`refusals`.

    Raises:
        DeploymentError: it is refused; the message lists every service with the reason.
    """
    found = refusals(file, allowed=allowed, registry=registry)
    if found:
        listed = "\n".join(f"  - {refusal}" for refusal in found)
        raise DeploymentError(
            f"passing '{file}' through the gate: refused.\n{listed}\n"
            "Pin what is not pinned ('lab.pin_deployment'), then try again."
        )


def _reason(image: str, allowed: Sequence[str], registry: Registry | None) -> str:
    try:
        reference = Reference.parse(image)
    except InvalidReference as error:
        return f"it is no reference: {error}"
    if reference.digest is None:
        named = f"the tag '{reference.tag}'" if reference.tag else "no tag, so 'latest'"
        return f"not pinned: it names {named}, which may be another image tomorrow"
    name = f"{reference.registry}/{reference.repository}"
    if allowed and not any(fnmatchcase(name, pattern) for pattern in allowed):
        return f"not allowed: only {', '.join(allowed)} may be deployed here"
    if registry is not None and same_address(reference.registry, registry.address):
        try:
            registry.manifest_bytes(reference.repository, reference.digest)
        except NotInRegistry:
            return "the registry has no such digest"
    return ""
