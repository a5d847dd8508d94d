"""The judgement of a delivery: for each fault, whether the script survived it, and the evidence."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.attacks.attacks import Happened, find_attack
from labapp.attacks.delivery import FAULTS, PipelineRun, run_pipeline
from labapp.attacks.forging import marker
from labapp.attacks.middleman import FORGED
from labapp.bench import Bench
from labapp.errors import AttackError

if TYPE_CHECKING:
    import pandas as pd

_NOTE = "delivery"
"""Where in the state the last delivery with a seed is noted."""


@dataclass(frozen=True)
class Judged:
    """How a delivery fared with one fault; ``survived`` is None where it was not tried.

    It is not planted where the script had stopped before. The evidence is what gives it away.
    """

    fault: str
    step: str
    planted: bool
    survived: bool | None
    happened: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """How a delivery fared: with each fault that was chosen and may be told, and how it ended.

    It is ``ok`` if it survived every fault or, where none was chosen, if it delivered.
    """

    run: PipelineRun = field(repr=False)
    faults: tuple[Judged, ...]
    ok: bool
    happened: str

    def _repr_html_(self) -> str:
        """Show the faults in a notebook, or how it ended where there are none."""
        import pandas as pd

        if not self.faults:
            return html.escape(self.happened)
        columns = ["fault", "step", "survived", "happened", "evidence"]
        table = pd.DataFrame(map(asdict, self.faults), columns=columns, dtype=object)
        table["survived"] = table["survived"].fillna("not tried")
        # A line a piece: whole digests in one paragraph can't be read.
        table["evidence"] = [
            "\n".join(map(": ".join, found.items())) for found in table["evidence"]
        ]
        table = table.map(lambda value: html.escape(str(value)).replace("\n", "<br>"))
        return table.to_html(index=False, escape=False)


def judge(run: PipelineRun, *, tell: bool = True) -> Judgement:
    """Judge a delivery by what runs at its end, and tell, or not, what was planted.

    A script survives a fault when it stops with an exit code other than 0 and leaves nothing wrong
    running, or when what it deployed is what it pushed, without the fault in it.
    """
    planted = {each.attack.id: each for each in run.planted}
    faults = tuple(_judged(run, fault, planted.get(fault)) for fault in run.faults)
    lost = [each for each in faults if each.survived is False]
    happened = f"{len(lost)} of {len(faults)} faults not survived" if lost else _ending(run)
    if len(faults) == 1:
        happened = faults[0].happened
    ok = not lost if faults else run.delivered
    return Judgement(run, faults, ok, happened) if tell else Judgement(run, (), ok, _ending(run))


def attempt(bench: Bench, script: Path, fault: str) -> Judgement:
    """Run a delivery script in silence, with one fault or, where that is empty, without."""
    with feedback.using(feedback.QuietFeedback()):
        return judge(run_pipeline(bench, script, faults=filter(None, [fault])))


def prove(bench: Bench, script: Path, *faults: str) -> pd.DataFrame:
    """Run a delivery script without a fault, then with each alone; see :meth:`Lab.prove`."""
    import pandas as pd

    attempts = ["", *(faults or FAULTS)]
    for fault in attempts[1:]:
        if fault not in list(FAULTS):
            raise AttackError(
                f"planning the fault {fault!r}: there is none. There are: {', '.join(FAULTS)}."
            )
    rows = []
    title = f"proving {script.name}: a delivery without a fault, and one with each"
    with feedback.bars(title, unit="steps") as bars:
        for done, fault in enumerate(attempts):
            bars.update(script.name, done, len(attempts), fault)
            judged = attempt(bench, script, fault)
            run, seconds = judged.run, round(sum(step.seconds for step in judged.run.steps), 1)
            rows.append((fault, judged.ok, run.stopped_at, judged.happened, run.last_line, seconds))
            if not (fault or judged.ok):
                break
        bars.finish(script.name, "")
    columns = ["fault", "passed", "stopped_at", "happened", "last_line", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _judged(run: PipelineRun, fault: str, planted: Happened | None) -> Judged:
    step = find_attack(fault).step
    if planted is None:
        # Where nothing was pushed although all steps went well, nothing was delivered either.
        survived = None if run.stopped_at and not run.undone_at else False
        return Judged(fault, step, False, survived, _ending(run))
    evidence = dict(planted.evidence)
    if run.pushed is not None and planted.sign in run.pushed.signs:
        evidence["layer"] = run.pushed.signs[planted.sign]
    text, sign = run.deployed.log if run.deployed else "", marker(fault)
    if fault == "transit":
        text, sign = run.mirror_log, FORGED
    if line := next((line.strip() for line in text.splitlines() if sign in line), ""):
        evidence["log line"] = line
    return Judged(fault, step, True, *_outcome(run, planted), evidence)


def _outcome(run: PipelineRun, planted: Happened) -> tuple[bool | None, str]:
    """Return whether a delivery survived what was planted, and what became of it, in words."""
    if run.undone_at:
        return False, run.lacks
    if run.deployed is None:
        return bool(run.stopped_at), _ending(run)
    signs, below = (run.pushed.signs, run.pushed.diff_ids) if run.pushed is not None else ({}, ())
    runs = run.deployed.diff_ids
    # What somebody put on top of the image still has in it what the image had.
    on_top = bool(below) and runs[: len(below)] == below
    if planted.sign in runs or (on_top and planted.sign in signs):
        return False, "it is in what runs: it got through"
    if any(each.sign in runs for each in run.planted):
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
    """What is known of the last delivery with a seed: what an answer about it is judged by.

    The image is what was pushed, by digest. For each fault that was planted, it is known what gives
    it away, by what it is; the others were left out, as the script had stopped.
    """

    seed: int
    release: str
    image: str
    planted: Mapping[str, Mapping[str, str]]
    left_out: tuple[str, ...]


def note_delivery(bench: Bench, run: PipelineRun) -> None:
    """Note a delivery; one without a seed is passed over."""
    if run.seed is None:
        return
    faults = judge(run).faults
    image = f"{run.image.rpartition(':')[0]}@{run.pushed.digest}" if run.pushed else ""
    planted = {each.fault: dict(each.evidence) for each in faults if each.planted}
    left_out = tuple(each.fault for each in faults if not each.planted)
    delivery = Delivery(run.seed, run.release, image, planted, left_out)
    bench.state.write(_NOTE, asdict(delivery))


def last_delivery(bench: Bench) -> Delivery | None:
    """Return the last delivery with a seed; None before the first."""
    try:
        return Delivery(**bench.state.read(_NOTE))
    except TypeError:  # there is none, or what is noted is no delivery
        return None
