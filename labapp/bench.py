"""The bench: engine, registry and base images, ready to work on."""

from __future__ import annotations

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
from labapp.machine import own_engine
from labapp.machine.engine import Engine, remove_leftovers
from labapp.reference import Reference
from labapp.registry import podman
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State


@dataclass(frozen=True)
class Bench:
    """What every step of the lab works on: the registry is there as a container and over HTTP.

    ``work`` is the folder for a chapter's files.
    """

    state: State
    engine: Engine
    server: RegistryServer
    registry: Registry
    bases: tuple[Base, ...]
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
        return REPOSITORY / "dockerfiles" / "app"

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
        arguments: dict[str, str] = {}
        known = {base.name: str(base.reference) for base in self.bases}
        file = dockerfile.is_file()
        text = dockerfile.read_text(encoding="utf-8", errors="replace") if file else ""
        declared = [each for each in instructions(text) if each.keyword == "ARG"]
        for word in [word for instruction in declared for word in instruction.words]:
            name, _, default = word.text.partition("=")
            if name == "PIP_NO_INDEX":
                arguments[name] = "1"
            elif (base := known.get(default.strip("\"'"))) is not None:
                arguments.setdefault(name, base)
        return arguments

    def stop(self) -> None:
        """Stop the registry, and the engine if it is the lab's own; nothing is removed."""
        self.server.stop()
        own_engine.stop(self.state)


def prepare(state: State, *, source: str = "auto", clean: bool = False) -> Bench:
    """Make everything ready that a chapter needs; quick when it already is.

    ``source`` is where base images come from. ``clean`` also removes what earlier, cut-off work
    left behind: not while something builds.
    """
    with state.lock("prepare"):
        engine = engines.start(state)
        if clean and (left := remove_leftovers(engine)):
            feedback.say(f"Removed what earlier work left behind: {', '.join(left)}")
        server = RegistryServer(engine=engine, state=state)
        bases = base_images.prepare(engine, server, state, source=source)
        podman.allow_http(engine, state, server)
        wheels.fetch(REPOSITORY / "dockerfiles" / "app" / "wheels", platform=engine.platform)
    work = REPOSITORY / "notebooks" / "work"
    return Bench(state, engine, server, server.registry(), bases, work)
