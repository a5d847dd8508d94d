"""Pins: a tag becomes the digest that it stands for now, also inside files.

Files are changed where a reference stands, and nowhere else: comments, layout and line ends stay.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from labapp import feedback
from labapp.errors import InvalidReference, LabError, StateError
from labapp.journey.deploy import image_spans
from labapp.journey.dockerfile import Instruction, instructions
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.state import write_file

Span = tuple[int, int]
"""Where a reference begins and ends in a file's text."""

Found = tuple[Span, str]
"""Where something is written that may mean an image; and why it is not pinned, if it is not."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})")


def pin(registry: Registry, reference: Reference | str) -> Reference:
    """Return ``repository@sha256:…`` for what a tag names now, as the registry tells it.

    One with a digest only loses its tag.
    """
    if isinstance(reference, str):
        reference = Reference.parse(reference)
    return reference.pinned(reference.digest or registry.digest(reference))


def pin_dockerfile(path: Path, registry: Registry) -> None:
    """Pin the images that a Dockerfile starts from, copies from or mounts; each change is told.

    The tag stays beside the digest, as a word to humans; docker heeds the digest. Where ``FROM``
    takes its image from an ``ARG``, the default of that ``ARG`` is pinned. If one of the
    references can't be pinned, nothing is changed. What else may mean an image is told.
    """
    _rewrite(path, _image_spans, lambda each: each.with_digest(registry.digest(each)))


def pin_deployment(path: Path, registry: Registry) -> None:
    """Pin the images of a compose file, each as ``repository@sha256:…``; each change is told.

    If one of them can't be pinned, nothing is changed. What else the file says is all the same. An
    image that has a variable in its name, or is built here, is left alone, which is told.
    """
    _rewrite(path, image_spans, lambda each: pin(registry, each))


def dockerfile_images(path: Path) -> list[str]:
    """Return the images that a Dockerfile names, as they are written."""
    text = _read(path)
    return [text[slice(*span)] for span, why_not in _image_spans(text, path) if not why_not]


def _image_spans(text: str, path: Path) -> Iterator[Found]:
    """Yield where references to images stand in a Dockerfile; stages and ``scratch`` left out."""
    if syntax := re.match(r"\ufeff?#[ \t]*syntax[ \t]*=[ \t]*(\S+)", text, re.IGNORECASE):
        yield syntax.span(1), "it reads the Dockerfile, and does not come into the image"
    arguments: dict[str, Span] = {}
    stages = {"scratch"}
    seen_from = False
    for instruction in instructions(text):
        words = [word for word in instruction.words if not word.text.startswith("--")]
        if instruction.keyword == "ARG" and not seen_from:
            for word in words:
                name, sign, _ = word.text.partition("=")
                if sign:
                    arguments[name] = _unquoted(text, (word.start + len(name) + 1, word.end))
        elif instruction.keyword == "FROM" and words:
            seen_from = True
            span = _resolved(text, path, (words[0].start, words[0].end), arguments)
            if text[slice(*span)].lower() not in stages:
                yield span, ""
            if len(words) > 2 and words[1].text.upper() == "AS":
                stages.add(words[2].text.lower())
        else:
            yield from _taken_from(instruction, stages)


def _taken_from(instruction: Instruction, stages: set[str]) -> Iterator[Found]:
    """Yield where ``COPY --from=…`` and ``RUN --mount=…,from=…`` name an image."""
    option = {"COPY": r"--from=(.+)", "RUN": r"--mount=(?:.*,)?from=([^,]+).*"}
    keyword, words = instruction.keyword, instruction.words
    if keyword == "ONBUILD" and words:
        keyword, words = words[0].text.upper(), words[1:]
    for word in itertools.takewhile(lambda word: word.text.startswith("--"), words):
        found = re.fullmatch(option.get(keyword, ""), word.text)
        # A stage can be named by its number.
        if not found or found[1].lower() in stages or found[1].isdecimal():
            continue
        why_not = ""
        if "$" in found[1]:
            why_not = "it has a variable"
        elif not re.search(r"[/:@]", found[1]):
            why_not = "it is no stage above, but may be a build context or an image's short name"
        yield (word.start + found.start(1), word.start + found.end(1)), why_not


def _unquoted(text: str, span: Span) -> Span:
    start, end = span
    quoted = end - start > 1 and text[start] == text[end - 1] and text[start] in "\"'"
    return (start + 1, end - 1) if quoted else span


def _resolved(text: str, path: Path, word: Span, arguments: dict[str, Span]) -> Span:
    """Return where the reference that a ``FROM`` means is written: in it, or in an ``ARG``."""
    start, end = _unquoted(text, word)
    if variable := _VARIABLE.fullmatch(text, start, end):
        start, end = arguments.get(variable[1] or variable[2], (0, 0))
        # As for docker, ":-" stands in for an empty value too.
        if start == end and variable[3]:
            start, end = variable.span(3)
    if start == end or re.search(r"[$\s]", text[start:end]):
        line = _line(text, start if start < end else word[0])
        raise InvalidReference(
            f"pinning '{path}', line {line}: '{text[slice(*word)]}' stands for no whole reference, "
            "and only that has a digest. Write it into one ARG above the first FROM, as in "
            "'ARG BASE=python:3.13' and 'FROM ${BASE}'."
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


def _rewrite(
    path: Path,
    spans_in: Callable[[str, Path], Iterable[Found]],
    pinned: Callable[[Reference], Reference],
) -> None:
    """Replace the references at some places of a file by pinned ones, and tell each change."""
    text = _read(path)
    told, parts, end = [], [], 0
    for (start, stop), why_not in sorted(set(spans_in(text, path))):
        line = _line(text, start)
        if why_not:
            told.append(f"line {line}: '{text[start:stop]}' is left alone: {why_not}")
            continue
        try:
            reference = Reference.parse(text[start:stop])
            if reference.digest:
                continue
            after = str(pinned(reference))
        except LabError as error:
            raise type(error)(f"pinning '{path}', line {line}: {error}") from error
        told.append(f"line {line}: {reference} → {after}")
        parts += [text[end:start], after]
        end = stop
    if parts:
        content = "".join([*parts, text[end:]]).encode("utf-8", errors="surrogateescape")
        write_file(path.resolve(), content)
    if told:
        feedback.say("\n".join(told))
