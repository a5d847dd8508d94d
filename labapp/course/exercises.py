"""The exercises, found by their id, and the three verdicts that one can get.

What a learner reads of an exercise is in ``texts/03-pin.md``; the function that judges it is
``check_03_pin`` in ``chapter03``. Nothing else has to know of it.
"""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labapp.errors import ExerciseError

if TYPE_CHECKING:
    from labapp.bench import Bench

Outcome = Literal["Correct", "NotYet", "Wrong"]

TEXTS = Path(__file__).parent / "texts"

_COLOURS = {"Correct": "#1f7a33", "NotYet": "#8a6100", "Wrong": "#bd1f01"}
_SIGNS = {"Correct": "✓ Correct", "NotYet": "… Not yet", "Wrong": "✗ Wrong"}

_HEAD = re.compile(r"---\ntitle: (.+)\nnumber: (\d+)\nstep: (\w+)\n---\n")
_PART = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_HINT = re.compile(r"^\d+\. (.*?)(?=^\d+\. |\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


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


class Unmet(Exception):
    """Ends a check at the first thing that is not as it should be."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.verdict = Verdict(outcome, message)


def correct(message: str, **evidence: object) -> Verdict:
    """Return the verdict that an exercise is done, and what shows it, for the receipt."""
    return Verdict("Correct", message, {name: str(value) for name, value in evidence.items()})


def not_yet(message: str) -> Unmet:
    """Return what to raise where nothing to judge is there yet."""
    return Unmet("NotYet", message)


def wrong(message: str) -> Unmet:
    """Return what to raise where what is there is not what was asked for."""
    return Unmet("Wrong", message)


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its file in ``texts`` tells it.

    Attributes:
        id: chapter and a word, such as ``03-pin``.
        title: as in the notebook.
        number: its place in the chapter.
        step: of the journey map, which it helps to light: an attack's id, or ``all``.
        hints: from a nudge to nearly the answer.
        solution: Python code for the exercise's cell.
        why: a sentence or two on the solution.
    """

    id: str
    title: str
    number: int
    step: str
    hints: tuple[str, ...]
    solution: str
    why: str

    def check(self, bench: Bench, answer: object = ...) -> Verdict:
        """Judge what engine, registry and files hold, and an answer where one is asked for."""
        chapter, _, word = self.id.partition("-")
        module = importlib.import_module(f"labapp.course.chapter{chapter}")
        check: Callable[[Bench, object], Verdict] = getattr(module, f"check_{chapter}_{word}")
        try:
            return check(bench, answer)
        except Unmet as unmet:
            return unmet.verdict


def all_exercises() -> dict[str, Exercise]:
    """Return every exercise by its id, in the order of the chapters."""
    found = [_read(file) for file in TEXTS.glob("*.md")]
    found.sort(key=lambda each: (each.id[:2], each.number))
    return {each.id: each for each in found}


def find_exercise(id: str) -> Exercise:
    """Return the exercise with an id.

    Raises:
        ExerciseError: there is none; the message lists those of the same chapter.
    """
    file = TEXTS / f"{id}.md"
    if re.fullmatch(r"\d\d-\w+", str(id)) and file.is_file():
        return _read(file)
    known = all_exercises()
    near = [each for each in known if each[:2] == str(id)[:2]] or list(known)
    raise ExerciseError(
        f"looking up the exercise {id!r}: there is none. Known here: {', '.join(near)}."
    )


def _read(file: Path) -> Exercise:
    """Read an exercise's file, which a teacher may have edited."""
    text = file.read_text(encoding="utf-8")
    head = _HEAD.match(text)
    parts = {name: part.strip() for name, part in _PART.findall(text)}
    hints = tuple(" ".join(hint.split()) for hint in _HINT.findall(parts.get("Hints", "")))
    code = _CODE.search(parts.get("Solution", ""))
    if head is None or not hints or code is None or not parts.get("Why"):
        raise ExerciseError(
            f"reading the exercise '{file}': it needs a head of 'title', 'number' and 'step', and "
            "the parts '## Hints' (a numbered list), '## Solution' (a block of python) and "
            "'## Why'. Compare it with the file of another exercise."
        )
    why = " ".join(parts["Why"].split())
    return Exercise(file.stem, head[1], int(head[2]), head[3], hints, code[1].rstrip(), why)
