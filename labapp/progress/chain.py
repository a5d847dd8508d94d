"""A receipts file, read: what it holds, and whether anybody changed it.

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

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labapp.errors import StateError

FORMAT = 1
"""The version of the file's format that is written, and the only one that is read."""


class DamagedReceipts(StateError):
    """A file is no receipts file any more, or never was one."""


@dataclass(frozen=True)
class Attempt:
    """What was done so far for an exercise that is not passed.

    Attributes:
        tries: how many answers were judged, right or wrong.
        hints: how many different hints were seen.
        solution: whether the solution was looked at.
    """

    tries: int = 0
    hints: int = 0
    solution: bool = False


@dataclass(frozen=True)
class Receipt:
    """One passed exercise.

    Attributes:
        number: its place in the file, from 1.
        exercise: such as ``03-pin``.
        time: when it was passed, in UTC, ISO 8601.
        tries: how many answers it took, the right one included; ``hints`` and ``solution`` as in
            an attempt.
        evidence: what the exercise was judged by: references with digest, and the like.
        lab: the id of the lab where it was passed.
        previous: the digest of the receipt before.
    """

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
    """The first place where a receipts file is not what the lab wrote.

    Attributes:
        number: the receipt's; 0 for what the file begins with.
        text: what is wrong with it.
    """

    number: int
    text: str


@dataclass(frozen=True)
class Record:
    """All that a receipts file holds.

    Attributes:
        lab: the id of the lab that began the file.
        learner: a name; it may be changed at any time.
        seed: drawn once; what makes a learner's numbers differ from a neighbour's.
        begun: when the file was begun, in UTC, ISO 8601.
        attempts: by exercise, for those that are not passed.
        receipts: in the order in which exercises were passed.
        end: number and digest of the last receipt that was written.
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
        return {
            **asdict(self),
            "format": FORMAT,
            "receipts": [asdict(receipt) for receipt in self.receipts],
            "end": {"number": number, "digest": digest},
        }

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
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"{doing}: {error.strerror or error}. Make it readable.") from error
    except ValueError as error:
        raise DamagedReceipts(
            f"{doing}: it is cut short or damaged ({error}). Fetch it once more from where it "
            "was made."
        ) from error
    if not isinstance(found, dict) or "receipts" not in found or "format" not in found:
        raise DamagedReceipts(f"{doing}: this is no receipts file. Take it out of the folder.")
    if found["format"] != FORMAT:
        raise StateError(
            f"{doing}: it has format {found['format']!r}, and this lab reads format {FORMAT}. "
            "Update the lab, as the one that wrote it."
        )
    try:
        return _record(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedReceipts(
            f"{doing}: a field is missing or of a wrong type ({error}). It was edited by hand; "
            "fetch it once more from where it was made."
        ) from error


def _record(found: Mapping[str, Any]) -> Record:
    end = found["end"]
    return Record(
        lab=str(found["lab"]),
        learner=_shown(str(found["learner"])),
        seed=int(found["seed"]),
        begun=str(found["begun"]),
        attempts={name: Attempt(**each) for name, each in found["attempts"].items()},
        receipts=tuple(_receipt(each) for each in found["receipts"]),
        end=(int(end["number"]), str(end["digest"])),
    )


def _shown(name: str) -> str:
    """Return a name without signs that have power over a terminal, a page or a picture."""
    plain = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return plain[:100] or "(no name)"


def _receipt(found: Mapping[str, Any]) -> Receipt:
    receipt = Receipt(**found)
    wanted = {"number": int, "exercise": str, "time": str, "tries": int, "hints": int,
              "solution": bool, "evidence": dict, "lab": str, "previous": str}  # fmt: skip
    for name, kind in wanted.items():
        if type(getattr(receipt, name)) is not kind:
            raise TypeError(f"'{name}' is no {kind.__name__}")
    return receipt


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "sha256:" + hashlib.sha256(text.encode("ascii")).hexdigest()
