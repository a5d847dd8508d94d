"""Pins: a tag becomes the digest that it stands for now, also inside files.

Files are changed where a reference stands, and nowhere else: comments, layout and line ends stay.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from labapp.deployments.deployment_file import parse_deployment, read_deployment
from labapp.errors import InvalidReference, LabError, StateError
from labapp.images.dockerfile import Instruction, Word, instructions
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.addresses import same_address

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})")


@dataclass(frozen=True)
class Change:
    """One reference that was rewritten: its line, from 1, and its text before and after."""

    line: int
    before: str
    after: str


def pin(registry: Registry, reference: Reference | str) -> Reference:
    """Return ``repository@sha256:…`` for what a tag names now, as the registry tells it.

    Args:
        registry: that has the image.
        reference: the image; ``latest`` where it has no tag. One with a digest only loses its tag.

    Raises:
        InvalidReference: it is no reference, or one to another registry.
        NotInRegistry: there is no such image.
    """
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    if reference.digest is not None:
        return reference.pinned(reference.digest)
    if not same_address(reference.registry, registry.address):
        raise InvalidReference(
            f"pinning '{reference}': it is in the registry '{reference.registry}', and this lab "
            f"asks '{registry.address}' only. Copy the image there, or write the digest yourself."
        )
    return reference.pinned(registry.resolve(reference.repository, reference.identifier))


def pin_dockerfile(path: Path, registry: Registry) -> list[Change]:
    """Pin the images that a Dockerfile starts from or copies from.

    The tag stays beside the digest, as a word to humans; docker heeds the digest. Where ``FROM``
    takes its image from an ``ARG``, the default of that ``ARG`` is pinned.

    Returns:
        What was changed, from top to bottom; empty when all was pinned already.

    Raises:
        InvalidReference: a reference is wrong, or to another registry, or put together from
            several arguments; nothing is changed then.
        NotInRegistry: there is no such image; nothing is changed then.
        StateError: the file can't be read or written.
    """
    text = _read(path)
    edits: dict[tuple[int, int], str] = {}
    for start, end in _image_spans(text, path):
        before = text[start:end]
        with_place = f"pinning '{path}', line {_line(text, start)}: "
        try:
            reference = Reference.parse(before)
            if not reference.is_pinned:
                digest = str(pin(registry, reference).digest)
                edits[start, end] = str(reference.with_digest(digest))
        except LabError as error:
            raise type(error)(f"{with_place}{error}") from error
    return _apply(path, text, edits)


def pin_deployment(path: Path, registry: Registry) -> list[Change]:
    """Pin the images of a deployment file, each as ``repository@sha256:…``.

    Returns:
        What was changed, from top to bottom; empty when all was pinned already.

    Raises:
        DeploymentError: the file can't be understood.
        InvalidReference: a reference is wrong or to another registry; nothing is changed then.
        NotInRegistry: there is no such image; nothing is changed then.
        StateError: the file can't be read or written.
    """
    text = _read(path)
    edits: dict[tuple[int, int], str] = {}
    for service in parse_deployment(text, path).services:
        try:
            reference = Reference.parse(service.image)
            if not reference.is_pinned:
                edits[service.image_span] = str(pin(registry, reference))
        except LabError as error:
            raise type(error)(f"pinning '{path}', line {service.image_line}: {error}") from error
    return _apply(path, text, edits)


def dockerfile_images(path: Path) -> list[str]:
    """Return the images that a Dockerfile starts from or copies from, as they are written.

    Raises:
        InvalidReference: one is put together from several arguments, or its argument has no
            default.
        StateError: the file can't be read.
    """
    text = _read(path)
    return [text[slice(*span)] for span in _image_spans(text, path)]


def deployment_images(path: Path) -> dict[str, str]:
    """Return the image of each service of a deployment file, as it is written.

    Raises:
        DeploymentError: the file can't be read or understood.
    """
    return {service.name: service.image for service in read_deployment(path).services}


def _image_spans(text: str, path: Path) -> list[tuple[int, int]]:
    """Return where references to images stand in a Dockerfile; stages and ``scratch`` left out."""
    arguments: dict[str, tuple[int, int]] = {}
    stages: set[str] = {"scratch"}
    spans: list[tuple[int, int]] = []
    seen_from = False
    for instruction in instructions(text):
        words = [word for word in instruction.words if not word.text.startswith("--")]
        if instruction.keyword == "ARG" and not seen_from:
            arguments |= dict(_defaults(text, instruction))
        elif instruction.keyword == "FROM" and words:
            seen_from = True
            span = _resolved(text, path, words[0], arguments)
            if text[slice(*span)].lower() not in stages:
                spans.append(span)
            if len(words) > 2 and words[1].text.upper() == "AS":
                stages.add(words[2].text.lower())
        elif instruction.keyword == "COPY":
            spans += _copied_from(instruction, stages)
    return spans


def _copied_from(instruction: Instruction, stages: set[str]) -> list[tuple[int, int]]:
    spans = []
    for word in instruction.words:
        option, _, value = word.text.partition("=")
        # A stage can be named by its number; a lone word that is no stage is left for docker.
        if option == "--from" and re.search(r"[/:@]", value) and value.lower() not in stages:
            spans.append((word.start + len("--from="), word.end))
    return spans


def _defaults(text: str, instruction: Instruction) -> list[tuple[str, tuple[int, int]]]:
    """Return the names of an ``ARG`` with a default, and where the default stands."""
    found = []
    for word in instruction.words:
        name, sign, _ = word.text.partition("=")
        if sign:
            found.append((name, _unquoted(text, word.start + len(name) + 1, word.end)))
    return found


def _unquoted(text: str, start: int, end: int) -> tuple[int, int]:
    quoted = end - start > 1 and text[start] == text[end - 1] and text[start] in "\"'"
    return (start + 1, end - 1) if quoted else (start, end)


def _resolved(
    text: str, path: Path, word: Word, arguments: dict[str, tuple[int, int]]
) -> tuple[int, int]:
    """Return where the reference that a ``FROM`` means is written: in it, or in an ``ARG``."""
    start, end = _unquoted(text, word.start, word.end)
    variable = _VARIABLE.fullmatch(text, start, end)
    if variable:
        name = variable[1] or variable[2]
        if name in arguments:
            start, end = arguments[name]
        elif variable[3]:
            start, end = variable.span(3)
        else:
            raise InvalidReference(
                f"pinning '{path}', line {_line(text, start)}: the argument '{name}' has no "
                "default to pin. Give it one above the first FROM, or pin what the build passes."
            )
    if "$" in text[start:end] or re.search(r"\s", text[start:end]):
        raise InvalidReference(
            f"pinning '{path}', line {_line(text, start)}: '{text[start:end]}' is put together "
            "from parts, and no digest fits all that they can become. Write the whole reference "
            "into one ARG, as in 'ARG BASE=python:3.13' and 'FROM ${BASE}'."
        )
    return start, end


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _read(path: Path) -> str:
    try:
        # Bytes that are no UTF-8, say in a comment, come through unchanged.
        return path.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise StateError(f"pinning '{path}': {error.strerror}. Name the file to change.") from error


def _apply(path: Path, text: str, edits: dict[tuple[int, int], str]) -> list[Change]:
    """Write a file with some spans of its text replaced: all of it, or, after a crash, none."""
    changes = []
    new = text
    for (start, end), after in sorted(edits.items(), reverse=True):
        changes.append(Change(_line(text, start), text[start:end], after))
        new = new[:start] + after + new[end:]
    if not changes:
        return []
    target = path.resolve()
    try:
        with tempfile.NamedTemporaryFile("wb", dir=target.parent, delete=False) as draft:
            draft.write(new.encode("utf-8", errors="surrogateescape"))
        try:
            shutil.copymode(target, draft.name)
            Path(draft.name).replace(target)
        except OSError:
            Path(draft.name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StateError(
            f"pinning '{path}': writing it: {error.strerror}. Make the file and its folder "
            "writable, then try again."
        ) from error
    return changes[::-1]
