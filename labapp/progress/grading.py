"""Checks where a notebook is graded: on a machine that has neither the learner's engine nor images.

nbgrader and otter run a notebook once more, elsewhere. What the engine and the registry held is
not there. What shows that an exercise was passed is its receipt, in ``receipts.json`` beside the
notebook: a learner's ``lab.check(…, strict=True)`` puts a copy there, and it is handed in along
with the notebook. nbgrader says in NBGRADER_EXECUTION that it grades; for another grader, name the
file in LABAPP_RECEIPTS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from labapp.errors import ExerciseError
from labapp.exercises import find_exercise
from labapp.exercises.exercise import Verdict, correct, not_yet, wrong
from labapp.progress import chain
from labapp.progress.receipts import SUBMITTED


@dataclass(frozen=True)
class Submission:
    """What stands in for the lab where a notebook is graded: its checks, and nothing else.

    Attributes:
        file: the receipts that were handed in.
    """

    file: Path

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """Judge an exercise by its receipt.

        Args:
            id: the exercise, such as ``03-pin``.
            answer: ignored; it was judged where the engine is.
            strict: raise ``AssertionError`` unless the verdict is Correct.

        Raises:
            ExerciseError: there is no such exercise.
        """
        verdict = self._verdict(find_exercise(id).id)
        if strict and verdict.outcome != "Correct":
            raise AssertionError(str(verdict))
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
            record = chain.read(self.file)
        except FileNotFoundError:
            return not_yet(
                f"There is no '{self.file.name}' beside the notebook. Run the checks where the "
                "lab is; they write it. Then hand it in with the notebook."
            )
        if id in record.passed:
            receipt = record.passed[id]
            return correct(
                f"Passed by {record.learner} at {receipt.time}.", evidence=receipt.evidence
            )
        if record.broken is not None:
            return wrong(
                f"The receipts are not as the lab wrote them: {record.broken.text}. What comes "
                "after does not count."
            )
        return not_yet(f"The receipts of {record.learner} have none for {id}.")


def submission(folder: Path) -> Submission | None:
    """Return what stands in for the lab, if this process grades a notebook; None if it does not.

    Args:
        folder: where the notebook is.
    """
    named = os.environ.get("LABAPP_RECEIPTS")
    if named:
        return Submission(folder / named)
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return Submission(folder / SUBMITTED)
    return None
