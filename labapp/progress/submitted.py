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
        What each learner handed in, of several files the one with most receipts; and a sentence
        for each file that is left out.

    Raises:
        StateError: there is no such folder.
    """
    if not folder.is_dir():
        raise StateError(
            f"reading the receipts in '{folder}': there is no such folder. Name the one that the "
            "class's files are in."
        )
    best: dict[tuple[int, str], tuple[Path, Record]] = {}
    left_out = []
    for file in sorted(folder.rglob("*.json")):
        try:
            record = chain.read(file)
        except (StateError, FileNotFoundError) as error:
            left_out.append(str(error))
            continue
        key = (record.seed, record.learner)
        if key not in best:
            best[key] = (file, record)
            continue
        other, held = best[key]
        if len(record.sound) > len(held.sound):
            best[key] = (file, record)
            file, other = other, file
        left_out.append(f"'{file}': '{other}' is of the same learner and has as much or more.")
    found = []
    for (seed, learner), (file, record) in best.items():
        copies = [name for number, name in best if number == seed and name != learner]
        notes = [f"the same seed as '{name}': one is a copy of the other" for name in copies]
        found.append(Submitted(file, record, tuple(notes), len(_images(record))))
    return found, left_out


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
