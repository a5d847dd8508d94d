"""The learner's receipts: written as exercises are passed, by any kernel, and never lost.

The file is a JSON document::

    {"format": 1, "lab": "1a2b3c4d", "learner": "ada", "seed": 123, "begun": "2026-11-23T…",
     "attempts": {"03-pin": {"tries": 2, "hints": 1, "solution": false}},
     "receipts": [{"number": 1, "exercise": "00-tag", …, "previous": "sha256:…"}, …],
     "end": {"number": 1, "digest": "sha256:…", "attempts": "sha256:…"}}

Each receipt holds the digest of the one before it, the first one that of what the file began with
(lab, seed, time), and ``end`` names the last one, and what was tried since. So a receipt that was
edited, taken out or cut off is noticed, also after further receipts. It is a chain and no
signature: somebody who writes a program for it can forge one. That is why the evidence in a receipt
names images by digest, which a registry has or hasn't, and why the seed is in the file: two files
with one seed are copies. Where a class's service sees the receipts, it signs them (``signatures``).
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from labapp.errors import InvalidReference, StateError, printable
from labapp.reference import Reference
from labapp.registry.manifests import canonical_json, digest_of
from labapp.state import State, write_file

FORMAT = 1
"""The version of the file's format, which ``start`` holds as well."""

NAME = "receipts"
"""What the file in the state folder is called, without its ending."""

SUBMITTED = "receipts.json"
"""The name of the copy that is handed in with a notebook, from beside it."""

LONGEST = 200
"""How many letters of a question are kept."""

_BROKEN = "The receipts are not as the lab wrote them: {}. What comes after does not count."


class DamagedReceipts(StateError):
    """A file is no receipts file any more, or never was one."""


@dataclass(frozen=True)
class Attempt:
    """What was done for an exercise: answers judged, different hints seen, solution looked at."""

    tries: int = 0
    hints: int = 0
    solution: bool = False

    @property
    def by(self) -> str:
        """How far that is, ``open`` or ``tried``; of a pass, by whose help, as a receipt tells."""
        return "open" if self == Attempt() else "tried"


@dataclass(frozen=True, kw_only=True)
class Receipt(Attempt):
    """One passed exercise: when (UTC, ISO 8601), after what, and what it was judged by."""

    number: int
    exercise: str
    time: str
    evidence: dict[str, str]
    lab: str
    previous: str

    @property
    def by(self) -> str:
        """By whose help it was passed: ``alone``, ``hints`` or ``solution``."""
        return "solution" if self.solution else "hints" if self.hints else "alone"

    @property
    def image(self) -> str:
        """The image that it was judged by, as ``repository@digest``; empty where none is named."""
        return _image(self.evidence.get("image", ""))

    @property
    def digest(self) -> str:
        """The SHA-256 of the receipt as JSON: sorted keys, no spaces."""
        return digest_of(canonical_json(asdict(self)))


@dataclass(frozen=True)
class Question:
    """What a learner asks the teacher, and since when (UTC, ISO 8601); empty for nothing."""

    text: str = ""
    time: str = ""


@dataclass(frozen=True)
class Posted:
    """What a class's service knows of a learner's posts; a learner's own file says nothing.

    ``last`` is the time of the last one, ``since`` that of the first after a pause, ``where`` the
    exercise or chapter, ``seen`` the time of the question that the teacher has seen.
    """

    where: str = ""
    last: str = ""
    since: str = ""
    seen: str = ""


@dataclass(frozen=True)
class Signature:
    """A class's word on a receipt; :mod:`labapp.course.signatures` tells which."""

    user: str
    time: str
    key: str
    signature: str


@dataclass(frozen=True)
class Break:
    """Where a file is first not what the lab wrote: a receipt's number, 0 for how it begins."""

    number: int
    text: str


@dataclass(frozen=True)
class Record:
    """All that a receipts file holds; attempts are those for exercises that are not passed.

    The seed is drawn once, and makes a learner's numbers differ from a neighbour's.
    """

    lab: str
    learner: str
    seed: int
    begun: str
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    receipts: tuple[Receipt, ...] = ()
    end: tuple[int, str] | None = None
    noted: str = field(default="", compare=False)
    question: Question = Question()
    posted: Posted = Posted()
    signatures: Mapping[str, Signature] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds; its end is that of the chain as it was noted."""
        number, digest = self.last
        end = {"number": number, "digest": digest, "attempts": self.noted}
        content = {**asdict(self), "format": FORMAT, "end": end}
        del content["noted"]
        return content

    @property
    def start(self) -> str:
        """The digest of what the file began with; the first receipt holds it."""
        began = {"format": FORMAT, "lab": self.lab, "seed": self.seed, "begun": self.begun}
        return digest_of(canonical_json(began))

    @property
    def last(self) -> tuple[int, str]:
        """Number and digest of the last receipt that was written, be it still there or not."""
        return self.end or (0, self.start)

    @cached_property
    def broken(self) -> Break | None:
        """Where the chain breaks first; None when it is whole."""
        digests = [self.start, *(receipt.digest for receipt in self.receipts)]
        # What each receipt, and at last the end, tells of the receipt before it.
        told = [*((receipt.number - 1, receipt.previous) for receipt in self.receipts), self.last]
        for number, before in enumerate(told):
            if before[0] > number:
                what = f"receipt {number + 1} is missing"
                return Break(number + 1, _BROKEN.format(what))
            if before != (number, digests[number]):
                what = "the lab, the seed or the time that it began with was changed"
                if number:
                    what = f"receipt {number} ({self.receipts[number - 1].exercise}) was changed"
                return Break(number, _BROKEN.format(what))
        if self.noted and self.noted != self.attempts_digest:
            return Break(len(digests), _BROKEN.format("what was tried since the last was changed"))
        return None

    @property
    def attempts_digest(self) -> str:
        """The digest of the attempts, which the file's end holds as ``noted``."""
        return digest_of(canonical_json({id: asdict(each) for id, each in self.attempts.items()}))

    @property
    def sound(self) -> tuple[Receipt, ...]:
        """The receipts that count: all of a whole chain, else those before the break."""
        return self.receipts[: max(self.broken.number - 1, 0) if self.broken else None]

    @cached_property
    def passed(self) -> dict[str, Receipt]:
        """The first receipt of each exercise that counts."""
        return {receipt.exercise: receipt for receipt in reversed(self.sound)}

    @property
    def images(self) -> dict[str, str]:
        """The images that receipts name, as ``repository@digest``, with an exercise each."""
        found: dict[str, str] = {}
        for receipt in self.sound:
            for name in filter(None, map(_image, receipt.evidence.values())):
                found.setdefault(name, receipt.exercise)
        return found

    def took(self, exercise: str) -> Attempt:
        """Return what an exercise took so far: its receipt, if it is passed."""
        return self.passed.get(exercise) or self.attempts.get(exercise, Attempt())


def read(file: Path) -> Record:
    """Read a receipts file as :func:`parse` does; OSError where it can't be read."""
    return parse(file.read_bytes(), str(file))


def parse(content: bytes, name: str) -> Record:
    """Read what a receipts file holds, whoever wrote it; it may be broken, and ``broken`` says so.

    DamagedReceipts, with the name of the place, where it is something else.
    """
    try:
        found = json.loads(content)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
        return Record(
            lab=str(found["lab"]),
            learner=str(found["learner"])[:100],
            seed=int(found["seed"]),
            begun=str(found["begun"]),
            attempts={name: _typed(Attempt, each) for name, each in found["attempts"].items()},
            receipts=tuple(_typed(Receipt, each) for each in found["receipts"]),
            end=(int(found["end"]["number"]), str(found["end"]["digest"])),
            noted=str(found["end"].get("attempts", "")),
            question=_short(Question(), found.get("question", {})),
            posted=_short(Posted(), found.get("posted", {})),
            signatures=signatures_from(found.get("signatures", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise DamagedReceipts(
            f"reading the receipts in '{name}': it is no receipts file of this version of the lab, "
            f"or it was cut short or edited ({error!r:.60}). Fetch it once more from where it was "
            "made, or take it away."
        ) from error


def signatures_from(found: Mapping[str, Any]) -> dict[str, Signature]:
    """Read signatures, by the receipts' digests, from JSON."""
    return {digest: _typed(Signature, each) for digest, each in found.items()}


@dataclass(frozen=True)
class Receipts:
    """What one lab's learner did; each change is made in the file, under a lock.

    A damaged file is put aside beside it, as ``receipts.damaged-….json``, and a new one is begun.
    """

    state: State

    @property
    def file(self) -> Path:
        """Where the receipts are; hand in a copy of it."""
        return self.state.path(f"{NAME}.json")

    @property
    def damaged(self) -> tuple[Path, ...]:
        """The files that could not be read and were put aside."""
        return tuple(sorted(self.file.parent.glob(f"{NAME}.damaged-*.json")))

    def read(self) -> Record:
        """Return all that is noted; the file is begun when there is none yet."""
        return self._change(lambda record: record)

    def note(self, exercise: str, new: Attempt, evidence: Mapping[str, str] | None = None) -> None:
        """Note what was done for an exercise, unless that is passed already.

        Its hints are the number of the last one that was seen. With the evidence of a right answer,
        the exercise gets its receipt.
        """

        def change(record: Record) -> Record:
            if any(receipt.exercise == exercise for receipt in record.receipts):
                return record
            had = record.attempts.get(exercise, Attempt())
            hints, solution = max(had.hints, new.hints), had.solution or new.solution
            took = Attempt(had.tries + new.tries, hints, solution)
            attempts = {**record.attempts, exercise: took}
            if evidence is None:
                return replace(record, attempts=attempts)
            number, previous = record.last
            receipt = Receipt(
                **asdict(attempts.pop(exercise)),
                number=number + 1,
                exercise=exercise,
                time=_now(),
                evidence=dict(evidence),
                lab=self.state.lab_id,
                previous=previous,
            )
            record = replace(record, attempts=attempts, receipts=(*record.receipts, receipt))
            return replace(record, end=(receipt.number, receipt.digest), question=Question())

        self._change(change)

    def rename(self, learner: str) -> None:
        """Give the learner another name: the login name that the class knows, say."""
        name = " ".join(learner.split())
        if not name or len(name) > 100 or not name.isprintable():
            raise StateError(
                f"naming the learner {learner[:40]!r}: a name has 1 to 100 letters, in one line. "
                "Give another one."
            )
        self._change(lambda record: replace(record, learner=name))

    def ask(self, text: str | None) -> Question:
        """Note a question for the teacher, its first letters; None takes it back."""
        words = " ".join(printable(text or "").split())[:LONGEST]
        question = Question(words, _now() if words else "")
        self._change(lambda record: replace(record, question=question))
        return question

    def keep(self, signatures: Mapping[str, Signature]) -> None:
        """Keep what a class has signed, by the receipts' digests."""
        self._change(lambda record: replace(record, signatures={**record.signatures, **signatures}))

    def seed_for(self, exercise: str) -> int:
        """Return a number below 2³², always the same for this learner and this exercise."""
        drawn = hashlib.sha256(f"{self.read().seed}:{exercise}".encode()).digest()
        return int.from_bytes(drawn[:4], "big")

    def save(self, file: Path) -> None:
        """Write a copy of the receipts, to hand in."""
        self.read()
        write_file(file, self.file.read_bytes(), mode=0o644)

    def _change(self, change: Callable[[Record], Record]) -> Record:
        """Read, change and write under a lock, so that two kernels don't undo each other."""
        try:
            with self.state.lock(NAME, timeout=20):
                found = self._found()
                record = found or Record(self.state.lab_id, _login(), secrets.randbits(32), _now())
                changed = change(record)
                if changed != found:
                    # What was edited stays noted as it was, whatever comes after it.
                    kept = record.noted not in ("", record.attempts_digest)
                    noted = record.noted if kept else changed.attempts_digest
                    changed = replace(changed, end=changed.last, noted=noted)
                    self.state.write(NAME, changed.content)
        except OSError as error:
            raise StateError(
                f"noting progress in '{self.file}': {error.strerror or error}. Make it and its "
                "folder writable, or name another folder in LABAPP_STATE."
            ) from error
        return changed

    def _found(self) -> Record | None:
        try:
            return read(self.file)
        except FileNotFoundError:
            return None
        except DamagedReceipts:
            self.file.replace(self.file.with_name(f"{NAME}.damaged-{time.time_ns()}.json"))
            return None


def _image(value: object) -> str:
    """Return what a piece of evidence names by digest, as ``repository@digest``, or nothing."""
    with contextlib.suppress(InvalidReference):
        reference = Reference.parse(str(value))
        if reference.digest:
            return f"{reference.repository}@{reference.digest}"
    return ""


_Part = TypeVar("_Part", Attempt, Receipt, Signature)
_Words = TypeVar("_Words", Question, Posted)


def _typed(kind: type[_Part], found: Mapping[str, Any]) -> _Part:
    """Make a part of a record from JSON: a report adds up what strangers' files say."""
    made = kind(**found)
    for each in fields(made):
        if type(found[each.name]).__name__ != str(each.type).partition("[")[0]:
            raise TypeError(f"'{each.name}' is no {each.type}")
    return made


def _short(part: _Words, found: Mapping[str, str]) -> _Words:
    """Fill a part of a record with a stranger's words, of which only the beginning is kept."""
    return replace(part, **{name: "".join(text[:LONGEST]) for name, text in found.items()})


def _login() -> str:
    try:
        return os.environ.get("JUPYTERHUB_USER", "")[:100] or getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return "learner"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
