"""The bench: engine, registry and base images, ready to work on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from labapp import feedback
from labapp.errors import BaseError, ExerciseError
from labapp.journey import bases as base_images
from labapp.journey import wheels
from labapp.journey.bases import Base
from labapp.journey.dockerfile import instructions
from labapp.machine import engine as engines
from labapp.machine.engine import Engine, remove_leftovers
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State


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
        """Return a base image, by its public name, pinned by digest; BaseError if there is none."""
        for base in self.bases:
            if base.name == name:
                return base.reference
        known = ", ".join(f"'{base.name}'" for base in self.bases)
        raise BaseError(f"looking up the base image '{name}': the lab has {known}.")

    @property
    def application(self) -> Path:
        """The source of the application that every chapter builds."""
        return self.repository / "dockerfiles" / "app"

    def copy_application(
        self, *, dockerfile: str | None = None, folder: str = "app", fresh: bool = False
    ) -> Path:
        """Return a copy of the application in the work folder; see :meth:`Lab.application`."""
        copy = self.work / folder
        if fresh and copy.exists():
            shutil.rmtree(copy)
        if not copy.exists():
            shutil.copytree(self.application, copy)
        if dockerfile is not None and not (copy / "Dockerfile").exists():
            self.copy_dockerfile(dockerfile, copy / "Dockerfile")
        return copy

    def copy_dockerfile(self, name: str, target: Path) -> Path:
        """Copy one of the lab's Dockerfiles over a file; ExerciseError if there is none."""
        known = {file.stem: file for file in self.application.parent.glob("*.Dockerfile")}
        if name not in known:
            raise ExerciseError(
                f"looking for the Dockerfile '{name}': the lab has {', '.join(sorted(known))}."
            )
        return Path(shutil.copy(known[name], target))

    def build_arguments(self, dockerfile: Path) -> dict[str, str]:
        """Return the build arguments that make a Dockerfile build without the internet.

        Where its ``ARG`` lines name public Python images, these are replaced by the lab's copies;
        and pip looks for wheels in the context only.
        """
        arguments = {}
        known = {base.name: str(base.reference) for base in self.bases}
        for name, default in _declared_arguments(dockerfile).items():
            if default in known:
                arguments[name] = known[default]
            elif name == "PIP_NO_INDEX":
                arguments[name] = "1"
        return arguments

    def stop(self) -> None:
        """Stop the registry, and the engine if it is the lab's own; nothing is removed."""
        self.server.stop()
        engines.stop(self.state)


def prepare(state: State, *, source: str | None = None, clean: bool = False) -> Bench:
    """Make everything ready that a chapter needs; quick when it already is.

    Args:
        state: the lab's own files.
        source: where base images come from: ``auto``, ``mirror``, ``hub`` or ``debian``; by
            default what LABAPP_BASES names, else ``auto``.
        clean: also remove what earlier, cut-off work left behind. Not while something builds.

    Raises:
        EngineNotFound: no engine answers, and none can be started here.
        RegistryError: the registry does not start.
        BaseError: a base image or a wheel could not be had from any source.
    """
    source = source or os.environ.get("LABAPP_BASES", "auto")
    with state.lock(
        "prepare", waiting=lambda: feedback.say("Another process prepares this lab; waiting.")
    ):
        engine = engines.start(state)
        if clean and (left := remove_leftovers(engine)):
            feedback.say(f"Removed what earlier work left behind ({len(left)}): {left[0]}")
        server = RegistryServer(engine=engine, state=state)
        bases = base_images.prepare(engine, server, state, source=source)
        wheels.fetch(REPOSITORY / "dockerfiles" / "app" / "wheels", platform=engine.platform)
    return Bench(
        state=state,
        engine=engine,
        server=server,
        registry=server.registry(),
        bases=bases,
        repository=REPOSITORY,
        work=REPOSITORY / "notebooks" / "work",
    )


def _declared_arguments(dockerfile: Path) -> dict[str, str]:
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
