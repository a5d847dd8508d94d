"""The report on a class, from a folder of receipts: who is where, and which exercise is hard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from labapp.course import receipts
from labapp.course.receipts import Record, standing
from labapp.errors import DamagedContent, InvalidReference, NotInRegistry, StateError
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.strangers import printable

if TYPE_CHECKING:
    from labapp.charts import Chart

_MEDIANS = "Tries and hints are medians of those who passed."

PASSED = ("alone", "hints", "solution")
"""The states of a cell in which an exercise is passed: by whose help."""


@dataclass(frozen=True)
class ClassReport:
    """What a folder of receipts says of a class.

    Attributes:
        learners: a row a learner, those who are furthest first; columns ``learner``, ``file``,
            ``passed``, ``of``, ``tries``, ``hints``, ``solutions`` (how many were looked at),
            ``last`` (time of the last receipt, UTC), ``chain`` (``whole``, or at which receipt it
            is broken), ``images`` and ``verified`` (how many images the receipts name, and how many
            of them the registry has) and ``notes`` (a tuple of sentences).
        exercises: a row an exercise; columns ``exercise``, ``passed`` and ``tried`` (by how many
            learners), ``tries`` and ``hints`` (medians of those who passed) and ``solutions``.
        cells: a row for each learner and exercise; columns ``learner``, ``exercise``, ``state``
            (``alone``, ``hints``, ``solution``, ``tried`` or ``open``), ``tries``, ``hints`` and
            ``solution``.
        left_out: a sentence for each file that is not in the tables.
    """

    learners: pd.DataFrame
    exercises: pd.DataFrame
    cells: pd.DataFrame
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """Return the tables as text, and what is odd or was left out."""
        learners = self.learners.assign(
            passed=[f"{row.passed} of {row.of}" for row in self.learners.itertuples()],
            last=self.learners["last"].str[:10],
        )
        columns = ["learner", "passed", "tries", "hints", "solutions", "last", "chain"]
        if learners["verified"].notna().any():
            count = learners["verified"].astype(int).astype(str)
            learners["verified"] = count + " of " + learners["images"].astype(str)
            columns.append("verified")
        exercises = self.exercises.rename(columns={"passed": "passed by", "tried": "tried by"})
        noted = zip(learners["learner"], learners["notes"], strict=True)
        told = [f"{name}: {note}" for name, notes in noted for note in notes]
        told += [f"Left out: {line}" for line in self.left_out]
        tables = (_text(learners[columns]), _text(exercises), _MEDIANS)
        # A file of a class may be called anything; its name has no power over the terminal.
        return "\n\n".join([*tables, *map(printable, told)])

    @property
    def chart(self) -> Chart:
        """The class at a glance: a grid of learners and exercises."""
        from labapp.charts import classroom

        return classroom(self.cells)

    @property
    def points(self) -> pd.DataFrame:
        """A point for each passed exercise: a row a learner, a column a chapter."""
        done = self.cells["state"].isin(PASSED).astype(int)
        rows = self.cells.assign(points=done, chapter=self.cells["exercise"].str[:2])
        table = rows.pivot_table(
            index="learner", columns="chapter", values="points", aggfunc="sum", sort=False
        )
        return pd.DataFrame(table.astype(int))

    def gradebook(self, platform: str) -> str:
        """Return the points as a CSV text that a learning platform imports.

        Args:
            platform: ``moodle``: columns ``Username``, ``Email address`` and one a chapter, to be
                mapped to the course's grade items on import. ``canvas``: the columns of its own
                export (``Student``, ``ID``, ``SIS User ID``, ``SIS Login ID``, ``Section``), one a
                chapter, and the row of points possible.

        Source: Moodle's documentation, "Grade import"; Canvas' ``gradebook_importer.rb``.
        """
        table = self.points.rename(columns=lambda chapter: f"Image lab, chapter {chapter}")
        # A name that a spreadsheet would take for a formula is quoted.
        names = [f"'{name}" if name[:1] in "=+-@" else name for name in table.index]
        points = table.reset_index(drop=True)
        if platform == "moodle":
            addresses = [name if "@" in name else "" for name in names]
            rows = pd.DataFrame({"Username": names, "Email address": addresses, **points})
            return str(rows.to_csv(index=False))
        possible = self.exercises.groupby(self.exercises["exercise"].str[:2]).size()
        first = {"Student": "    Points Possible", **dict(zip(points, possible, strict=True))}
        blank = {"ID": "", "SIS User ID": "", "SIS Login ID": names, "Section": ""}
        rows = pd.DataFrame({"Student": names, **blank, **points})
        full = pd.concat([pd.DataFrame([first]), rows])[list(rows)]
        return str(full.to_csv(index=False))


def report(
    folder: Path, exercises: Sequence[str], *, registry: Registry | None = None
) -> ClassReport:
    """Read a folder of receipts.

    Args:
        folder: every ``.json`` file in it, and in its folders, is looked at.
        exercises: the ids of all exercises, in order.
        registry: asked whether it has the images that the receipts name.

    Raises:
        StateError: there is no such folder, or no receipts in it.
        RegistryUnreachable: the registry does not answer.
    """
    handed_in, left_out = _read(folder)
    if not handed_in:
        raise StateError(
            f"reading the receipts in '{folder}': there are none. {' '.join(left_out[:1])} "
            "Learners save theirs with 'python3 -m labapp progress --save FILE.json'."
        )
    if registry is not None:
        handed_in = _verified(handed_in, registry)
    handed_in.sort(key=lambda each: (-len(each.record.passed), each.record.learner))
    seen: Counter[str] = Counter()
    learners, rows = [], []
    for each in handed_in:
        name = each.record.learner
        seen[name] += 1
        # The second of the same name is told apart, and not added up.
        name = name if seen[name] == 1 else f"{name} ({seen[name]})"
        learners.append({"learner": name, **_row(each, exercises)})
        rows += [{"learner": name, **_cell(each.record, exercise)} for exercise in exercises]
    cells = pd.DataFrame(rows)
    return ClassReport(pd.DataFrame(learners), _by_exercise(cells), cells, tuple(left_out))


@dataclass(frozen=True)
class _HandedIn:
    """One learner's receipts, what is odd about them, and how many of their images are there."""

    file: Path
    record: Record
    notes: tuple[str, ...] = ()
    verified: int | None = None


def _read(folder: Path) -> tuple[list[_HandedIn], list[str]]:
    """Read what each learner handed in, of several copies the last; tell what is left out."""
    if not folder.is_dir():
        raise StateError(
            f"reading the receipts in '{folder}': there is no such folder. Name the one that the "
            "class's files are in."
        )
    found: list[_HandedIn] = []
    left_out = []
    for file in sorted(folder.rglob("*.json")):
        try:
            new = _HandedIn(file, receipts.read(file))
        except (StateError, FileNotFoundError) as error:
            left_out.append(str(error))
            continue
        old = next((each for each in found if _same(each.record, new.record)), None)
        if old is None:
            found.append(new)
            continue
        if len(new.record.receipts) > len(old.record.receipts):
            found[found.index(old)] = new
            new, old = old, new
        left_out.append(f"'{new.file}': '{old.file}' is of the same learner and says as much.")
    return [replace(each, notes=_alike(each, found)) for each in found], left_out


def _same(one: Record, other: Record) -> bool:
    """Say whether two records are one learner's, at two times."""
    least = min(len(one.receipts), len(other.receipts))
    return (one.seed, one.learner) == (other.seed, other.learner) and (
        one.receipts[:least] == other.receipts[:least]
    )


def _alike(each: _HandedIn, found: list[_HandedIn]) -> tuple[str, ...]:
    """Tell which others have the same seed, or only the same name."""
    record, notes = each.record, []
    others = [other for other in found if other is not each]
    copies = [other for other in others if other.record.seed == record.seed]
    namesakes = [o for o in others if o.record.learner == record.learner and o not in copies]
    if copies:
        notes.append(
            f"the same seed as {_first(copies)}: one was copied from the other, or both began on "
            "one machine"
        )
    if namesakes:
        notes.append(
            f"the same name, with another seed, as {_first(namesakes)}: two machines, or two people"
        )
    return tuple(notes)


def _first(others: list[_HandedIn]) -> str:
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"'{others[0].record.learner}' in '{others[0].file}'{more}"


def _verified(handed_in: list[_HandedIn], registry: Registry) -> list[_HandedIn]:
    """Ask a registry for each image that receipts name, and note which ones it does not have."""
    held: dict[str, bool] = {}
    told = []
    for each in handed_in:
        named = _images(each.record)
        for image in named:
            if image not in held:
                held[image] = _holds(registry, image)
        missing = tuple(
            f"{exercise}: {registry.address} does not have {image}"
            for image, exercise in named.items()
            if not held[image]
        )
        count = len(named) - len(missing)
        told.append(replace(each, notes=(*each.notes, *missing), verified=count))
    return told


def _images(record: Record) -> dict[str, str]:
    """Return the images that receipts name, as ``repository@digest``, with an exercise each."""
    found: dict[str, str] = {}
    for receipt in record.sound:
        for value in receipt.evidence.values():
            try:
                reference = Reference.parse(value)
            except InvalidReference:
                continue
            if reference.digest:
                name = f"{reference.repository}@{reference.digest}"
                found.setdefault(name, receipt.exercise)
    return found


def _holds(registry: Registry, image: str) -> bool:
    """Say whether a registry has an image's manifest, with just these bytes."""
    repository, _, digest = image.partition("@")
    try:
        registry.manifest_bytes(repository, digest)
    except (NotInRegistry, DamagedContent):
        return False
    return True


def _cell(record: Record, exercise: str) -> dict[str, object]:
    found = standing(record, exercise)
    state = found.state
    if state == "passed":
        state = "solution" if found.solution else "hints" if found.hints else "alone"
    took = {"tries": found.tries, "hints": found.hints, "solution": found.solution}
    return {"exercise": exercise, "state": state, **took}


def _row(each: _HandedIn, exercises: Sequence[str]) -> dict[str, object]:
    record, broken = each.record, each.record.broken
    known = [receipt for id, receipt in record.passed.items() if id in exercises]
    return {
        "file": str(each.file),
        "passed": len(known),
        "of": len(exercises),
        "tries": sum(receipt.tries for receipt in known),
        "hints": sum(receipt.hints for receipt in known),
        "solutions": sum(receipt.solution for receipt in known),
        "last": max((receipt.time for receipt in known), default=""),
        "chain": "whole" if broken is None else f"broken at {broken.number}",
        "images": len(_images(record)),
        "verified": each.verified,
        "notes": each.notes if broken is None else (broken.text, *each.notes),
    }


def _by_exercise(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row an exercise: how many passed and tried it, and what it took those who passed."""
    done = cells["state"].isin(PASSED)
    took = cells[["tries", "hints"]].where(done)
    counts = pd.DataFrame({"passed": done, "tried": cells["state"] != "open"})
    seen = (cells["solution"] & done).rename("solutions")
    by = cells["exercise"]
    parts = [
        counts.groupby(by, sort=False).sum(),
        took.groupby(by, sort=False).median(),
        seen.groupby(by, sort=False).sum(),
    ]
    return pd.concat(parts, axis=1).reset_index()


def _text(table: pd.DataFrame) -> str:
    """Return a table as aligned text, its first column to the left."""
    name = str(table.columns[0])
    width = max(len(name), *table[name].map(len))
    head = table.rename(columns={name: name.ljust(width)})
    left = {name.ljust(width): lambda text: text.ljust(width)}
    return head.to_string(index=False, na_rep="", float_format="{:g}".format, formatters=left)
