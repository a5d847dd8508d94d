"""The coach: judges exercises, gives hints, one more at each call, and notes both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from IPython.display import Markdown, display

from labapp.bench import Bench
from labapp.errors import StateError
from labapp.exercises import find_exercise
from labapp.exercises.exercise import Verdict, not_yet
from labapp.progress.receipts import SUBMITTED, Receipts


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
        if strict and verdict.outcome != "Correct":
            raise AssertionError(str(verdict))
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
        _show(f"```python\n{exercise.solution.strip()}\n```\n\n{exercise.why}")

    def _elsewhere(self, id: str) -> Verdict | None:
        """Return a verdict if the exercise belongs to another chapter than the notebook's.

        The check would look for its files in this chapter's folder, and tell of the wrong ones.
        """
        here = self.bench.work.name
        if not (here.isdigit() and len(here) == 2) or here == id[:2]:
            return None
        return not_yet(
            f"{id} is an exercise of chapter {id[:2]}, and this notebook opened chapter {here}. "
            "Check it there."
        )

    def _noted(self, id: str, verdict: Verdict) -> Verdict:
        """Note a try. Where that can't be done, the verdict stands all the same, and says so."""
        try:
            is_right = verdict.outcome == "Correct"
            self.receipts.note_try(id, evidence=verdict.evidence if is_right else None)
        except StateError as error:
            return replace(verdict, message=f"{verdict.message} (Not noted: {error})")
        return verdict


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what could not be noted, and go on: a hint is worth more than its note."""
    try:
        yield
    except StateError as error:
        print(f"Not noted: {error}", flush=True)


def _show(text: str) -> None:
    display(Markdown(text))  # type: ignore[no-untyped-call]
