"""The delivery: a script of the learner's own, run step by step, with a saboteur between the steps.

The script is called as ``SCRIPT build|inspect|push|pin|deploy`` in its own folder, with these
environment variables:

=============== ==================================================================================
LAB_REGISTRY    host and port of the registry; at ``deploy``, of the mirror that the server uses
LAB_IMAGE       the image by tag, to build and push; at ``deploy``, the same through the mirror
LAB_BASE        the base image by tag
LAB_APP         the folder to build from
LAB_SERVICE     the name of the container to start, its port published on 127.0.0.1
DOCKER_HOST     the engine, where it needs to be named
=============== ==================================================================================

The server is another machine in real life. Here one engine plays both, so the image is taken off
it before ``deploy``: what runs has to come from the registry.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

import docker.errors
import pandas as pd

from labapp import images
from labapp.attacks import mirror
from labapp.attacks.changes import copy_base
from labapp.attacks.journal import Change, Journal
from labapp.attacks.outcome import Deployed, Pushed, read_deployed, read_pushed
from labapp.attacks.saboteur import FAULTS, Planted, Sabotage, Scene, named, place_mirror, plant
from labapp.attacks.saboteur import sabotage as choose
from labapp.attacks.scripts import STEPS, Step, command_for, run_step
from labapp.attacks.targets import own_path, service_name
from labapp.attacks.undoing import remove_names, undo
from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.feedback import Feedback, QuietFeedback
from labapp.images.running import discard
from labapp.reference import Reference
from labapp.state import LABEL

REPOSITORY = "shop/delivered"
"""Where deliveries push to; each run has a tag of its own."""


@dataclass(frozen=True)
class PipelineRun:
    """A delivery that was run; what was planted shows when it is judged.

    Attributes:
        script: that was run.
        seed: of the sabotage; None without one.
        image: the reference that was to be pushed.
        steps: that were run; after one that failed, none.
        pushed: what the registry had then; None if nothing was pushed.
        deployed: what runs; None if nothing does.
        mirror_log: what the mirror between registry and server has logged.
        planned: the faults that were chosen.
        planted: the faults that were planted until the script stopped.
    """

    script: Path
    seed: int | None
    image: str
    steps: tuple[Step, ...]
    pushed: Pushed | None
    deployed: Deployed | None
    mirror_log: str = field(repr=False)
    planned: tuple[str, ...] = field(repr=False)
    planted: tuple[Planted, ...] = field(repr=False)

    @property
    def stopped_at(self) -> str:
        """The step that ended with an exit code other than 0; empty where none did."""
        return next((step.name for step in self.steps if step.code != 0), "")

    @property
    def delivered(self) -> bool:
        """Whether all steps went well, and what was pushed runs and answers."""
        if self.stopped_at or self.pushed is None or self.deployed is None:
            return False
        return self.deployed.answers and self.deployed.diff_ids == self.pushed.diff_ids

    @property
    def table(self) -> pd.DataFrame:
        """A row a step: ``step``, ``exit_code``, ``seconds``, ``last_line`` of its output."""
        rows = [
            (s.name, s.code, round(s.seconds, 1), (s.output.strip().splitlines() or [""])[-1][:100])
            for s in self.steps
        ]
        return pd.DataFrame(rows, columns=["step", "exit_code", "seconds", "last_line"])

    def _repr_html_(self) -> str:
        """Show the steps in a notebook."""
        return self.table.to_html(index=False)

    def output(self, step: str) -> str:
        """Return all that a step printed; empty where it was not run."""
        return next((each.output for each in self.steps if each.name == step), "")


def run_pipeline(
    bench: Bench,
    script: Path,
    *,
    seed: int | None = None,
    faults: tuple[str, ...] = (),
    app: Path | None = None,
    feedback: Feedback,
) -> PipelineRun:
    """Run a delivery script step by step, and plant faults in between.

    What was planted stays, to be looked at, until ``undo`` or the next run.

    Args:
        bench: which lab.
        script: ``deliver.py`` or ``deliver.sh``; see the module's text for how it is called.
        seed: chooses the faults; without one, and without ``faults``, there are none.
        faults: the faults by name, instead of a seed.
        app: the folder to build from, in this chapter's own; by default ``app``.
        feedback: where it is told.

    Raises:
        AttackError: the script can't be run, or the folder is not this chapter's.
        LabError: the registry or the engine fails.
    """
    command_for(script)
    app = own_path(bench, app or bench.work / "app")
    plan = choose(bench, seed=seed) if seed is not None else named(faults)
    # Not told: it would give away what was planted last time.
    undo(bench, feedback=QuietFeedback())
    base = copy_base(bench)
    # As on a fresh build machine: the tag is asked for anew, and nothing of earlier runs is there.
    images.remove(bench.engine, base)
    remove_names(bench, f"{bench.registry.address}/{REPOSITORY}")
    image = Reference(bench.registry.address, REPOSITORY, f"r{secrets.token_hex(4)}")
    delivery = _Delivery(Scene(bench, base, image, app), plan, feedback)
    for step in STEPS:
        if not delivery.take(script, step):
            break
    return PipelineRun(
        script=script,
        seed=seed,
        image=str(image),
        steps=tuple(delivery.steps),
        pushed=delivery.pushed,
        deployed=read_deployed(bench),
        mirror_log=mirror.log(bench),
        planned=plan.faults,
        planted=tuple(delivery.planted),
    )


class _Delivery:
    """One run of a script, as far as it has come."""

    def __init__(self, scene: Scene, plan: Sabotage, feedback: Feedback) -> None:
        self.steps: list[Step] = []
        self.planted: list[Planted] = []
        self.pushed: Pushed | None = None
        self._scene = scene
        self._plan = plan
        self._feedback = feedback
        self._mirror = ""

    def take(self, script: Path, name: str) -> bool:
        """Prepare a step and run it; return whether the next one may come."""
        bench = self._scene.bench
        self._prepare(name)
        where = self._mirror or bench.registry.address
        environment = bench.engine.environment() | {
            "LAB_REGISTRY": where,
            "LAB_IMAGE": str(replace(self._scene.image, registry=where)),
            "LAB_BASE": str(self._scene.base),
            "LAB_APP": str(self._scene.app),
            "LAB_SERVICE": service_name(bench),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        self._feedback.command([script.name, name])
        step = run_step(script, name, environment)
        self.steps.append(step)
        ended = "went well" if step.code == 0 else f"stopped with exit code {step.code}"
        self._feedback.say(f"{name}: {ended} after {step.seconds:.1f} s")
        if step.code == 0 and name == "push":
            signs = [planted.sign for planted in self.planted]
            self.pushed = read_pushed(bench, self._scene.image, signs)
        return step.code == 0

    def _prepare(self, name: str) -> None:
        scene, faults = self._scene, self._plan.faults
        needs_image = name in ("pin", "deploy")
        for fault in faults:
            if FAULTS[fault] == name and fault != "transit" and (self.pushed or not needs_image):
                self.planted.append(plant(scene, fault))
        if name == "deploy":
            _forget(scene)
            dishonest = "transit" in faults and self.pushed is not None
            self._mirror, planted = place_mirror(scene, honest=not dishonest)
            self.planted += [planted] if planted else []
            journal = Journal(scene.bench.state)
            journal.note(Change("delivery", "container", service_name(scene.bench)))


def _forget(scene: Scene) -> None:
    """Take the image off the engine, with all its names, as on a server that never saw it."""
    bench = scene.bench
    client = bench.engine.client
    wanted: dict[str, str | list[str] | bool] = {
        "label": f"{LABEL}={bench.state.lab_id}",
        "status": ["created", "exited"],
    }
    with bench.engine.doing(f"removing the image '{scene.image}'", AttackError):
        # The SDK leaves the containers of a build behind unless told otherwise, and those would
        # keep its layers. Only a builder names an image by its whole ID.
        for container in client.containers.list(all=True, filters=wanted, ignore_removed=True):
            if container.attrs["Config"]["Image"].startswith("sha256:"):
                discard(container)
        # An image that a container still uses stays.
        with contextlib.suppress(docker.errors.ImageNotFound, docker.errors.APIError):
            held = client.images.get(str(scene.image))
            client.api.remove_image(str(held.id), force=True)
