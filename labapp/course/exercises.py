"""The exercises, their verdicts, and the coach who judges, helps, and notes both.

What a learner reads of an exercise is in ``texts/03-pin.md``; the function that judges it is
``check_03_pin`` in ``chapter03``. Nothing else has to know of it.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from labapp import feedback
from labapp.course import post, receipts
from labapp.course.receipts import SUBMITTED, Attempt, Receipts
from labapp.errors import ExerciseError, StateError

if TYPE_CHECKING:
    from labapp.attacks.delivery import Saboteur
    from labapp.bench import Bench

TEXTS = Path(__file__).parent / "texts"

NO_IMAGE = "none"
"""What an exercise declares as its evidence where it makes no image."""

_SIGNS = {"Correct": "✓ Correct", "NotYet": "… Not yet", "Wrong": "✗ Wrong"}
_COLOURS = {"Correct": "#1f7a33", "NotYet": "#8a6100", "Wrong": "#bd1f01"}

_HEAD = re.compile(r"---\ntitle: (.+)\nnumber: (\d+)\nstep: (\w+)\nevidence: ([\w/]+)(\*?)\n---\n")
_PART = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_HINT = re.compile(r"^\d+\. (.*?)(?=^\d+\. |\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """What a check found; ``NotYet`` when nothing was tried, ``Wrong`` when something was.

    The message says what was found and expected, and the likely slip; never the answer. The
    evidence names an image by its digest, so that it can be asked for again.
    """

    outcome: Literal["Correct", "NotYet", "Wrong"]
    message: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    _shown: set[int] = field(default_factory=set, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{_SIGNS[self.outcome]}: {self.message}"

    def _ipython_display_(self) -> None:
        """Show it once in a cell: a check does so by itself, wherever in the cell it stands."""
        from IPython import get_ipython
        from IPython.display import display

        count = getattr(get_ipython(), "execution_count", 0)
        if count not in self._shown:
            self._shown.add(count)
            shown = {"text/html": self._repr_html_(), "text/plain": str(self)}
            display(shown, raw=True)  # type: ignore[no-untyped-call]

    def _repr_html_(self) -> str:
        colour = _COLOURS[self.outcome]
        return (
            f'<div class="labapp-verdict" data-outcome="{self.outcome}" role="status" '
            f'style="border-left:4px solid {colour};padding:4px 10px;margin:4px 0">'
            f'<b style="color:{colour}">{_SIGNS[self.outcome]}</b> '
            f"{html.escape(self.message)}</div>"
        )


class NotYet(Exception):
    """Ends a check where nothing to judge is there yet."""


class Wrong(Exception):
    """Ends a check at the first thing that is not what was asked for."""


def correct(message: str, **evidence: object) -> Verdict:
    """Return the verdict that an exercise is done, and what shows it, for the receipt."""
    return Verdict("Correct", message, {name: str(value) for name, value in evidence.items()})


@dataclass(frozen=True)
class Exercise:
    """One exercise, as its file in ``texts`` tells it; the number is its place in the chapter.

    It helps to light a step of the journey map: an attack's id, or ``all``. Its receipt names an
    image in the repository ``evidence``, where it is not ``none``; a star behind that says that two
    learners may honestly have the same one (``alike``).
    """

    id: str
    title: str
    number: int
    step: str
    evidence: str
    alike: bool
    hints: tuple[str, ...]
    solution: str
    why: str

    def check(self, bench: Bench, answer: object = ...) -> Verdict:
        """Judge what engine, registry and files hold, and an answer where one is asked for."""
        chapter, _, word = self.id.partition("-")
        module = importlib.import_module(f"labapp.course.chapter{chapter}")
        check: Callable[[Bench, object], Verdict] = getattr(module, f"check_{chapter}_{word}")
        here = bench.work.name
        try:
            # Else it would look for files in another chapter's folder, and tell of the wrong ones.
            if re.fullmatch(r"\d\d", here) and here != chapter:
                raise NotYet(
                    f"{self.id} is an exercise of chapter {chapter}, and this notebook opened "
                    f"chapter {here}. Check it there."
                )
            return check(bench, answer)
        except NotYet as unmet:
            return Verdict("NotYet", str(unmet))
        except Wrong as unmet:
            return Verdict("Wrong", str(unmet))


def all_exercises() -> dict[str, Exercise]:
    """Return every exercise by its id, in the order of the chapters."""
    found = sorted(map(_read, TEXTS.glob("*.md")), key=lambda each: (each.id[:2], each.number))
    return {each.id: each for each in found}


def find_exercise(id: str) -> Exercise:
    """Return the exercise with an id; ExerciseError lists those that there are in the chapter."""
    known = sorted(file.stem for file in TEXTS.glob("*.md"))
    if id in known:
        return _read(TEXTS / f"{id}.md")
    near = ", ".join([each for each in known if each[:2] == str(id)[:2]] or known)
    raise ExerciseError(f"looking up the exercise {id!r}: there is none. Known here: {near}.")


def _read(file: Path) -> Exercise:
    """Read an exercise's file, which a teacher may have edited."""
    text = file.read_text(encoding="utf-8")
    head = _HEAD.match(text)
    parts = {name: part.strip() for name, part in _PART.findall(text)}
    hints = tuple(" ".join(hint.split()) for hint in _HINT.findall(parts.get("Hints", "")))
    code = _CODE.search(parts.get("Solution", ""))
    if head is None or not hints or code is None or not parts.get("Why"):
        raise ExerciseError(
            f"reading the exercise '{file}': it needs a head of 'title', 'number', 'step' and "
            "'evidence', and the parts '## Hints' (a numbered list), '## Solution' (a block of "
            "python) and '## Why'. Compare it with the file of another exercise."
        )
    why = " ".join(parts["Why"].split())
    title, number, step, evidence, star = head.groups()
    solution = code[1].rstrip()
    return Exercise(file.stem, title, int(number), step, evidence, bool(star), hints, solution, why)


@dataclass(frozen=True)
class Coach:
    """What stands behind ``lab.check``, ``lab.hint``, ``lab.solution`` and ``lab.help``."""

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
        verdict = find_exercise(id).check(self.bench, answer)
        with _told():
            if verdict.outcome != "NotYet":
                evidence = verdict.evidence if verdict.outcome == "Correct" else None
                self.receipts.note(id, Attempt(tries=1), evidence)
            if strict:
                self.receipts.save(Path.cwd() / SUBMITTED)
        post.post(self.receipts, id)
        return _insisted(verdict, strict=strict)

    def hint(self, id: str) -> None:
        """Show the next hint for an exercise; the last one says so, and is shown again."""
        hints = find_exercise(id).hints
        number = self._shown[id] = min(self._shown.get(id, 0) + 1, len(hints))
        with _told():
            self.receipts.note(id, Attempt(hints=number))
        text = f"**Hint {number} of {len(hints)}.** {hints[number - 1]}"
        if number == len(hints):
            text += f'\n\nThat was the last hint. `lab.solution("{id}")` shows one way to do it.'
        _show(text)

    def solution(self, id: str) -> None:
        """Show a way to solve an exercise, and why it works."""
        exercise = find_exercise(id)
        with _told():
            self.receipts.note(id, Attempt(solution=True))
        _show(f"```python\n{exercise.solution}\n```\n\n{exercise.why}")

    def help(self, text: str | None) -> None:
        """Ask the class's teacher, in 200 letters, and say if it got there; None takes it back."""
        if not os.environ.get("LABAPP_CLASS"):
            feedback.say("There is no class here whose teacher could read it. Try a hint.")
            return
        with _told():
            self.receipts.ask(text)
            if post.post(self.receipts, self.bench.work.name, wait=5):
                feedback.say("Your teacher has it. `lab.help(None)` takes a question back.")
            else:
                feedback.say("It has not reached your teacher yet, and goes with your next check.")


@dataclass(frozen=True)
class Submission:
    """What stands in for the lab where a notebook is graded: its checks, and nothing else.

    nbgrader and otter run a notebook once more, on a machine that has neither the learner's engine
    nor images. What shows there that an exercise was passed is its receipt, in a file that a
    learner's ``lab.check(…, strict=True)`` puts beside the notebook, to be handed in with it.
    """

    file: Path

    def check(self, id: str, answer: object = ..., *, strict: bool = False) -> Verdict:
        """As :meth:`Coach.check`, by the receipt: the answer was judged where the engine is."""
        return _insisted(self._verdict(find_exercise(id).id), strict=strict)

    def clean_up(self, *_: object) -> None:
        """Do nothing: nothing was made here, and nobody needs a hint."""

    hint = solution = help = clean_up

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
        except OSError as error:
            return Verdict(
                "NotYet",
                f"'{self.file.name}', to be handed in beside the notebook: {error.strerror}. Run "
                "the checks where the lab is; they write it.",
            )
        if receipt := record.passed.get(id):
            said = f"Passed by {record.learner} at {receipt.time}."
            return Verdict("Correct", said, receipt.evidence)
        if record.broken is not None:
            return Verdict("Wrong", record.broken.text)
        return Verdict("NotYet", f"The receipts of {record.learner} have none for {id}.")


def submission(folder: Path) -> Submission | None:
    """Return what stands in for the lab, if this process grades a notebook in a folder.

    nbgrader says so in NBGRADER_EXECUTION; for another grader, LABAPP_RECEIPTS names the file.
    """
    grading = os.environ.get("NBGRADER_EXECUTION") == "autograde"
    name = os.environ.get("LABAPP_RECEIPTS") or (SUBMITTED if grading else "")
    return Submission(folder / name) if name else None


def _insisted(verdict: Verdict, *, strict: bool) -> Verdict:
    if strict and verdict.outcome != "Correct":
        raise AssertionError(str(verdict))
    if "ipykernel" in sys.modules:
        verdict._ipython_display_()
    else:
        feedback.say(str(verdict))
    return verdict


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what could not be noted, and go on: verdict and hint are worth more than the note."""
    try:
        yield
    except StateError as error:
        print(f"Not noted: {error}", flush=True)


def _show(text: str) -> None:
    from IPython.display import Markdown, display

    display(Markdown(text))  # type: ignore[no-untyped-call]


def saboteur(receipts: Receipts) -> Saboteur:
    """Return the saboteur that works against a learner."""
    from labapp.attacks.delivery import Saboteur

    return Saboteur(receipts.seed_for("08-survive"), receipts.seed_for("08-find"))
