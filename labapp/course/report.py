"""The report on a class, from a folder of receipts: who is where, and which exercise is hard."""

from __future__ import annotations

import functools
import itertools
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from labapp import feedback
from labapp.course import receipts, view
from labapp.course.exercises import NO_IMAGE, Exercise, find_exercise
from labapp.course.hand_in import Place, collect
from labapp.course.receipts import Receipt, Record
from labapp.course.signatures import id_of, is_signed
from labapp.errors import LabError, RegistryUnreachable, StateError, printable
from labapp.state import write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PASSED = ("alone", "hints", "solution")
"""The states of a cell in which an exercise is passed: by whose help."""


@dataclass(frozen=True)
class ClassReport:
    """What a folder of receipts says of a class: a row a learner, an exercise, and of each both.

    Learners who are furthest come first; ``images`` is how many their receipts name, ``verified``
    how many exercises have the image there that they must name, None where no registry was asked;
    ``claimed`` is how many are passed by the receipts' word alone, ``signed`` how many the class
    with the ``key`` saw posted, None without a key; ``last`` is the time (UTC) of the last receipt.
    For an exercise, ``tries`` and ``hints`` are medians. A cell's ``state`` is one of
    :data:`_PASSED`, ``tried`` or ``open``. A sentence tells of each file that was left out; the
    ``records`` are what was read.
    """

    learners: pd.DataFrame
    exercises: pd.DataFrame
    cells: pd.DataFrame
    left_out: tuple[str, ...]
    records: tuple[Record, ...]
    key: str = ""

    def __str__(self) -> str:
        learners = self.learners.assign(last=self.learners["last"].str[:10])
        learners["passed"] = [f"{row.passed} of {row.of}" for row in learners.itertuples()]
        columns = ["learner", "passed", "verified", "signed", "claimed", "tries", "hints"]
        columns += ["solutions", "last", "chain"]
        columns = [name for name in columns if not learners[name].isna().all()]
        exercises = self.exercises.rename(columns={"passed": "passed by", "tried": "tried by"})
        noted = zip(learners["learner"], learners["notes"], strict=True)
        told = [f"{name}: {note}" for name, notes in noted for note in notes]
        told += [f"Left out: {line}" for line in self.left_out]
        # A file of a class may be called anything; its name has no power over the terminal.
        medians = "Tries and hints are medians of those who passed."
        words = "all is claimed, for no registry was asked ('--registry')"
        if "verified" in columns:
            words = "the registry has the image that the exercise makes, or it is only claimed"
        medians += f" Of what was passed, {words}."
        if "signed" in columns:
            medians += f" Signed: the class with the key {self.key} saw this learner post it."
        tables = (_text(learners[columns]), _text(exercises), medians)
        return "\n\n".join([*tables, *map(printable, told)])

    def page(self) -> str:
        """Return the class as one page of HTML: a grid of who passed what, and with what help."""
        return view.page(self.records, datetime.now(UTC), every=0, left_out=self.left_out)

    def gradebook(self, platform: str) -> str:
        """Return a point for each verified exercise as CSV for ``moodle``, or else for ``canvas``.

        Where no registry was asked, it is a point for each passed one, in columns of claims.
        Exercises that make no image can't be verified, and then are not among those possible.

        Moodle maps columns to the course's grade items on import; Canvas reads those of its own
        export, and a row of points possible.
        Source: Moodle's documentation, "Grade import"; Canvas' ``gradebook_importer.rb``.
        """
        asked = bool(self.learners["verified"].notna().any())
        rows = self.cells[self.cells["makes_image"]] if asked else self.cells
        earned = rows["verified"] if asked else rows["state"].isin(_PASSED)
        chapter = "Image lab, chapter " + rows["exercise"].str[:2]
        rows = rows.assign(
            chapter=chapter + ("" if asked else " (claimed)"), points=earned.astype(int)
        )
        points = rows.pivot_table("points", "learner", "chapter", aggfunc="sum", sort=False)
        # A name that a spreadsheet would take for a formula is quoted.
        table = points.rename(lambda name: f"'{name}" if name[:1] in "=+-@" else name)
        if platform == "moodle":
            return str(table.to_csv(index_label="Username"))
        for place, head in enumerate(("ID", "SIS User ID", "SIS Login ID", "Section")):
            table.insert(place, head, table.index if head == "SIS Login ID" else "")
        possible = rows.groupby("chapter")["exercise"].nunique().rename("    Points Possible")
        table = pd.concat([possible.to_frame().T, table])[table.columns]
        return str(table.to_csv(index_label="Student"))


def report(
    source: Path | Place,
    exercises: Sequence[str],
    *,
    place: Place | None = None,
    key: Ed25519PublicKey | None = None,
) -> ClassReport:
    """Read the ``.json`` files of a folder, and of those in it, or what was handed in at a place.

    Of a folder's receipts, the images are looked for at ``place``, if one is named; signatures are
    tried with ``key``, the public key of a class.
    """
    records, places, left_out = _read(source, place)
    if not records:
        raise StateError(
            f"reading the receipts in '{source}': there are none. Learners save theirs "
            "with 'python3 -m labapp progress --save FILE.json', or send them with 'python3 -m "
            f"labapp hand-in REGISTRY'. {' '.join(left_out[:1])}"
        )
    has = functools.cache(lambda where, image: bool(where.has(image)))
    declared = {id: find_exercise(id) for id in exercises}
    seen: Counter[str] = Counter()
    learners, cells = [], []
    order = sorted(records.items(), key=lambda each: (-len(each[1].passed), each[1].learner))
    for file, record in order:
        name = printable(record.learner)
        seen[name] += 1
        # The second of the same name is told apart, and not added up.
        name = name if seen[name] == 1 else f"{name} ({seen[name]})"
        images, where = record.images, places[file]
        missing = [image for image in images if where and not has(where, image)]
        notes = [record.broken.text] if record.broken else []
        notes += _twins(file, records, declared)
        notes += _doubtful(record, declared)
        notes += [f"{images[each]}: {where} does not have {each}" for each in missing]
        known = [receipt for id, receipt in record.passed.items() if id in declared]
        verified = {
            receipt.exercise
            for receipt in known
            if where and _is_named(receipt, declared) and has(where, receipt.image)
        }
        signed = {each.exercise for each in known if key and is_signed(key, record, each)}
        unsigned = [each.exercise for each in known if each.exercise not in signed]
        if key and unsigned:
            notes.append(f"not signed by this key for this learner: {', '.join(unsigned)}")
        learners.append(
            {
                "learner": name,
                "passed": len(known),
                "of": len(exercises),
                "tries": sum(receipt.tries for receipt in known),
                "hints": sum(receipt.hints for receipt in known),
                "solutions": sum(receipt.solution for receipt in known),
                "last": max((receipt.time for receipt in known), default=""),
                "chain": f"broken at {record.broken.number}" if record.broken else "whole",
                "images": len(images),
                "verified": len(verified) if where else None,
                "signed": len(signed) if key else None,
                "claimed": len(known) - len(verified),
                "notes": notes,
            }
        )
        for id, exercise in declared.items():
            makes = exercise.evidence != NO_IMAGE
            cell = {"learner": name, **_cell(record, id), "verified": id in verified}
            cells.append(cell | {"makes_image": makes})
    table = pd.DataFrame(cells)
    by, whose = _by_exercise(table), id_of(key) if key else ""
    kept = tuple(records.values())
    return ClassReport(pd.DataFrame(learners), by, table, tuple(left_out), kept, whose)


def watch(folder: Path, file: Path) -> None:
    """Show a folder of receipts as the live view, in a file that is written until Ctrl-C."""
    if not folder.is_dir():
        raise StateError(f"reading the receipts in '{folder}': there is no such folder.")
    feedback.say(f"The class is in '{file}', drawn anew every {view.EVERY} s. Ctrl-C ends it.")
    for number in itertools.count():
        records, _, left_out = _read(folder, None)
        page = view.page(records.values(), datetime.now(UTC), left_out=left_out)
        write_file(file, page)
        if not number:
            webbrowser.open(file.as_uri())
        time.sleep(view.EVERY)


def _read(
    source: Path | Place, place: Place | None
) -> tuple[dict[str, Record], dict[str, Place | None], list[str]]:
    """Read what each learner handed in, of several copies the last; tell what is left out."""
    found: dict[str, Record] = {}
    places: dict[str, Place | None] = {}
    left_out = []
    for file, where, read in collect(source) if isinstance(source, Place) else _files(source):
        try:
            found[file], places[file] = read(), where or place
        except RegistryUnreachable:
            raise
        except (LabError, OSError) as error:
            left_out.append(str(error))
    kept: dict[str, Record] = {}
    for file, record in sorted(found.items(), key=lambda each: -len(each[1].receipts)):
        whole = next((other for other in kept if _is_earlier(record, kept[other])), None)
        if whole is None:
            kept[file] = record
        else:
            left_out.append(f"'{file}': '{whole}' is of the same learner and says as much.")
    return kept, places, left_out


def _files(folder: Path) -> Iterator[tuple[str, None, Callable[[], Record]]]:
    for file in sorted(folder.rglob("*.json")):
        yield str(file), None, functools.partial(receipts.read, file)


def _is_earlier(one: Record, other: Record) -> bool:
    """Say whether a record is what another one was at an earlier time."""
    began = (one.seed, one.learner) == (other.seed, other.learner)
    return began and one.receipts == other.receipts[: len(one.receipts)]


def _is_named(receipt: Receipt, declared: Mapping[str, Exercise]) -> bool:
    """Say whether a receipt names an image where its exercise makes one."""
    wanted = declared[receipt.exercise].evidence
    return wanted != NO_IMAGE and receipt.image.startswith(f"{wanted}@")


def _doubtful(record: Record, declared: Mapping[str, Exercise]) -> Iterator[str]:
    """Yield a note on receipts without their evidence, and on an image that is that of too many."""
    known = [receipt for id, receipt in record.passed.items() if id in declared]
    makes = [each for each in known if declared[each.exercise].evidence != NO_IMAGE]
    if lacking := [each.exercise for each in makes if not _is_named(each, declared)]:
        yield f"no image is named where the exercise makes one: {', '.join(lacking)}"
    for image, times in Counter(each.image for each in makes if _is_named(each, declared)).items():
        if times > 3:
            yield f"one image for {times} exercises, which make others each: {image}"


def _twins(
    file: str, records: Mapping[str, Record], declared: Mapping[str, Exercise]
) -> Iterator[str]:
    """Yield a note if others have the same seed or name, or an image that only one can make."""
    own, others = records[file], {each: records[each] for each in records if each != file}
    twins = sorted(
        each for each, it in others.items() if it.seed == own.seed or it.learner == own.learner
    )
    if twins:
        more = f" and {len(twins) - 1} more" if len(twins) > 1 else ""
        yield (
            f"the same seed or name as '{others[twins[0]].learner}' in '{twins[0]}'{more}: one was "
            "copied from the other, or both began on one machine, or two have the same name"
        )
    mine = _unlike(own, declared)
    for each in sorted(others):
        if shared := mine & _unlike(others[each], declared):
            yield (
                f"images that '{others[each].learner}' in '{each}' has, too: {len(shared)}, as "
                f"{min(shared)}. Two learners' builds don't have the same digest"
            )


def _unlike(record: Record, declared: Mapping[str, Exercise]) -> set[str]:
    """Return a learner's images, but for those that others may honestly have made as well."""
    found = ((declared.get(id), receipt.image) for id, receipt in record.passed.items())
    return {image for exercise, image in found if exercise and image and not exercise.alike}


def _cell(record: Record, exercise: str) -> dict[str, object]:
    took = record.took(exercise)
    counts = {"tries": took.tries, "hints": took.hints, "solution": took.solution}
    return {"exercise": exercise, "state": took.by, **counts}


def _by_exercise(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a row an exercise: how many passed and tried it, and what it took those who passed."""
    passed = cells["state"].isin(_PASSED)
    took = cells[["tries", "hints"]].where(passed)
    counts = cells.assign(passed=passed, tried=cells["state"] != "open", **took)
    counts["solutions"] = cells["solution"] & passed
    by = counts.groupby("exercise", sort=False)
    columns = {"passed": "sum", "tried": "sum", "tries": "median", "hints": "median"}
    return by.agg({**columns, "solutions": "sum"}).reset_index()


def _text(table: pd.DataFrame) -> str:
    """Return a table as aligned text, its first column to the left."""
    name = str(table.columns[0])
    rows = table.set_index(name).rename_axis(index=None, columns=name)
    return rows.to_string(na_rep="", float_format="{:g}".format)
