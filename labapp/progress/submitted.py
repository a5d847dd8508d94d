"""The receipts that a class handed in: read, compared, and held against a registry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from labapp.errors import DamagedContent, InvalidReference, NotInRegistry, StateError
from labapp.progress import chain
from labapp.progress.chain import Record
from labapp.reference import Reference
from labapp.registry import Registry


@dataclass(frozen=True)
class Submitted:
    """One learner's receipts.

    Attributes:
        file: where they are.
        record: what they hold.
        notes: what is odd about them, in words.
        verified: how many of the images that they name the registry has; None if it was not asked.
        images: how many images they name.
    """

    file: Path
    record: Record
    notes: tuple[str, ...]
    images: int
    verified: int | None = None


def read(folder: Path) -> tuple[list[Submitted], list[str]]:
    """Read all receipts in a folder and in its folders.

    Args:
        folder: where the ``.json`` files are.

    Returns:
        What each learner handed in, of earlier and later copies the last; and a sentence for each
        file that is left out.

    Raises:
        StateError: there is no such folder.
    """
    if not folder.is_dir():
        raise StateError(
            f"reading the receipts in '{folder}': there is no such folder. Name the one that the "
            "class's files are in."
        )
    found: list[Submitted] = []
    left_out = []
    for file in sorted(folder.rglob("*.json")):
        try:
            record = chain.read(file)
        except (StateError, FileNotFoundError) as error:
            left_out.append(str(error))
            continue
        new = Submitted(file, record, (), len(_images(record)))
        old = next((each for each in found if _same(each.record, record)), None)
        if old is None:
            found.append(new)
            continue
        if len(record.receipts) > len(old.record.receipts):
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


def _alike(each: Submitted, found: list[Submitted]) -> tuple[str, ...]:
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


def _first(others: list[Submitted]) -> str:
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"'{others[0].record.learner}' in '{others[0].file}'{more}"


def verified(submitted: list[Submitted], registry: Registry) -> list[Submitted]:
    """Ask a registry for each image that receipts name, and note which ones it does not have.

    Raises:
        RegistryUnreachable: it does not answer.
    """
    held: dict[str, bool] = {}
    told = []
    for each in submitted:
        named = _images(each.record)
        for image in named:
            if image not in held:
                held[image] = _holds(registry, image)
        notes = [
            f"{exercise}: {registry.address} does not have {image}"
            for image, exercise in named.items()
            if not held[image]
        ]
        count = sum(held[image] for image in named)
        told.append(replace(each, notes=(*each.notes, *notes), verified=count))
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
