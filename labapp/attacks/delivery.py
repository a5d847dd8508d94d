"""The delivery: a script of the learner's own, run step by step, with a saboteur between the steps.

The script is called as ``SCRIPT build|inspect|push|pin|deploy`` in its own folder; what is what, it
learns from environment variables, which the notebook of the chapter lists.

The server is another machine in real life. Here one engine plays both, so the image is taken off
it before ``deploy``, with all that was started from it and with what the builder keeps of it: what
runs has to come through the mirror.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.attacks import mirror
from labapp.attacks.attacks import (
    Happened,
    Scene,
    base_layers,
    copy_base,
    find_attack,
    own_layers,
    remove_names,
    undo,
)
from labapp.attacks.journal import Change, Journal, own_container, own_path, service_name
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry, RunError
from labapp.inside.archive import opened
from labapp.journey import transfer
from labapp.journey.run import PORT, discard, wait_until_ready
from labapp.reference import Reference

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.images import Image

STEPS = ("build", "inspect", "push", "pin", "deploy")
"""What a delivery script is asked for, in this order."""

FAULTS: Mapping[str, str] = {
    "secret": "build",
    "base": "build",
    "dependency": "build",
    "push": "pin",
    "rest": "pin",
    "moved": "deploy",
    "transit": "deploy",
}
"""The attacks that a delivery can meet, each with the step before which it is planted."""

REPOSITORY = "shop/delivered"
"""Where deliveries push to; each run has a tag of its own."""

RELEASE = "release.txt"
"""The file in the application that names the delivery: an image without it was not built for it."""

STEP_SECONDS = 600.0
ANSWER_SECONDS = 15.0
TIMED_OUT = 124  # the exit code of a step that took too long, as of the command `timeout`


@dataclass(frozen=True)
class Saboteur:
    """Chooses the faults: the same for the same seed and learner, others for another learner.

    The learner is a number; from another one of theirs on, the learner's own seed is looked for.
    """

    learner: int
    start: int

    @property
    def own_seed(self) -> int:
        """A seed that plants one fault before the build and one later: neither hides the other."""
        return self._first(1000 + self.start % 9000, but=())

    @property
    def practice_seed(self) -> int:
        """The first seed that does the same with two other faults."""
        return self._first(1, but=self.choose(self.own_seed))

    def choose(self, seed: int) -> tuple[str, ...]:
        """Choose one to three faults by a seed."""
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise AttackError(
                f"choosing faults by the seed {seed!r}: a seed is a whole number. A delivery with "
                "one certain fault: 'lab.prove(script, FAULT)'."
            )
        draw = random.Random(f"{self.learner}:{seed}")
        drawn = draw.sample(list(FAULTS), draw.randint(1, 3))
        return tuple(fault for fault in FAULTS if fault in drawn)

    def _first(self, start: int, *, but: Collection[str]) -> int:
        def fits(faults: tuple[str, ...]) -> bool:
            early = [FAULTS[fault] == "build" for fault in faults]
            return early == [True, False] and not set(but) & set(faults)

        return next(seed for seed in itertools.count(start) if fits(self.choose(seed)))


@dataclass(frozen=True)
class Step:
    """What a step of a delivery did: its exit code, and what it printed, errors included."""

    name: str
    code: int
    output: str = field(repr=False)
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line that it printed; for a command that failed in Python, the command's own."""
        text = self.output.rstrip()
        before, _, traceback = text.rpartition("Traceback (most recent call last):")
        if "CalledProcessError: " in traceback:
            text = before.rstrip() or text
        return text.rpartition("\n")[2].strip()


@dataclass(frozen=True)
class Pushed:
    """What the registry had right after the push; each sign of a fault with its layer's digest."""

    digest: str
    diff_ids: tuple[str, ...] = field(repr=False)
    signs: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Deployed:
    """The container that the script left running, and the end of what it has printed."""

    diff_ids: tuple[str, ...] = field(repr=False)
    answers: bool
    log: str = field(repr=False)


@dataclass
class PipelineRun:
    """A delivery, as far as it has come; what was planted shows when it is judged.

    Attributes:
        image: the reference that was to be pushed.
        faults: that the saboteur meant to plant, chosen by the seed if there is one.
        steps: that were run; after one that failed, none.
        pushed: what the registry had then; None if nothing was pushed.
        deployed: what runs; None if nothing does.
        undone_at: the step at which the script itself undid what was planted; empty for none.
        planted: what came of the faults until the script stopped.
    """

    script: Path
    image: str
    seed: int | None = None
    faults: tuple[str, ...] = field(default=(), repr=False)
    steps: list[Step] = field(default_factory=list)
    pushed: Pushed | None = None
    deployed: Deployed | None = None
    undone_at: str = ""
    mirror_log: str = field(default="", repr=False)
    planted: list[Happened] = field(default_factory=list, repr=False)

    @property
    def release(self) -> str:
        """By which the delivery is known: the tag of its image."""
        return self.image.rpartition(":")[2]

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
        if self.release not in self.pushed.signs:
            return f"the image that was pushed has no '{RELEASE}' that says '{self.release}'"
        if self.deployed is None:
            return "no container of that name runs"
        if self.deployed.diff_ids != self.pushed.diff_ids:
            return "what runs is another image than the one that was pushed"
        if f"/v2/{REPOSITORY}/manifests/" not in self.mirror_log:
            return "something runs, but nothing was pulled through the mirror"
        if not self.deployed.answers:
            return "the right image was deployed, but it does not answer"
        return ""

    def fetched(self, digest: str) -> bool:
        """Tell whether the server asked for a blob: the mirror's log tells, not the engine."""
        return f"GET /v2/{REPOSITORY}/blobs/{digest} " in self.mirror_log

    def _repr_html_(self) -> str:
        """Show the steps in a notebook."""
        import pandas as pd

        rows = [(s.name, s.code, round(s.seconds, 1), s.last_line[:100]) for s in self.steps]
        table = pd.DataFrame(rows, columns=["step", "exit_code", "seconds", "last_line"])
        return table.to_html(index=False)

    @property
    def last_line(self) -> str:
        """The last line of the step at which the script stopped; empty where it did not."""
        return self.steps[-1].last_line if self.stopped_at else ""

    def output(self, step: str) -> str:
        """Return all that a step printed; empty where it was not run."""
        return next((each.output for each in self.steps if each.name == step), "")


def run_pipeline(
    bench: Bench, script: Path, *, seed: int | None = None, faults: Iterable[str] = ()
) -> PipelineRun:
    """Run a delivery script step by step, and plant faults in between.

    What was planted stays, to be looked at, until ``undo`` or the next run. What is built is the
    folder ``app`` beside the script.
    """
    _command(script)
    app = own_path(bench, script.parent / "app")
    # Not told: it would give away what was planted last time.
    with feedback.using(feedback.QuietFeedback()):
        undo(bench)
    base = copy_base(bench)
    # As on a fresh build machine: the tag is asked for anew, and nothing of earlier runs is there.
    transfer.remove(bench.engine, base)
    remove_names(bench, f"{bench.registry.address}/{REPOSITORY}")
    release = f"r{secrets.token_hex(4)}"
    try:
        # As a version control system would name the commit.
        (app / RELEASE).write_text(release + "\n", encoding="utf-8")
    except OSError as error:
        raise AttackError(
            f"writing '{app / RELEASE}': {error.strerror or error}. Make the application first."
        ) from error
    image = Reference(bench.registry.address, REPOSITORY, release)
    run, journal = PipelineRun(script, str(image), seed, tuple(faults)), Journal(bench.state)
    targets = {"base": base, "secret": app, "dependency": app}
    environment = bench.engine.environment() | {
        "LAB_BASE": str(base),
        "LAB_APP": str(app),
        "LAB_SERVICE": service_name(bench),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    for name in STEPS:
        with feedback.using(feedback.QuietFeedback()):
            address = _prepare(bench, run, name, targets)
        environment["LAB_REGISTRY"] = address
        environment["LAB_IMAGE"] = str(replace(image, registry=address))
        feedback.command([script.name, name])
        before = journal.changes()
        step = run_step(script, name, environment)
        run.steps.append(step)
        if not run.undone_at and not all(change in journal.changes() for change in before):
            run.undone_at = name
        ended = "went well" if step.code == 0 else f"stopped with exit code {step.code}"
        feedback.say(f"{name}: {ended} after {step.seconds:.1f} s")
        if step.code != 0:
            break
        if name == "push":
            run.pushed = _pushed(bench, image, [each.sign for each in run.planted])
    run.deployed, run.mirror_log = _deployed(bench), mirror.log(bench)
    return run


def _prepare(bench: Bench, run: PipelineRun, name: str, targets: Mapping[str, object]) -> str:
    """Plant the faults before a step, and return the address at which it finds the registry.

    The last step is the server's, which has never seen the image, and gets it through a mirror.
    """
    if name == "deploy":
        _forget(bench, run.image)
    address = bench.registry.address if name != "deploy" else ""
    for fault in run.faults:
        # Where nothing was pushed, nothing can be altered that was.
        if FAULTS[fault] == name and (run.pushed or name == "build"):
            target = str(targets.get(fault, run.image))
            happened = find_attack(fault).do(Scene(bench, target, run.release))
            run.planted.append(happened)
            address = happened.address or address
    if name == "deploy":
        address = address or mirror.place(bench, "mirror", None)
        Journal(bench.state).note(Change("delivery", "container", service_name(bench)))
    return address


def _forget(bench: Bench, image: str) -> None:
    """Take an image off the engine, with all its names and all that was started from it."""
    with bench.engine.doing(f"removing the image '{image}'", AttackError):
        held = bench.engine.image(image)
        for container in _keeping(bench, held) if held else ():
            discard(container)
    # A pull of what somebody pushed over the tag leaves the built image by digest only.
    remove_names(bench, f"{bench.registry.address}/{REPOSITORY}", of=held.id if held else None)


def _keeping(bench: Bench, held: Image) -> Iterator[Container]:
    """Yield the containers that keep an image, or one of the layers that it adds to its base.

    Of the latter there are those in which it was built: the SDK leaves them behind unless told
    otherwise. Only a builder names an image by its whole ID.
    """
    own = _layers(held) - base_layers(bench)
    containers = bench.engine.client.containers
    # One that is gone by the time it is asked about is no error.
    for container in containers.list(all=True, ignore_removed=True):
        named = str(container.attrs["Config"]["Image"])
        stopped = container.status in ("created", "exited")
        built = bench.engine.image(named) if stopped and named.startswith("sha256:") else None
        if built is not None and own & _layers(built):
            yield container
    yield from containers.list(all=True, filters={"ancestor": str(held.id)}, ignore_removed=True)


def _layers(held: Image) -> set[str]:
    return set((held.attrs.get("RootFS") or {}).get("Layers") or ())


def run_step(script: Path, name: str, environment: Mapping[str, str]) -> Step:
    """Run a script for one step in its own folder; one that hangs ends with all it started."""
    script = script.absolute()
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            [*_command(script), name],
            cwd=script.parent,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise AttackError(
            f"running the delivery script '{script}': {error.strerror or error}. Make it readable."
        ) from error
    with process:
        try:
            output, _ = process.communicate(timeout=STEP_SECONDS)
            code = process.returncode
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            told = f"\n(ended: it took more than {STEP_SECONDS:.0f} s)\n"
            output, code = process.communicate()[0] + told, TIMED_OUT
    return Step(name, code, output, time.monotonic() - began)


def _command(script: Path) -> list[str]:
    """Return the beginning of the command line that runs a script: Python or a shell."""
    doing = f"running the delivery script '{script}'"
    if not script.is_file():
        raise AttackError(f"{doing}: there is no such file. Write it first, or copy another.")
    if script.suffix == ".py":
        return [sys.executable, str(script)]
    if script.suffix == ".sh":
        return [shutil.which("bash") or "sh", str(script)]
    raise AttackError(f"{doing}: its name ends in neither '.py' nor '.sh'. Rename it.")


def _pushed(bench: Bench, image: Reference, signs: Iterable[str]) -> Pushed | None:
    """Return what the registry has under a tag; None where it has no image there."""
    try:
        held = bench.registry.image(image)
    except NotInRegistry:
        return None
    # A sign that is a layer's diff ID is known without a look inside.
    texts = [str(image.tag), *(sign for sign in signs if sign and not sign.startswith("sha256:"))]
    found: dict[str, str] = {}
    for layer, diff_id in own_layers(bench, held).items():
        blob = bench.registry.open_blob(image.repository, layer.digest)
        doing = f"looking into the layer '{layer.digest}' of '{image}'"
        with opened(blob, diff_id=diff_id, doing=doing) as stream:
            rest = b""
            while piece := stream.read(4 * 1024 * 1024):
                plain = rest + piece
                found |= {t: layer.digest for t in texts if t.encode() in plain and t not in found}
                rest = plain[-200:]  # a text may lie across two pieces
    return Pushed(held.digest, held.config.diff_ids, found)


def _deployed(bench: Bench) -> Deployed | None:
    """Return the container that runs under the service's name, once it answers or won't."""
    name = service_name(bench)
    container = own_container(bench, name)
    if container is None:
        return None
    doing = f"looking for the service '{name}'"
    with bench.engine.doing(doing, AttackError):
        try:
            wait_until_ready(container, PORT, "/", doing=doing, seconds=ANSWER_SECONDS)
            answers = True
        except RunError:
            answers = False
        held = bench.engine.image(container.attrs["Image"])
        if container.status != "running" or held is None:
            return None
        diff_ids = tuple(held.attrs["RootFS"]["Layers"])
        log = container.logs(tail=200).decode("utf-8", "replace")
        return Deployed(diff_ids, answers, log)
