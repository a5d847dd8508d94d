"""The delivery: a script of the learner's own, run step by step, with a saboteur between the steps.

The script is called as ``SCRIPT build|inspect|push|pin|deploy`` in its own folder, with these
environment variables:

=============== ==================================================================================
LAB_REGISTRY    host and port of the registry; at ``deploy``, of the mirror that the server uses
LAB_IMAGE       the image by tag, to build and push; at ``deploy``, the same through the mirror
LAB_BASE        the base image by tag
LAB_APP         the folder to build from; its ``release.txt`` is written anew for each delivery
LAB_SERVICE     the name of the container to start, its port published on 127.0.0.1
DOCKER_HOST     the engine, where it needs to be named
=============== ==================================================================================

The server is another machine in real life. Here one engine plays both, so the image is taken off
it before ``deploy``, with all that was started from it: what runs has to come through the mirror.
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

RELEASE = "release.txt"
"""The file in the application that names the delivery: an image without it was not built for it."""


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
        undone_at: the step at which the script itself undid what was planted; empty for none.
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
    undone_at: str
    mirror_log: str = field(repr=False)
    planned: tuple[str, ...] = field(repr=False)
    planted: tuple[Planted, ...] = field(repr=False)

    @property
    def stopped_at(self) -> str:
        """The step that ended with an exit code other than 0; empty where none did."""
        return next((step.name for step in self.steps if step.code != 0), "")

    @property
    def delivered(self) -> bool:
        """Whether all steps went well, and what was built and pushed runs and answers."""
        return not self.stopped_at and not self.lacks

    @property
    def lacks(self) -> str:
        """What it lacks to be a delivery of this application, in words; empty for nothing."""
        if self.undone_at:
            return f"at '{self.undone_at}', the script undid what the saboteur had done"
        if self.pushed is None:
            return f"the registry has no '{self.image}'"
        release = self.image.rpartition(":")[2]
        if release not in self.pushed.signs:
            return f"the image that was pushed has no '{RELEASE}' that says '{release}'"
        if self.deployed is None:
            return "no container of that name runs"
        if self.deployed.diff_ids != self.pushed.diff_ids:
            return f"'{self.deployed.name}' runs another image than the one that was pushed"
        if f"/v2/{REPOSITORY}/manifests/" not in self.mirror_log:
            return f"nothing was pulled through the mirror, but '{self.deployed.name}' runs"
        if not self.deployed.answers:
            return f"the right image was deployed, but '{self.deployed.name}' does not answer"
        return ""

    @property
    def table(self) -> pd.DataFrame:
        """A row a step: ``step``, ``exit_code``, ``seconds``, ``last_line`` of its output."""
        rows = [(s.name, s.code, round(s.seconds, 1), s.last_line[:100]) for s in self.steps]
        return pd.DataFrame(rows, columns=["step", "exit_code", "seconds", "last_line"])

    def _repr_html_(self) -> str:
        """Show the steps in a notebook."""
        return self.table.to_html(index=False)

    @property
    def last_line(self) -> str:
        """The last line of the step at which the script stopped; empty where it did not."""
        return self.steps[-1].last_line if self.stopped_at else ""

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
        app: the folder to build from, in this chapter's own; by default ``app`` beside the script.
        feedback: where it is told.

    Raises:
        AttackError: the script can't be run, or the folder is not this chapter's.
        LabError: the registry or the engine fails.
    """
    command_for(script)
    app = own_path(bench, app or script.parent / "app")
    plan = choose(bench, seed=seed) if seed is not None else named(faults)
    # Not told: it would give away what was planted last time.
    undo(bench, feedback=QuietFeedback())
    base = copy_base(bench)
    # As on a fresh build machine: the tag is asked for anew, and nothing of earlier runs is there.
    images.remove(bench.engine, base)
    remove_names(bench, f"{bench.registry.address}/{REPOSITORY}")
    image = Reference(bench.registry.address, REPOSITORY, f"r{secrets.token_hex(4)}")
    _write_release(app, str(image.tag))
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
        undone_at=delivery.undone_at,
        mirror_log=mirror.log(bench),
        planned=plan.faults,
        planted=tuple(delivery.planted),
    )


def _write_release(app: Path, release: str) -> None:
    """Name the delivery in the application, as a version control system would name the commit."""
    try:
        (app / RELEASE).write_text(release + "\n", encoding="utf-8")
    except OSError as error:
        raise AttackError(
            f"writing '{app / RELEASE}': {error.strerror or error}. Make the application first, in "
            "a folder that can be written."
        ) from error


class _Delivery:
    """One run of a script, as far as it has come."""

    def __init__(self, scene: Scene, plan: Sabotage, feedback: Feedback) -> None:
        self.steps: list[Step] = []
        self.planted: list[Planted] = []
        self.pushed: Pushed | None = None
        self.undone_at = ""
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
        planted = Journal(bench.state).changes()
        step = run_step(script, name, environment)
        self.steps.append(step)
        kept = Journal(bench.state).changes()
        if not self.undone_at and any(change not in kept for change in planted):
            self.undone_at = name
        ended = "went well" if step.code == 0 else f"stopped with exit code {step.code}"
        self._feedback.say(f"{name}: {ended} after {step.seconds:.1f} s")
        if step.code == 0 and name == "push":
            signs = [str(self._scene.image.tag), *(planted.sign for planted in self.planted)]
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
        with contextlib.suppress(docker.errors.ImageNotFound, docker.errors.APIError):
            held = str(client.images.get(str(scene.image)).id)
            wanted = {"ancestor": held}
            for container in client.containers.list(all=True, filters=wanted, ignore_removed=True):
                discard(container)
            client.api.remove_image(held, force=True)
    # A pull of what somebody pushed over the tag leaves the built image with its digest only.
    remove_names(bench, f"{bench.registry.address}/{REPOSITORY}")
