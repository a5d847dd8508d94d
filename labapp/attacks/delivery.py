"""The delivery: a script of the learner's own, run step by step, with a saboteur between the steps.

The script is called as ``SCRIPT build|inspect|push|pin|deploy`` in its own folder; what is what, it
learns from environment variables. It is judged by what runs at the end.

The server is another machine in real life. Here one engine plays both, so the image is taken off
it before ``deploy``, with what was started from it and what the builder keeps of it: what runs has
to come through the mirror.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import random
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from labapp import feedback
from labapp.attacks import attacks, journal
from labapp.attacks.attacks import Happened
from labapp.attacks.forging import marker
from labapp.attacks.journal import DELIVERY, Change, Journal, container_name
from labapp.attacks.middleman import FORGED
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry, RunError
from labapp.journey import transfer
from labapp.journey.run import PORT, discard, wait_until_ready
from labapp.reference import Reference

if TYPE_CHECKING:
    import pandas as pd
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


@dataclass(frozen=True)
class Saboteur:
    """Chooses the faults by seed and learner, a number; the own seed is looked for from another."""

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
        draw = random.Random(f"{self.learner}:{seed:d}")
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
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", self.output).rstrip()
        before, _, traceback = text.rpartition("Traceback (most recent call last):")
        if "CalledProcessError: " in traceback:
            text = before.rstrip() or text
        return text.rpartition("\n")[2].strip()


@dataclass(frozen=True)
class Pushed:
    """What the registry had right after the push, if anything, and which layer has the release."""

    digest: str = ""
    diff_ids: tuple[str, ...] = field(default=(), repr=False)
    layer: str = ""


@dataclass(frozen=True)
class Deployed:
    """The container that the script left running, and the end of what it has printed."""

    diff_ids: tuple[str, ...] = field(repr=False)
    answers: bool
    log: str = field(repr=False)


@dataclass(eq=False)
class PipelineRun:
    """A delivery, as far as it has come; what was planted is no part of it, but in its key.

    At the step ``undone_at``, if any, the script itself undid what was planted.
    """

    image: str
    seed: int | None = None
    steps: list[Step] = field(default_factory=list)
    pushed: Pushed = Pushed()
    deployed: Deployed | None = None
    undone_at: str = ""
    mirror_log: str = field(default="", repr=False)

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
        if not self.pushed.digest:
            return f"the registry has no '{self.image}'"
        if not self.pushed.layer:
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


@dataclass
class Key:
    """The answer to a delivery: its faults, what each did, and the layers with signs of that."""

    faults: tuple[str, ...] = ()
    planted: list[Happened] = field(default_factory=list)
    signs: Mapping[str, str] = field(default_factory=dict)


_KEYS: WeakKeyDictionary[PipelineRun, Key] = WeakKeyDictionary()


def key_of(run: PipelineRun) -> Key:
    """Return a delivery's key, which whoever has only the delivery is to find out."""
    return _KEYS.setdefault(run, Key())


def run_pipeline(
    bench: Bench, script: Path, *, seed: int | None = None, faults: Iterable[str] = ()
) -> PipelineRun:
    """Run a delivery script step by step, and plant faults in between.

    They stay, to be looked at, until the undo or the next run.
    """
    _command(script)
    app = journal.own_path(bench, script.parent / "app")
    if not app.is_dir():
        raise AttackError(f"delivering '{app}': there is no such folder. Make it first.")
    # Not told: it would give away what was planted last time.
    with feedback.using(feedback.QuietFeedback()):
        journal.undo(bench)
    base = attacks.copy_base(bench)
    # As on a fresh build machine: the tag is asked for anew, and nothing of earlier runs is there.
    transfer.remove(bench.engine, base)
    journal.remove_names(bench, f"{bench.registry.address}/{REPOSITORY}")
    release = f"r{secrets.token_hex(4)}"
    # As a version control system would name the commit.
    (app / RELEASE).write_text(release + "\n", encoding="utf-8")
    image = Reference(bench.registry.address, REPOSITORY, release)
    run, noted = PipelineRun(str(image), seed), Journal(bench.state)
    key = key_of(run)
    key.faults = tuple(faults)
    # How much is noted tells nobody how much is planted.
    for number in range(random.randint(1, 4)):
        noted.note(Change(DELIVERY, "image", f"{image}-{number}"))
    targets = {"base": base, "secret": app, "dependency": app}
    environment = bench.engine.environment() | {
        "LAB_BASE": str(base),
        "LAB_APP": str(app),
        "LAB_SERVICE": container_name(bench, "live"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
    }
    for name in STEPS:
        with feedback.using(feedback.QuietFeedback()):
            address = _prepare(bench, run, name, targets)
        environment["LAB_REGISTRY"] = address
        environment["LAB_IMAGE"] = str(replace(image, registry=address))
        feedback.command([script.name, name])
        before = noted.changes()
        step = run_step(script, name, environment)
        run.steps.append(step)
        if not run.undone_at and not all(change in noted.changes() for change in before):
            run.undone_at = name
        ended = "went well" if step.code == 0 else f"stopped with exit code {step.code}"
        feedback.say(f"{name}: {ended} after {step.seconds:.1f} s")
        if step.code != 0:
            break
        if name == "push":
            run.pushed, key.signs = _pushed(bench, image, [each.sign for each in key.planted])
    run.deployed, run.mirror_log = _deployed(bench), attacks.mirror_log(bench)
    return run


def _prepare(bench: Bench, run: PipelineRun, name: str, targets: Mapping[str, object]) -> str:
    """Plant the faults before a step, and return the address at which it finds the registry."""
    address = bench.registry.address
    if name == "deploy":
        # This is the server's, which has never seen the image, and gets it through a mirror.
        _forget(bench, run.image)
        address = ""
    for fault in key_of(run).faults:
        # Where nothing was pushed, nothing can be altered that was.
        if FAULTS[fault] == name and (run.pushed.digest or name == "build"):
            target = str(targets.get(fault, run.image))
            happened = attacks.ATTACKS[fault].do(bench, target, run.release)
            key_of(run).planted.append(happened)
            address = happened.address or address
    if name == "deploy":
        address = address or attacks.place_mirror(bench)
        Journal(bench.state).note(Change(DELIVERY, "container", container_name(bench, "live")))
    return address


def _forget(bench: Bench, image: str) -> None:
    """Take an image off the engine, with all its names and all that was started from it."""
    with bench.engine.doing(f"removing the image '{image}'", AttackError):
        containers, held = bench.engine.client.containers, bench.engine.image(image)
        if held:
            own, id = _layers(held) - attacks.base_layers(bench), str(held.id)
            keeping = containers.list(all=True, filters={"ancestor": id}, ignore_removed=True)
            for container in containers.list(all=True, ignore_removed=True):
                # The SDK leaves those it built in. Only a builder names an image by its whole ID.
                named, stopped = str(container.attrs["Config"]["Image"]), ("created", "exited")
                if named.startswith("sha256:") and container.status in stopped:
                    built = bench.engine.image(named)
                    if built and own & _layers(built):
                        keeping.append(container)
            for container in keeping:
                discard(container)
    # A pull of what somebody pushed over the tag leaves the built image by digest only.
    names = f"{bench.registry.address}/{REPOSITORY}"
    journal.remove_names(bench, names, of=held.id if held else None)


def _layers(image: Image) -> set[str]:
    return set((image.attrs.get("RootFS") or {}).get("Layers") or ())


def run_step(script: Path, name: str, environment: Mapping[str, str]) -> Step:
    """Run a script for one step in its own folder; an interruption ends all that it started."""
    import psutil

    script = script.absolute()
    began = time.monotonic()
    with subprocess.Popen(
        [*_command(script), name],
        cwd=script.parent,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(process.pid)
                for each in (first, *first.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
            raise
    return Step(name, process.returncode, output, time.monotonic() - began)


def _command(script: Path) -> list[str]:
    runners = {".py": sys.executable, ".sh": shutil.which("bash") or "sh"}
    if not script.is_file() or script.suffix not in runners:
        raise AttackError(f"running '{script}': it is no file named '….py' or '….sh'. Write one.")
    return [runners[script.suffix], str(script)]


def _pushed(
    bench: Bench, image: Reference, signs: Iterable[str]
) -> tuple[Pushed, Mapping[str, str]]:
    """Return what the registry has under a tag, and by signs that are in it, the layer."""
    try:
        held = bench.registry.image(image)
    except NotInRegistry:
        return Pushed(), {}
    # A sign that is a layer's diff ID is known without a look inside.
    texts = [str(image.tag), *(sign for sign in signs if sign and not sign.startswith("sha256:"))]
    found: dict[str, str] = {}
    for digest, layer in attacks.unpacked_layers(bench, held):
        found |= {text: digest for text in texts if text.encode() in layer and text not in found}
    release = found.pop(str(image.tag), "")
    return Pushed(held.digest, held.config.diff_ids, release), found


def _deployed(bench: Bench) -> Deployed | None:
    """Return the container that runs under the service's name, once it answers or won't."""
    name = container_name(bench, "live")
    container = bench.engine.container(name)
    if container is None:
        return None
    doing = f"looking for the service '{name}'"
    with bench.engine.doing(doing, AttackError):
        try:
            wait_until_ready(container, PORT, "/", doing=doing, seconds=15)
            answers = True
        except RunError:
            answers = False
        held = bench.engine.image(container.attrs["Image"])
        if container.status != "running" or held is None:
            return None
        diff_ids = tuple(held.attrs["RootFS"]["Layers"])
        log = container.logs(tail=200).decode("utf-8", "replace")
        return Deployed(diff_ids, answers, log)


@dataclass(frozen=True)
class Judged:
    """How a delivery fared with one fault; ``survived`` is None where it was not tried."""

    fault: str
    step: str
    survived: bool | None
    happened: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """How a delivery ended: ``ok`` if it survived its faults or, without any, if it delivered."""

    run: PipelineRun = field(repr=False)
    faults: tuple[Judged, ...]
    ok: bool
    happened: str

    def _repr_html_(self) -> str:
        """Show the faults in a notebook, or how it ended where there are none."""
        import pandas as pd

        if not self.faults:
            return html.escape(self.happened)
        table = pd.DataFrame([asdict(each) for each in self.faults], dtype=object)
        table["survived"] = table["survived"].fillna("not tried")
        # A line a piece: whole digests in one paragraph can't be read.
        table["evidence"] = ["\n".join(map(": ".join, e.items())) for e in table["evidence"]]
        shown = table.to_html(index=False).replace("\\n", "<br>")
        return re.sub("<(t[hd])>", r'<\1 style="text-align:left">', shown)


def judge(run: PipelineRun, *, tell: bool = True) -> Judgement:
    """Judge a delivery by what runs at its end, and tell, or not, what was planted.

    A script survives a fault when it stops with an exit code other than 0 and leaves nothing wrong
    running, or when what it deployed is what it pushed, without the fault in it.
    """
    planned, planted = key_of(run).faults, {each.attack.id: each for each in key_of(run).planted}
    faults = tuple(_judged(run, fault, planted.get(fault)) for fault in planned)
    ok = all(each.survived is not False for each in faults) if faults else run.delivered
    shown = faults if tell else ()
    return Judgement(run, shown, ok, "; ".join(each.happened for each in shown) or _ending(run))


def attempt(bench: Bench, script: Path, fault: str) -> Judgement:
    """Run a delivery script in silence, with one fault or, where that is empty, without."""
    with feedback.using(feedback.QuietFeedback()):
        return judge(run_pipeline(bench, script, faults=filter(None, [fault])))


def prove(bench: Bench, script: Path, *faults: str) -> pd.DataFrame:
    """Run a delivery script without a fault, then with each alone; see :meth:`Lab.prove`."""
    attempts = ["", *(faults or FAULTS)]
    if unknown := [fault for fault in faults if fault not in FAULTS]:
        raise AttackError(
            f"planning the fault {unknown[0]!r}: there is none. There are: {', '.join(FAULTS)}."
        )
    import pandas as pd

    rows = []
    title = f"proving {script.name}: a delivery without a fault, and one with each"
    with feedback.bars(title, unit="steps") as bars:
        for done, fault in enumerate(attempts):
            bars.update(script.name, done, len(attempts), fault)
            judged = attempt(bench, script, fault)
            run = judged.run
            row = {"fault": fault, "passed": judged.ok, "stopped_at": run.stopped_at}
            row |= {"happened": judged.happened, "last_line": run.last_line}
            rows.append(row | {"seconds": round(sum(step.seconds for step in run.steps), 1)})
            if not (fault or judged.ok):
                break
    return pd.DataFrame(rows)


def _judged(run: PipelineRun, fault: str, planted: Happened | None) -> Judged:
    evidence = dict(planted.evidence) if planted else {}
    if planted and planted.sign in key_of(run).signs:
        evidence["layer"] = key_of(run).signs[planted.sign]
    text, sign = run.deployed.log if run.deployed else "", marker(fault)
    if fault == "transit":
        text, sign = run.mirror_log, FORGED
    line = next((line.strip() for line in text.splitlines() if sign in line), "")
    if planted and line:
        evidence["log line"] = line
    return Judged(fault, attacks.ATTACKS[fault].step, *_outcome(run, planted), evidence)


def _outcome(run: PipelineRun, planted: Happened | None) -> tuple[bool | None, str]:
    """Return whether a delivery survived what was planted, and what became of it, in words."""
    if run.undone_at:
        return False, run.lacks
    if planted is None:
        # Where nothing was pushed although all steps went well, nothing was delivered either.
        return None if run.stopped_at else False, _ending(run)
    if run.deployed is None:
        return bool(run.stopped_at), _ending(run)
    runs, below = run.deployed.diff_ids, run.pushed.diff_ids
    # What somebody put on top of the image still has in it what the image had.
    on_top = bool(below) and runs[: len(below)] == below
    if planted.sign in runs or (on_top and planted.sign in key_of(run).signs):
        return False, "it is in what runs: it got through"
    if any(each.sign in runs for each in key_of(run).planted):
        return True, "another fault got through; this one is not in what runs"
    if run.stopped_at and runs == below:
        return True, f"the script stopped at '{run.stopped_at}'; what runs is the right image"
    if run.lacks:
        return False, run.lacks
    blob = planted.evidence.get("blob")
    if blob and not run.fetched(blob):
        return None, "the server had that layer already, so nobody fetched the altered blob"
    return True, "the right image was delivered all the same"


def _ending(run: PipelineRun) -> str:
    """Return how a delivery ended, in words, without a look at its faults."""
    if run.stopped_at and not run.undone_at:
        return f"the script stopped at '{run.stopped_at}'"
    return run.lacks or "the image that was built was delivered, and it answers"


@dataclass(frozen=True)
class Delivery:
    """What was pushed by the last delivery with a seed, and each fault with its evidence."""

    seed: int
    release: str
    image: str
    planted: Mapping[str, Mapping[str, str]]


def note_delivery(bench: Bench, run: PipelineRun) -> None:
    """Note a delivery; one without a seed is passed over."""
    if run.seed is not None:
        image = f"{run.image.rpartition(':')[0]}@{run.pushed.digest}"
        planted = {each.fault: each.evidence for each in judge(run).faults}
        noted = Delivery(run.seed, run.release, image, planted)
        bench.state.seal("delivery", asdict(noted))


def last_delivery(bench: Bench) -> Delivery | None:
    """Return the last delivery with a seed; None before the first."""
    try:
        return Delivery(**bench.state.unseal("delivery"))
    except TypeError:  # there is none, or it was noted by another version of the lab
        return None
