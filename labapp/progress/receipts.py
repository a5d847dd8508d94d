"""The learner's receipts: written as exercises are passed, by any kernel, and never lost."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import itertools
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from labapp.errors import StateError
from labapp.progress import chain
from labapp.progress.chain import Attempt, Receipt, Record
from labapp.state import State

NAME = "receipts"
"""What the file in the state folder is called, without its ending."""

SUBMITTED = "receipts.json"
"""The name of the copy that is handed in with a notebook, from beside it."""

_LOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Receipts:
    """What one lab's learner did.

    Attributes:
        state: the lab's own files.
    """

    state: State

    @property
    def file(self) -> Path:
        """Where the receipts are; hand in a copy of it."""
        return self.state.path(f"{NAME}.json")

    def read(self) -> Record:
        """Return all that is noted; the file is begun when there is none yet.

        A file that can't be read is put aside beside it, as ``receipts.damaged-1.json``, and a new
        one is begun.

        Raises:
            StateError: the file was written by another version of the lab, or can't be written.
        """
        return self._change(lambda record: record)

    def note_try(self, exercise: str, *, evidence: Mapping[str, str] | None = None) -> Record:
        """Note that an answer was judged; an exercise that is passed already stays as it is.

        Args:
            exercise: its id.
            evidence: what a right answer was judged by; None for a wrong answer.

        Raises:
            StateError: as :meth:`read`.
        """

        def change(record: Record) -> Record:
            record = _attempted(record, exercise, lambda a: replace(a, tries=a.tries + 1))
            if evidence is None or exercise not in record.attempts:
                return record
            return self._passed(record, exercise, evidence)

        return self._change(change)

    def note_hint(self, exercise: str, number: int) -> Record:
        """Note that a hint was seen, the first, the second and so on.

        Raises:
            StateError: as :meth:`read`.
        """
        return self._change(
            lambda record: _attempted(
                record, exercise, lambda a: replace(a, hints=max(a.hints, number))
            )
        )

    def note_solution(self, exercise: str) -> Record:
        """Note that the solution was looked at.

        Raises:
            StateError: as :meth:`read`.
        """
        return self._change(
            lambda record: _attempted(record, exercise, lambda a: replace(a, solution=True))
        )

    def rename(self, learner: str) -> Record:
        """Give the learner another name: the login name that the class knows, say.

        Raises:
            StateError: it is no name, or as :meth:`read`.
        """
        name = " ".join(learner.split())
        if not name or len(name) > 100 or not name.isprintable():
            raise StateError(
                f"naming the learner {learner[:40]!r}: a name has 1 to 100 letters, in one line. "
                "Give another one."
            )
        return self._change(lambda record: replace(record, learner=name))

    def seed_for(self, exercise: str) -> int:
        """Return a number that is this learner's own, and another one for each exercise.

        Returns:
            0 to 2³² - 1; the same each time.

        Raises:
            StateError: as :meth:`read`.
        """
        seed = self.read().seed
        drawn = hashlib.sha256(f"{seed}:{exercise}".encode()).digest()
        return int.from_bytes(drawn[:4], "big")

    def save(self, file: Path) -> None:
        """Write a copy of the receipts, to hand in.

        Raises:
            StateError: the copy can't be written, or as :meth:`read`.
        """
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
        attempt = record.attempts[exercise]
        number, previous = record.last
        receipt = Receipt(
            number=number + 1,
            exercise=exercise,
            time=_now(),
            tries=attempt.tries,
            hints=attempt.hints,
            solution=attempt.solution,
            evidence={str(name): str(value) for name, value in evidence.items()},
            lab=self.state.lab_id,
            previous=previous,
        )
        attempts = {name: each for name, each in record.attempts.items() if name != exercise}
        return replace(
            record,
            attempts=attempts,
            receipts=(*record.receipts, receipt),
            end=(receipt.number, receipt.digest),
        )

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
            return chain.read(self.file)
        except FileNotFoundError:
            return None
        except chain.DamagedReceipts:
            self._put_aside()
            return None

    def _put_aside(self) -> None:
        for number in itertools.count(1):
            aside = self.file.with_name(f"{NAME}.damaged-{number}.json")
            if not aside.exists():
                self.file.replace(aside)
                return

    @property
    def damaged(self) -> tuple[Path, ...]:
        """The files that could not be read and were put aside."""
        return tuple(sorted(self.file.parent.glob(f"{NAME}.damaged-*.json")))


def _attempted(record: Record, exercise: str, change: Callable[[Attempt], Attempt]) -> Record:
    """Return a record with one more step at an exercise, if that isn't passed already."""
    if any(receipt.exercise == exercise for receipt in record.receipts):
        return record
    attempt = change(record.attempts.get(exercise, Attempt()))
    return replace(record, attempts={**record.attempts, exercise: attempt})


def _login() -> str:
    # A container may run under a number that has no name.
    with contextlib.suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "learner"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
