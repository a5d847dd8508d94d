"""The bench: engine, registry and base images, ready to work on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from labapp import bases as base_images
from labapp import engine as engines
from labapp.bases import Base
from labapp.bases.wheels import fetch
from labapp.engine import Engine
from labapp.errors import BaseError
from labapp.feedback import Feedback
from labapp.images.dockerfile import instructions
from labapp.leftovers import remove_leftovers
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.server import RegistryServer
from labapp.state import State

REPOSITORY = Path(__file__).parent.parent
"""The clone that this package is part of."""


@dataclass(frozen=True)
class Bench:
    """What every step of the lab works on.

    Attributes:
        state: the lab's own files.
        engine: the container engine.
        server: the registry's container.
        registry: the registry over HTTP.
        bases: the base images in the registry.
        repository: the clone: notebooks, Dockerfiles, the application.
        work: the folder for a chapter's files.
    """

    state: State
    engine: Engine
    server: RegistryServer
    registry: Registry
    bases: tuple[Base, ...]
    repository: Path
    work: Path

    def base(self, name: str) -> Reference:
        """Return a base image pinned by digest.

        Args:
            name: its public name, ``python:3.13`` or ``python:3.13-slim``.

        Raises:
            BaseError: the lab has no such base image.
        """
        for base in self.bases:
            if base.name == name:
                return base.reference
        known = ", ".join(f"'{base.name}'" for base in self.bases)
        raise BaseError(f"looking up the base image '{name}': the lab has {known}.")

    @property
    def application(self) -> Path:
        """The source of the application that every chapter builds."""
        return self.repository / "dockerfiles" / "app"

    def build_arguments(self, dockerfile: Path) -> dict[str, str]:
        """Return the build arguments that make a Dockerfile build without the internet.

        Args:
            dockerfile: its ``ARG`` lines say which arguments it takes. Public Python images are
                replaced by the lab's copies, and pip looks for wheels in the context only.
        """
        arguments = {}
        known = {base.name: str(base.reference) for base in self.bases}
        for name, default in declared_arguments(dockerfile).items():
            if default in known:
                arguments[name] = known[default]
            elif name == "PIP_NO_INDEX":
                arguments[name] = "1"
        return arguments

    def stop(self, *, feedback: Feedback) -> None:
        """Stop the registry, and the engine if it is the lab's own; nothing is removed."""
        self.server.stop(feedback=feedback)
        engines.stop(self.state, feedback=feedback)


def prepare(
    state: State, *, source: str | None = None, clean: bool = False, feedback: Feedback
) -> Bench:
    """Make everything ready that a chapter needs; quick when it already is.

    Args:
        state: the lab's own files.
        source: where base images come from: ``auto``, ``mirror``, ``hub`` or ``debian``; by
            default what LABAPP_BASES names, else ``auto``.
        clean: also remove what earlier, cut-off work left behind. Not while something builds.
        feedback: where progress is told.

    Raises:
        EngineNotFound: no engine answers, and none can be started here.
        RegistryError: the registry does not start.
        BaseError: a base image or a wheel could not be had from any source.
    """
    with state.lock(
        "prepare", waiting=lambda: feedback.say("Another process prepares this lab; waiting.")
    ):
        engine = engines.start(state, feedback=feedback)
        if clean:
            left = remove_leftovers(engine, state)
            if left:
                feedback.say(f"Removed what earlier work left behind ({len(left)}): {left[0]}")
        server = RegistryServer(engine=engine, state=state)
        source = source or os.environ.get("LABAPP_BASES", "auto")
        bases = base_images.prepare(engine, server, state, source=source, feedback=feedback)
        fetch(
            REPOSITORY / "dockerfiles" / "app" / "wheels",
            platform=engine.platform,
            feedback=feedback,
        )
    return Bench(
        state=state,
        engine=engine,
        server=server,
        registry=server.registry(),
        bases=bases,
        repository=REPOSITORY,
        work=REPOSITORY / "notebooks" / "work",
    )


def declared_arguments(dockerfile: Path) -> dict[str, str]:
    """Return the ``ARG`` names of a Dockerfile with their defaults; empty when there is no file."""
    if not dockerfile.is_file():
        return {}
    text = dockerfile.read_text(encoding="utf-8", errors="replace")
    declared: dict[str, str] = {}
    for instruction in instructions(text):
        if instruction.keyword == "ARG":
            for word in instruction.words:
                name, _, default = word.text.partition("=")
                declared.setdefault(name, default.strip("\"'"))
    return declared
