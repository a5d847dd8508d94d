"""What an exercise is, and the three verdicts that it can get."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from labapp.bench import Bench

Outcome = Literal["Correct", "NotYet", "Wrong"]

_COLOURS = {"Correct": "#1f7a33", "NotYet": "#8a6100", "Wrong": "#bd1f01"}
_SIGNS = {"Correct": "✓ Correct", "NotYet": "… Not yet", "Wrong": "✗ Wrong"}


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        outcome: ``Correct``; ``NotYet`` when nothing was tried; ``Wrong`` when something was.
        message: what was found, what was expected, and the likely slip; never the answer.
        evidence: what a right answer was judged by, for the receipt; an image as a reference with
            its digest, so that it can be asked for again.
    """

    outcome: Outcome
    message: str
    evidence: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{_SIGNS[self.outcome]}: {self.message}"

    def _repr_html_(self) -> str:
        """Show the verdict in a notebook."""
        colour = _COLOURS[self.outcome]
        return (
            f'<div class="labapp-verdict" data-outcome="{self.outcome}" role="status" '
            f'style="border-left:4px solid {colour};padding:4px 10px;margin:4px 0">'
            f'<b style="color:{colour}">{_SIGNS[self.outcome]}</b> '
            f"{html.escape(self.message)}</div>"
        )


def correct(message: str, *, evidence: Mapping[str, str] | None = None) -> Verdict:
    """Return the verdict that an exercise is done, and what shows it."""
    return Verdict("Correct", message, evidence or {})


def not_yet(message: str) -> Verdict:
    """Return the verdict that nothing to judge is there yet."""
    return Verdict("NotYet", message)


def wrong(message: str) -> Verdict:
    """Return the verdict that what is there is not what was asked for."""
    return Verdict("Wrong", message)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: chapter and a word, such as ``03-pin``.
        check: looks at engine, registry and files; is given the bench and the learner's answer,
            which is ``...`` as long as there is none.
        hints: from a nudge to nearly the answer.
        solution: Python code for the exercise's cell.
        why: a sentence or two on the solution.
    """

    id: str
    check: Callable[[Bench, object], Verdict]
    hints: tuple[str, ...]
    solution: str
    why: str
