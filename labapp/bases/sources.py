"""Where base images come from, and what they are called and labelled.

=========  ========================================================================
source     what it is
=========  ========================================================================
mirror     an instructor's registry with the same ``base/…`` images (LABAPP_MIRROR)
hub        the public images, pulled by the engine; another prefix: LABAPP_HUB
debian     Debian packages, put together on this machine
=========  ========================================================================
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import docker.errors

from labapp import images
from labapp.engine import Engine
from labapp.errors import BaseError, LabError
from labapp.feedback import Feedback
from labapp.images.builds import build
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.state import ROLE_LABEL, State

REGISTRY = "registry"
NAMES = (REGISTRY, "python:3.13", "python:3.13-slim")
"""The base images: the registry's own, and by their public names the two of the chapters."""

SOURCES = {
    "mirror": "the instructor's mirror",
    "hub": "Docker Hub",
    "debian": "Debian packages",
}

SOURCE_LABEL = "labapp.base.source"
"""The label that says where a base image comes from: ``docker-hub`` or ``debian-packages``."""

SOURCE_VARIABLE = "LABAPP_BASES"
MIRROR_VARIABLE = "LABAPP_MIRROR"
HUB_VARIABLE = "LABAPP_HUB"
HUB = "docker.io/library"

_HUB_NAMES = {REGISTRY: "registry:3"}
_RATE_LIMIT = re.compile(r"toomanyrequests|too many requests|\b429\b|rate limit", re.IGNORECASE)


def place(name: str) -> tuple[str, str]:
    """Return the repository and the tag of a base image in the lab's registry."""
    repository, _, tag = name.partition(":")
    return f"base/{repository}", tag or "lab"


def labels(state: State, origin: str, *, title: str) -> dict[str, str]:
    """Return the labels of a base image.

    Args:
        state: the lab's own files.
        origin: the value of :data:`SOURCE_LABEL`.
        title: what it is, in words.
    """
    return {
        **state.labels,
        ROLE_LABEL: "base",
        SOURCE_LABEL: origin,
        "org.opencontainers.image.title": title,
    }


def order(source: str) -> list[str]:
    """Return the sources to try, in order.

    Args:
        source: one of :data:`SOURCES`, or ``auto``, which leaves the choice to LABAPP_BASES, and
            without it means all of them; the mirror only where one is named.

    Raises:
        BaseError: there is no such source, or it is the mirror and none is named.
    """
    asked = source
    if asked == "auto":
        asked = os.environ.get(SOURCE_VARIABLE) or "auto"
    has_mirror = bool(os.environ.get(MIRROR_VARIABLE))
    if asked == "auto":
        return [name for name in SOURCES if name != "mirror" or has_mirror]
    if asked not in SOURCES:
        raise BaseError(
            f"choosing the base images' source '{asked}': there is none of that name. "
            f"Take one of auto, {', '.join(SOURCES)}."
        )
    if asked == "mirror" and not has_mirror:
        raise BaseError(
            "choosing the base images' source 'mirror': none is named. "
            f"Set {MIRROR_VARIABLE} to its host and port."
        )
    return [asked]


def mirror() -> Registry:
    """Return the mirror that LABAPP_MIRROR names; ``http://`` in front asks for plain HTTP."""
    address = os.environ[MIRROR_VARIABLE].rstrip("/")
    scheme, separator, rest = address.rpartition("://")
    return Registry(rest, secure=scheme == "https" if separator else None)


def pull_public(engine: Engine, state: State, name: str, *, tag: str, feedback: Feedback) -> None:
    """Pull a public image, and give it a name of the lab's and labels that tell its origin.

    Args:
        engine: which pulls it.
        state: the lab's own files.
        name: one of :data:`NAMES`.
        tag: the new name.
        feedback: where the commands and the progress are told.

    Raises:
        BaseError: Docker Hub has had too many requests from here.
        PullError: the pull failed otherwise.
    """
    prefix = (os.environ.get(HUB_VARIABLE) or HUB).rstrip("/")
    public = Reference.parse(f"{prefix}/{_HUB_NAMES.get(name, name)}")
    was_there = _has(engine, public)
    try:
        digest = images.pull(engine, None, public, feedback=feedback).digest
    except LabError as error:
        if _RATE_LIMIT.search(str(error)):
            raise BaseError(
                f"pulling '{public}': Docker Hub gives this network's address no more images for "
                "now, as everybody behind it shares one allowance. Log in with 'docker login', "
                "wait some hours, or take a bundle ('labapp bundle load') or another source"
            ) from error
        raise
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(f"FROM {public.pinned(digest)}\n")
        made = labels(state, "docker-hub", title=f"{name}, from Docker Hub") | {
            "org.opencontainers.image.base.name": public.name + f":{public.tag}",
            "org.opencontainers.image.base.digest": digest,
        }
        build(engine, Path(folder), tag=tag, labels=made, feedback=feedback)
    if not was_there:
        images.remove(engine, public)


def no_source(names: Sequence[str], causes: Mapping[str, str]) -> BaseError:
    """Return the error that sums up why no source served.

    Args:
        names: the base images that were wanted.
        causes: for each source that was tried, what it failed of.
    """
    lines = "\n".join(f"  - {SOURCES[source]}: {cause}" for source, cause in causes.items())
    wanted = ", ".join(f"'{name}'" for name in names)
    return BaseError(
        f"getting the base images {wanted}: no source serves.\n{lines}\n"
        "Mend one of them, or take a file from a machine that has them: "
        "'labapp bundle save' there, 'labapp bundle load' here."
    )


def _has(engine: Engine, reference: Reference) -> bool:
    with engine.doing(f"looking for '{reference}'"):
        try:
            engine.client.images.get(str(reference))
        except docker.errors.ImageNotFound:
            return False
    return True
