"""What one lab made, on the engine and in its own folder: listed, then removed; nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docker.errors

from labapp import engine as engines
from labapp.attacks.journal import Journal
from labapp.engine import Engine, own_engine
from labapp.errors import LabError, RegistryUnreachable
from labapp.feedback import Feedback
from labapp.private import process, trust
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State

Kind = Literal["container", "network", "image", "volume"]

KEPT = {"id", "engine", "own_engine.json", "jupyter", "receipts.json"}
"""What stays in the state folder: the lab's own engine, a JupyterLab that may be running, and what
the learner has passed: who resets to get out of trouble must not lose that."""


@dataclass(frozen=True)
class Thing:
    """One thing on the engine that is the lab's.

    Attributes:
        kind: what it is.
        name: by which it is removed.
    """

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Plan:
    """What a reset is about to remove.

    Attributes:
        state: the lab's own files.
        engine: where the things are; None when the whole engine goes.
        things: on the engine.
        files: files and folders of the lab.
    """

    state: State
    engine: Engine | None
    things: tuple[Thing, ...]
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """Return the plan for a person to read, a line a thing."""
        found = [str(thing) for thing in self.things]
        found += [f"the engine's trust in '{file}'" for file in trust.trusted(self.state)]
        if self.engine is None:
            found.append("the lab's own engine, with every image, container and volume in it")
        return found + [f"'{file}'" for file in self.files]


def plan(
    state: State, *, everything: bool = False, work: Path | None = None, feedback: Feedback
) -> Plan:
    """Return what is to be removed for a lab to be as new; nothing is removed yet.

    Args:
        state: the lab's own files.
        everything: also the lab's own engine and the whole state folder.
        work: the folder of the chapters' files.
        feedback: where it is told that an engine had to be started to look into it.

    Raises:
        EngineNotFound: the engine does not answer, so nobody can tell what is on it.
    """
    own = own_engine.host(state) is not None
    files = [work] if work is not None and work.exists() else []
    if everything:
        files.append(state.folder)
    else:
        files += [
            entry
            for entry in sorted(state.folder.iterdir())
            if entry.name not in KEPT and entry.suffix != ".lock"
        ]
    if everything and own:
        return Plan(state, None, (), tuple(files))
    engine = engines.start(state, feedback=feedback) if own else engines.find(state)
    return Plan(state, engine, tuple(things(engine, state)), tuple(files))


def carry_out(plan: Plan, *, feedback: Feedback) -> list[str]:
    """Remove what a plan names; what is gone already is no failure.

    Args:
        plan: from :func:`plan`.
        feedback: where progress is told.

    Returns:
        A line for each thing that could not be removed, with the reason.

    Raises:
        EngineLost: the engine does not answer any more.
    """
    left = []
    try:
        # Of what attacks changed, only files can be elsewhere than in what is removed here.
        Journal(plan.state).restore_files()
    except LabError as error:
        left.append(str(error))
    process.stop(plan.state)
    try:
        trust.remove(plan.engine, plan.state)  # needs the registry's image, so it comes first
    except LabError as error:
        left.append(str(error))
    if plan.engine is None:
        own_engine.remove(plan.state, feedback=feedback)
    else:
        left += _remove(plan.engine, plan.things, feedback=feedback)
    for file in plan.files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)
        if file.exists():
            left.append(f"'{file}': its files are not all yours to delete")
    return left


def things(engine: Engine, state: State) -> list[Thing]:
    """Return everything on the engine that carries the lab's label or its registry's address.

    Args:
        engine: where to look.
        state: the lab's own files, which know its label.

    Returns:
        Containers first, then what they need, in the order of removal.

    Raises:
        EngineLost: the engine does not answer any more.
    """
    api = engine.client.api
    mine = {"label": f"{LABEL}={state.lab_id}"}
    found: list[Thing] = []
    with engine.doing("listing what the lab made"):
        containers = api.containers(all=True, filters=mine)
        found += [Thing("container", one["Names"][0].lstrip("/")) for one in containers]
        found += [Thing("network", one["Name"]) for one in api.networks(filters=mine)]
        labelled = {image["Id"] for image in api.images(filters=mine)}
        address = _address(engine, state)
        for image in api.images():
            names = _names(image, labelled=image["Id"] in labelled, address=address)
            found += [Thing("image", name) for name in names]
        volumes = api.volumes(filters=mine).get("Volumes") or ()
        found += [Thing("volume", one["Name"]) for one in volumes]
    return found


def _names(image: dict[str, Any], *, labelled: bool, address: str | None) -> list[str]:
    """Return the names to take from an image: all, or those of the lab's registry, or none."""
    tags = [name for name in image.get("RepoTags") or () if "<none>" not in name]
    if labelled:
        return tags or [image["Id"]]
    digests = [name for name in image.get("RepoDigests") or () if "<none>" not in name]
    here = [name for name in tags if address and name.startswith(f"{address}/")]
    # A name by digest goes with the last tag; it counts where it is the only one.
    if here or tags:
        return here
    return [name for name in digests if address and name.startswith(f"{address}/")]


def _address(engine: Engine, state: State) -> str | None:
    try:
        return RegistryServer(engine=engine, state=state).address
    except RegistryUnreachable:
        return None


def _remove(engine: Engine, found: Iterable[Thing], *, feedback: Feedback) -> list[str]:
    left = []
    waiting = list(found)
    with feedback.bars("Removing what the lab made", unit="steps") as bars:
        for number, thing in enumerate(waiting):
            bars.update("things", number, len(waiting), str(thing))
            with engine.doing(f"removing the {thing}"):
                try:
                    _remove_one(engine, thing)
                except docker.errors.NotFound:
                    continue
                except docker.errors.APIError as error:
                    left.append(f"{thing}: {error.explanation or error}")
        bars.finish("things")
    return left


def _remove_one(engine: Engine, thing: Thing) -> None:
    api = engine.client.api
    if thing.kind == "container":
        api.remove_container(thing.name, force=True, v=True)
    elif thing.kind == "network":
        api.remove_network(thing.name)
    elif thing.kind == "image":
        api.remove_image(thing.name)
    else:
        api.remove_volume(thing.name, force=True)
