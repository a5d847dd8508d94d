"""The learner's receipts: written as exercises are passed, by any kernel, and never lost.

The file is a JSON document::

    {"format": 1, "lab": "1a2b3c4d", "learner": "ada", "seed": 123, "begun": "2026-11-23T…",
     "attempts": {"03-pin": {"tries": 2, "hints": 1, "solution": false}},
     "receipts": [{"number": 1, "exercise": "00-tag", …, "previous": "sha256:…"}, …],
     "end": {"number": 1, "digest": "sha256:…"}}

Each receipt holds the digest of the one before it, the first one that of what the file began with
(lab, seed, time), and ``end`` names the last one. So a receipt that was edited, taken out or cut
off is noticed, also after further receipts. It is a chain and no signature: somebody who writes a
program for it can forge one. That is why the evidence in a receipt names images by digest, which
a registry has or hasn't, and why the seed is in the file: two files with one seed are copies.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from labapp.errors import StateError
from labapp.registry.strangers import printable
from labapp.state import State

FORMAT = 1
"""The version of the file's format that is written, and the only one that is read."""

NAME = "receipts"
"""What the file in the state folder is called, without its ending."""

SUBMITTED = "receipts.json"
"""The name of the copy that is handed in with a notebook, from beside it."""

_LOCK_SECONDS = 20.0
_KINDS = {"int": int, "str": str, "bool": bool, "Mapping[str, str]": dict}


class DamagedReceipts(StateError):
    """A file is no receipts file any more, or never was one."""


@dataclass(frozen=True)
class Attempt:
    """What was done for an exercise: answers judged, different hints seen, solution looked at."""

    tries: int = 0
    hints: int = 0
    solution: bool = False


@dataclass(frozen=True)
class Receipt:
    """One passed exercise: when (UTC, ISO 8601), after what, and what it was judged by."""

    number: int
    exercise: str
    time: str
    tries: int
    hints: int
    solution: bool
    evidence: Mapping[str, str]
    lab: str
    previous: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the receipt as JSON: sorted keys, no spaces."""
        return _digest(asdict(self))


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

    @property
    def start(self) -> str:
        """The digest of what the file began with; the first receipt holds it."""
        return _digest({"format": FORMAT, "lab": self.lab, "seed": self.seed, "begun": self.begun})

    @property
    def last(self) -> tuple[int, str]:
        """Number and digest of the last receipt that was written, be it still there or not."""
        return self.end or (0, self.start)

    @property
    def broken(self) -> Break | None:
        """Where the chain breaks first; None when it is whole."""
        before = self.start
        for number, receipt in enumerate(self.receipts, 1):
            if receipt.number != number:
                return Break(number, f"receipt {number} is missing")
            if receipt.previous != before:
                return self._changed(number - 1)
            before = receipt.digest
        number, digest = self.last
        if number > len(self.receipts):
            missing = len(self.receipts) + 1
            return Break(missing, f"receipt {missing} is missing")
        return None if digest == before else self._changed(len(self.receipts))

    @property
    def sound(self) -> tuple[Receipt, ...]:
        """The receipts that count: all of a whole chain, else those before the break."""
        broken = self.broken
        return self.receipts[: None if broken is None else max(broken.number - 1, 0)]

    @property
    def passed(self) -> dict[str, Receipt]:
        """The first receipt of each exercise that counts."""
        return {receipt.exercise: receipt for receipt in reversed(self.sound)}

    def document(self) -> dict[str, Any]:
        """Return the record as the JSON document that a file holds."""
        number, digest = self.last
        return {**asdict(self), "format": FORMAT, "end": {"number": number, "digest": digest}}

    def _changed(self, number: int) -> Break:
        if number == 0:
            return Break(0, "the lab, the seed or the time that it began with was changed")
        name = self.receipts[number - 1].exercise
        return Break(number, f"receipt {number} ({name}) was changed")


def read(file: Path) -> Record:
    """Read a receipts file, whoever wrote it; it may be broken, and ``broken`` says so.

    Raises:
        DamagedReceipts: it is cut short, or no receipts file.
        StateError: it is of another format, or may not be read.
        FileNotFoundError: there is none.
    """
    doing = f"reading the receipts in '{file}'"
    try:
        found = json.loads(file.read_bytes())
        if found["format"] != FORMAT:
            raise StateError(
                f"{doing}: it has format {found['format']!r}, and this lab reads format {FORMAT}. "
                "Update the lab, as the one that wrote it."
            )
        return Record(
            lab=str(found["lab"]),
            learner=printable(str(found["learner"]))[:100] or "(no name)",
            seed=int(found["seed"]),
            begun=str(found["begun"]),
            attempts={name: _typed(Attempt, each) for name, each in found["attempts"].items()},
            receipts=tuple(_typed(Receipt, each) for each in found["receipts"]),
            end=(int(found["end"]["number"]), str(found["end"]["digest"])),
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{doing}: {error.strerror or error}. Make it readable.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedReceipts(
            f"{doing}: this is no receipts file, or it was cut short or edited ({error!r:.60}). "
            "Fetch it once more from where it was made, or take it out of the folder."
        ) from error


@dataclass(frozen=True)
class Standing:
    """What a record says of an exercise; the state is ``passed``, ``tried`` or ``open``."""

    exercise: str
    state: str
    tries: int
    hints: int
    solution: bool
    time: str


def standing(record: Record, exercise: str) -> Standing:
    """Return what a record says of an exercise."""
    receipt = record.passed.get(exercise)
    found = receipt or record.attempts.get(exercise, Attempt())
    state = "passed" if receipt else "open" if found == Attempt() else "tried"
    time = receipt.time if receipt else ""
    return Standing(exercise, state, found.tries, found.hints, found.solution, time)


@dataclass(frozen=True)
class Receipts:
    """What one lab's learner did; each change is made in the file, under a lock.

    A file that can't be read is put aside beside it, as ``receipts.damaged-1.json``, and a new one
    is begun. What raises a StateError says what to do: the file was written by another version of
    the lab, or can't be written.
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

    def note_try(self, exercise: str, *, evidence: Mapping[str, str] | None = None) -> Record:
        """Note that an answer was judged; with evidence, a right one, which gets a receipt."""

        def change(record: Record) -> Record:
            record = _attempted(record, exercise, lambda a: replace(a, tries=a.tries + 1))
            if evidence is None or exercise not in record.attempts:
                return record
            return self._passed(record, exercise, evidence)

        return self._change(change)

    def note_hint(self, exercise: str, number: int) -> Record:
        """Note that a hint was seen, the first, the second and so on."""
        return self._change(
            lambda r: _attempted(r, exercise, lambda a: replace(a, hints=max(a.hints, number)))
        )

    def note_solution(self, exercise: str) -> Record:
        """Note that the solution was looked at."""
        return self._change(lambda r: _attempted(r, exercise, lambda a: replace(a, solution=True)))

    def rename(self, learner: str) -> Record:
        """Give the learner another name: the login name that the class knows, say."""
        name = " ".join(learner.split())
        if not name or len(name) > 100 or not name.isprintable():
            raise StateError(
                f"naming the learner {learner[:40]!r}: a name has 1 to 100 letters, in one line. "
                "Give another one."
            )
        return self._change(lambda record: replace(record, learner=name))

    def seed_for(self, exercise: str) -> int:
        """Return a number below 2³², always the same for this learner and this exercise."""
        seed = self.read().seed
        drawn = hashlib.sha256(f"{seed}:{exercise}".encode()).digest()
        return int.from_bytes(drawn[:4], "big")

    def save(self, file: Path) -> None:
        """Write a copy of the receipts, to hand in."""
        self.read()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.file, file)
        except OSError as error:
            raise StateError(
                f"saving the receipts as '{file}': {error.strerror or error}. Choose a folder "
                "that you may write to."
            ) from error

    def _passed(self, record: Record, exercise: str, evidence: Mapping[str, str]) -> Record:
        attempts = dict(record.attempts)
        number, previous = record.last
        receipt = Receipt(
            number=number + 1,
            exercise=exercise,
            time=_now(),
            **asdict(attempts.pop(exercise)),
            evidence={str(name): str(value) for name, value in evidence.items()},
            lab=self.state.lab_id,
            previous=previous,
        )
        end = (receipt.number, receipt.digest)
        return replace(record, attempts=attempts, receipts=(*record.receipts, receipt), end=end)

    def _change(self, change: Callable[[Record], Record]) -> Record:
        """Read, change and write under a lock, so that two kernels don't undo each other."""
        try:
            with self.state.lock(NAME, timeout=_LOCK_SECONDS):
                found = self._found()
                record = found or Record(self.state.lab_id, _login(), secrets.randbits(32), _now())
                changed = change(record)
                if changed != found:
                    self.state.write(NAME, changed.document())
        except OSError as error:
            raise StateError(
                f"noting progress in '{self.file}': {error.strerror or error}. Make the folder "
                "writable, or name another one in LABAPP_STATE."
            ) from error
        return changed

    def _found(self) -> Record | None:
        try:
            return read(self.file)
        except FileNotFoundError:
            return None
        except DamagedReceipts:
            names = (f"{NAME}.damaged-{number}.json" for number in itertools.count(1))
            asides = (self.file.with_name(name) for name in names)
            self.file.replace(next(aside for aside in asides if not aside.exists()))
            return None


def _attempted(record: Record, exercise: str, change: Callable[[Attempt], Attempt]) -> Record:
    """Return a record with one more step at an exercise, if that isn't passed already."""
    if any(receipt.exercise == exercise for receipt in record.receipts):
        return record
    attempt = change(record.attempts.get(exercise, Attempt()))
    return replace(record, attempts={**record.attempts, exercise: attempt})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()


_Part = TypeVar("_Part", Attempt, Receipt)


def _typed(kind: type[_Part], found: Mapping[str, Any]) -> _Part:
    """Make a part of a record from JSON: a report adds up what strangers' files say."""
    made = kind(**found)
    for each in fields(made):
        value = getattr(made, each.name)
        texts = value.values() if isinstance(value, dict) else ()
        if type(value) is not _KINDS[str(each.type)] or any(
            type(text) is not str for text in texts
        ):
            raise TypeError(f"'{each.name}' is no {each.type}")
    return made


def _login() -> str:
    # A container may run under a number that has no name.
    with contextlib.suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "learner"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
