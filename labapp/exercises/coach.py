"""The coach: judges exercises, and gives hints, one more at each call."""

from __future__ import annotations

from dataclasses import dataclass, field

from IPython.display import Markdown, display

from labapp.bench import Bench
from labapp.exercises import find_exercise
from labapp.exercises.exercise import Verdict


@dataclass(frozen=True)
class Coach:
    """What stands behind ``lab.check``, ``lab.hint`` and ``lab.solution``.

    Attributes:
        bench: what the checks look at.
    """

    bench: Bench
    _shown: dict[str, int] = field(default_factory=dict, repr=False)

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """Judge an exercise by what the engine, the registry and the chapter's files hold.

        Args:
            id: the exercise, such as ``03-pin``.
            answer: for an exercise that asks for one.
            strict: raise ``AssertionError`` unless the verdict is Correct.

        Raises:
            ExerciseError: there is no such exercise.
        """
        verdict = find_exercise(id).check(self.bench, answer)
        if strict and verdict.outcome != "Correct":
            raise AssertionError(str(verdict))
        return verdict

    def hint(self, id: str) -> None:
        """Show the next hint for an exercise; after the last one, the last again."""
        hints = find_exercise(id).hints
        number = min(self._shown.get(id, 0), len(hints) - 1)
        self._shown[id] = number + 1
        _show(f"**Hint {number + 1} of {len(hints)}.** {hints[number]}")

    def solution(self, id: str) -> None:
        """Show a way to solve an exercise, and why it works."""
        exercise = find_exercise(id)
        _show(f"```python\n{exercise.solution.strip()}\n```\n\n{exercise.why}")


def _show(text: str) -> None:
    display(Markdown(text))  # type: ignore[no-untyped-call]
