"""The judgement of a delivery: for each fault, whether the script survived it, and the evidence."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from labapp.attacks.catalogue import find_attack
from labapp.attacks.forging import marker
from labapp.attacks.middleman import FORGED
from labapp.attacks.pipeline import PipelineRun, run_pipeline
from labapp.attacks.saboteur import FAULTS, Planted, named
from labapp.bench import Bench
from labapp.feedback import Feedback, QuietFeedback


@dataclass(frozen=True)
class Judged:
    """How a delivery fared with one fault.

    Attributes:
        fault: the attack's id.
        step: of the journey.
        planted: whether it came to that; after a script has stopped, nothing more is planted.
        survived: whether the wrong thing was kept from running: by a stop, or by delivering the
            right one all the same. None where it was not tried.
        happened: the same in words.
        evidence: what gives the fault away, by what it is: digests, files.
    """

    fault: str
    step: str
    planted: bool
    survived: bool | None
    happened: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """How a delivery fared.

    Attributes:
        ok: whether it survived every fault; without any, whether it delivered.
        happened: how it ended, in words.
        faults: each one that was chosen.
    """

    ok: bool
    happened: str
    faults: tuple[Judged, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row a fault: ``fault``, ``step``, ``survived``, ``happened``, ``evidence``.

        ``survived`` is missing where the fault was not tried.
        """
        rows = [
            (
                each.fault,
                each.step,
                each.survived,
                each.happened,
                ", ".join(f"{name}: {value}" for name, value in each.evidence.items()),
            )
            for each in self.faults
        ]
        table = pd.DataFrame(rows, columns=["fault", "step", "survived", "happened", "evidence"])
        return table.astype({"survived": "boolean"})

    def _repr_html_(self) -> str:
        """Show the faults in a notebook, or how it ended where there were none."""
        if not self.faults:
            return html.escape(self.happened)
        shown = self.table.astype({"survived": object}).fillna({"survived": "not tried"})
        shown = shown.map(lambda value: html.escape(str(value)))
        # A line a piece: whole digests in one paragraph can't be read.
        shown["evidence"] = [
            "<br>".join(html.escape(f"{name}: {value}") for name, value in each.evidence.items())
            for each in self.faults
        ]
        return shown.to_html(index=False, escape=False)


@dataclass(frozen=True)
class Proof:
    """One delivery of those that prove a script.

    Attributes:
        run: the delivery.
        ok: whether the script delivered, or survived the fault.
        happened: how it ended, in words.
    """

    run: PipelineRun
    ok: bool
    happened: str

    @property
    def seconds(self) -> float:
        """How long the script's own steps took."""
        return round(sum(step.seconds for step in self.run.steps), 1)


def judge(run: PipelineRun) -> Judgement:
    """Judge a delivery by what runs at its end, and say what was planted.

    A script survives a fault when it stops with an exit code other than 0 and leaves nothing wrong
    running, or when what it deployed is what it pushed, without the fault in it.
    """
    planted = {each.fault: each for each in run.planted}
    faults = tuple(_judged(run, fault, planted.get(fault)) for fault in run.planned)
    lost = sum(each.survived is False for each in faults)
    happened = f"{lost} of {len(faults)} faults not survived" if lost else ending(run)
    ok = lost == 0 if faults else run.delivered
    return Judgement(ok, happened, faults)


def prove(
    bench: Bench,
    script: Path,
    *,
    faults: Iterable[str] = tuple(FAULTS),
    app: Path | None = None,
    feedback: Feedback,
) -> pd.DataFrame:
    """Run a delivery script without a fault, then with each fault alone, and show how far it is.

    Args:
        bench: which lab.
        script: see :func:`run_pipeline`, also for ``app``.
        faults: which faults; by default all of them.
        app: the folder to build from.
        feedback: where it is told.

    Returns:
        A row a run: ``fault`` (empty for none), ``passed``, ``stopped_at``, ``happened``,
        ``last_line`` (of the step at which it stopped), ``seconds``. Where the script does not
        deliver without a fault, that is the only row.

    Raises:
        AttackError: there is no such fault; besides, as :func:`run_pipeline`.
    """
    rows = []
    runs = ("", *named(tuple(faults)).faults)
    title = f"proving {script.name}: a delivery without a fault, and one with each"
    with feedback.bars(title, unit="steps") as bars:
        for done, fault in enumerate(runs):
            bars.update(script.name, done, len(runs), fault)
            proof = attempt(bench, script, fault, app=app)
            run, last_line = proof.run, proof.run.last_line
            rows.append((fault, proof.ok, run.stopped_at, proof.happened, last_line, proof.seconds))
            if not (fault or proof.ok):
                break
        bars.finish(script.name, "")
    columns = ["fault", "passed", "stopped_at", "happened", "last_line", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def attempt(bench: Bench, script: Path, fault: str, *, app: Path | None = None) -> Proof:
    """Run a delivery script in silence, with one fault or, where that is empty, without."""
    faults = (fault,) if fault else ()
    run = run_pipeline(bench, script, faults=faults, app=app, feedback=QuietFeedback())
    judgement = judge(run)
    happened = judgement.faults[0].happened if fault else judgement.happened
    return Proof(run, judgement.ok, happened)


def _judged(run: PipelineRun, fault: str, planted: Planted | None) -> Judged:
    step = find_attack(fault).step
    if planted is None:
        if run.stopped_at and not run.undone_at:
            return Judged(fault, step, False, None, f"{ending(run)} before")
        # Where nothing was pushed although all steps went well, nothing was delivered either.
        return Judged(fault, step, False, False, ending(run))
    evidence = dict(planted.evidence)
    if run.pushed is not None and planted.sign in run.pushed.signs:
        evidence["layer"] = run.pushed.signs[planted.sign]
    if line := _line(run, fault):
        evidence["log line"] = line
    survived, happened = (False, run.lacks) if run.undone_at else _outcome(run, planted)
    return Judged(fault, step, True, survived, happened, evidence)


def _line(run: PipelineRun, fault: str) -> str:
    """Return the line that tells of a fault, in the service's log or in the mirror's."""
    if fault == "transit":
        text, sign = run.mirror_log, FORGED
    else:
        text, sign = run.deployed.log if run.deployed else "", marker(fault)
    return next((line.strip() for line in text.splitlines() if sign in line), "")


def _outcome(run: PipelineRun, planted: Planted) -> tuple[bool, str]:
    if run.deployed is None:
        return bool(run.stopped_at), ending(run)
    signs, below = (run.pushed.signs, run.pushed.diff_ids) if run.pushed is not None else ({}, ())
    same = run.deployed.diff_ids == below
    # What somebody put on top of the image still has in it what the image had.
    on_top = bool(below) and run.deployed.diff_ids[: len(below)] == below
    if planted.sign in run.deployed.diff_ids or (on_top and planted.sign in signs):
        return False, "it is in what runs: it got through"
    if any(each.sign in run.deployed.diff_ids for each in run.planted):
        return True, "another fault got through; this one is not in what runs"
    if run.stopped_at and same:
        return True, f"the script stopped at '{run.stopped_at}'; what runs is the right image"
    return not run.lacks, run.lacks or "the right image was delivered all the same"


def ending(run: PipelineRun) -> str:
    """Return how a delivery ended, in words, without a look at its faults."""
    if run.undone_at:
        return run.lacks
    if run.stopped_at:
        return f"the script stopped at '{run.stopped_at}'"
    if run.lacks:
        return f"all steps went well, but {run.lacks}"
    return "the image that was built was delivered, and it answers"
