"""What one lab made, on the engine and in its own folder: listed, then removed; nothing else is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import docker.errors

from labapp import feedback
from labapp.attacks.journal import Journal
from labapp.errors import LabError
from labapp.journey.bases import engine_name
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.machine.engine import Engine
from labapp.private import registry as private
from labapp.private import service
from labapp.registry import podman
from labapp.state import LABEL, State

KEPT = {"id", "engine", "own_engine.json", "jupyter", "receipts.json", "room"}
"""What stays in the state folder: the lab's own engine, a JupyterLab that may be running, and what
the learner has passed: who resets to get out of trouble must not lose that."""


@dataclass(frozen=True)
class Plan:
    """What a reset is about to remove; the engine is None when the whole of it goes.

    A thing on the engine is its kind and its name: ``container labapp-registry-0123abcd``.
    """

    state: State
    engine: Engine | None
    things: tuple[str, ...]
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """Return the plan for a person to read, a line a thing."""
        found = [*self.things]
        found += [f"the engine's trust in '{file}'" for file in private.trusted(self.state)]
        if file := podman.written(self.state):
            found.append(f"Podman's setting '{file}'")
        if self.engine is None:
            found.append("the lab's own engine, with every image, container and volume in it")
        return found + [f"'{file}'" for file in self.files]


def plan(state: State, *, everything: bool = False, work: Path | None = None) -> Plan:
    """Return what is to be removed for a lab to be as new; nothing is removed yet.

    With ``everything``, that is also the lab's own engine and the whole state folder; ``work`` is
    the folder of the chapters' files. EngineNotFound if nobody can tell what is on the engine.
    """
    files = [work] if work is not None and work.exists() else []
    own = own_engine.host(state) is not None
    if everything:
        files.append(state.folder)
        if own:
            return Plan(state, None, (), tuple(files))
    else:
        there = sorted(state.folder.iterdir())
        files += [file for file in there if file.suffix != ".lock" and file.name not in KEPT]
    engine = engines.start(state) if own else engines.find(state)
    return Plan(state, engine, tuple(things(engine, state)), tuple(files))


def carry_out(plan: Plan) -> list[str]:
    """Remove what a plan names; return a line for each thing that could not be removed.

    What is gone already is no failure. EngineLost if the engine does not answer any more.
    """
    left = []
    service.stop(plan.state)
    # Of what attacks changed, only files can be elsewhere than in what is removed here; and trust
    # is taken back by means of the registry's image.
    journal = Journal(plan.state)
    for put_back in (
        journal.restore_files,
        lambda: private.distrust(plan.engine, plan.state),
        lambda: podman.forget(plan.engine, plan.state),
    ):
        try:
            put_back()
        except (LabError, OSError) as error:
            left.append(str(error))
    if plan.engine is None:
        own_engine.remove(plan.state)
    else:
        left += _remove(plan.engine, plan.things)
    for file in plan.files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)
        if file.exists():
            left.append(f"'{file}': its files are not all yours to delete")
    return left


def things(engine: Engine, state: State) -> list[str]:
    """Return everything on the engine that carries the lab's label or its registry's address.

    Containers come first, then what they need, in the order of removal. What was built and run by
    hand on the base images, which are the public ones byte for byte, is known by its address only.
    """
    api = engine.client.api
    mine = {"label": f"{LABEL}={state.lab_id}"}
    starts = (engine_name(state), f"localhost:{state.read('registry').get('port')}/")
    found: list[str] = []
    with engine.doing("listing what the lab made"):
        for one in api.containers(all=True):
            owner = (one.get("Labels") or {}).get(LABEL)
            if owner == state.lab_id or (owner is None and one["Image"].startswith(starts)):
                found.append(f"container {one['Names'][0].lstrip('/')}")
        found += [f"network {one['Name']}" for one in api.networks(filters=mine)]
        for image in api.images():
            tags, digests = (
                [name for name in image.get(kind) or () if "<none>" not in name]
                for kind in ("RepoTags", "RepoDigests")
            )
            if (image.get("Labels") or {}).get(LABEL) == state.lab_id:
                names = tags or [image["Id"]]
            else:
                # A name by digest goes with the last tag; it counts where it is the only one.
                names = [name for name in tags or digests if name.startswith(starts)]
            found += [f"image {name}" for name in names]
        volumes = api.volumes(filters=mine).get("Volumes") or ()
        found += [f"volume {one['Name']}" for one in volumes]
    return found


def _remove(engine: Engine, things: tuple[str, ...]) -> list[str]:
    options = {"container": {"force": True, "v": True}, "volume": {"force": True}}
    left = []
    with feedback.bars("Removing what the lab made", unit="steps") as bars:
        for number, thing in enumerate(things):
            bars.update("things", number, len(things), thing)
            kind, name = thing.split(" ")
            remove = getattr(engine.client.api, f"remove_{kind}")
            with engine.doing(f"removing the {thing}"):
                try:
                    remove(name, **options.get(kind, {}))
                except docker.errors.NotFound:
                    continue
                except docker.errors.APIError as error:
                    left.append(f"{thing}: {error.explanation or error}")
    return left
