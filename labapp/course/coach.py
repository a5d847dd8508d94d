"""The coach: judges exercises, gives hints, one more at each call, and notes both.

Where a notebook is graded, a submission stands in for the lab. nbgrader and otter run a notebook
once more, on a machine that has neither the learner's engine nor images. What shows there that an
exercise was passed is its receipt, in ``receipts.json`` beside the notebook: a learner's
``lab.check(…, strict=True)`` puts a copy there, and it is handed in along with the notebook.
nbgrader says in NBGRADER_EXECUTION that it grades; for another grader, name the file in
LABAPP_RECEIPTS.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from labapp.attacks.delivery import PipelineRun, Saboteur
from labapp.bench import Bench
from labapp.course import receipts
from labapp.course.exercises import Verdict, find_exercise
from labapp.course.receipts import SUBMITTED, Receipts
from labapp.errors import ExerciseError, StateError


@dataclass(frozen=True)
class Coach:
    """What stands behind ``lab.check``, ``lab.hint`` and ``lab.solution``.

    Attributes:
        bench: what the checks look at.
    """

    bench: Bench
    _shown: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def receipts(self) -> Receipts:
        """Where it is noted what was passed, and after how many tries."""
        return Receipts(self.bench.state)

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """Judge an exercise by what the engine, the registry and the chapter's files hold.

        The first right answer gets a receipt. What was not tried at all is no try.

        Args:
            id: the exercise, such as ``03-pin``.
            answer: for an exercise that asks for one.
            strict: raise ``AssertionError`` unless the verdict is Correct, and put a copy of the
                receipts beside the notebook, by which a grader judges elsewhere.

        Raises:
            ExerciseError: there is no such exercise.
        """
        exercise = find_exercise(id)
        verdict = self._elsewhere(id) or exercise.check(self.bench, answer)
        if verdict.outcome != "NotYet":
            verdict = self._noted(id, verdict)
        if strict:
            with _told():
                self.receipts.save(Path.cwd() / SUBMITTED)
            _insist(verdict)
        return verdict

    def hint(self, id: str) -> None:
        """Show the next hint for an exercise; after the last one, the last again."""
        hints = find_exercise(id).hints
        number = min(self._shown.get(id, 0), len(hints) - 1)
        self._shown[id] = number + 1
        with _told():
            self.receipts.note_hint(id, number + 1)
        _show(f"**Hint {number + 1} of {len(hints)}.** {hints[number]}")

    def solution(self, id: str) -> None:
        """Show a way to solve an exercise, and why it works."""
        exercise = find_exercise(id)
        with _told():
            self.receipts.note_solution(id)
        _show(f"```python\n{exercise.solution}\n```\n\n{exercise.why}")

    def _elsewhere(self, id: str) -> Verdict | None:
        """Return a verdict if the exercise belongs to another chapter than the notebook's.

        The check would look for its files in this chapter's folder, and tell of the wrong ones.
        """
        here = self.bench.work.name
        if not (here.isdigit() and len(here) == 2) or here == id[:2]:
            return None
        return Verdict(
            "NotYet",
            f"{id} is an exercise of chapter {id[:2]}, and this notebook opened chapter {here}. "
            "Check it there.",
        )

    def _noted(self, id: str, verdict: Verdict) -> Verdict:
        """Note a try. Where that can't be done, the verdict stands all the same, and says so."""
        try:
            is_right = verdict.outcome == "Correct"
            self.receipts.note_try(id, evidence=verdict.evidence if is_right else None)
        except StateError as error:
            return replace(verdict, message=f"{verdict.message} (Not noted: {error})")
        return verdict


@dataclass(frozen=True)
class Submission:
    """What stands in for the lab where a notebook is graded: its checks, and nothing else.

    Attributes:
        file: the receipts that were handed in.
    """

    file: Path

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """Judge an exercise by its receipt; the answer was judged where the engine is.

        Args:
            id: the exercise, such as ``03-pin``.
            answer: ignored.
            strict: raise ``AssertionError`` unless the verdict is Correct.

        Raises:
            ExerciseError: there is no such exercise.
        """
        verdict = self._verdict(find_exercise(id).id)
        if strict:
            _insist(verdict)
        return verdict

    def hint(self, id: str) -> None:
        """Show nothing: nobody works here."""

    def solution(self, id: str) -> None:
        """Show nothing: nobody works here."""

    def clean_up(self) -> None:
        """Do nothing: nothing was made here."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ExerciseError(
            f"using 'lab.{name}': this notebook is being graded, from the receipts in "
            f"'{self.file}', and has no engine. Only 'lab.check' works here."
        )

    def _verdict(self, id: str) -> Verdict:
        try:
            record = receipts.read(self.file)
        except FileNotFoundError:
            return Verdict(
                "NotYet",
                f"There is no '{self.file.name}' beside the notebook. Run the checks where the "
                "lab is; they write it. Then hand it in with the notebook.",
            )
        if id in record.passed:
            receipt = record.passed[id]
            said = f"Passed by {record.learner} at {receipt.time}."
            return Verdict("Correct", said, receipt.evidence)
        if record.broken is not None:
            return Verdict(
                "Wrong",
                f"The receipts are not as the lab wrote them: {record.broken.text}. What comes "
                "after does not count.",
            )
        return Verdict("NotYet", f"The receipts of {record.learner} have none for {id}.")


def submission(folder: Path) -> Submission | None:
    """Return what stands in for the lab, if this process grades a notebook in a folder."""
    named = os.environ.get("LABAPP_RECEIPTS")
    if named:
        return Submission(folder / named)
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return Submission(folder / SUBMITTED)
    return None


def _insist(verdict: Verdict) -> None:
    if verdict.outcome != "Correct":
        raise AssertionError(str(verdict))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what could not be noted, and go on: a hint is worth more than its note."""
    try:
        yield
    except StateError as error:
        print(f"Not noted: {error}", flush=True)


def _show(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))  # type: ignore[no-untyped-call]


def saboteur(receipts: Receipts) -> Saboteur:
    """Return the saboteur that works against a learner."""
    return Saboteur(receipts.seed_for("08-survive"), receipts.seed_for("08-find"))


def own_seed(bench: Bench) -> int:
    """Return the learner's own seed."""
    return saboteur(Receipts(bench.state)).own_seed


def told(receipts: Receipts, run: PipelineRun) -> bool:
    """Tell whether the judge may say what happened: of one's own seed not before 08-find."""
    return run.seed != saboteur(receipts).own_seed or "08-find" in receipts.read().passed
