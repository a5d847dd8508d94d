"""The instructions of a Dockerfile, each with the place where it stands in the text.

Source: https://docs.docker.com/reference/dockerfile/ (format, parser directives, here-documents).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$")
_HEREDOC = re.compile(r"(?<!\S)\d*<<(-?)([\"']?)([A-Za-z_][A-Za-z0-9_.-]*)\2(?![<A-Za-z0-9_.-])")


@dataclass(frozen=True)
class Word:
    """A word of an instruction: its text, and where it begins and ends in the file's text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        keyword: in upper case, such as ``FROM``.
        words: what follows the keyword, split at spaces; lines continued with ``\\`` are joined.
        text: keyword and words as one line; a here-document is left out.
        line: the first line's number, from 1.
        last_line: the last line's number, here-documents included.
    """

    keyword: str
    words: tuple[Word, ...]
    text: str
    line: int
    last_line: int


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile in order.

    Nothing is checked: a Dockerfile that the engine refuses is read as far as it makes sense.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    continued = _continued(_escape(lines))
    found = []
    number = 0
    while number < len(lines):
        first = number
        characters: list[tuple[str, int]] = []
        more = True
        while more and number < len(lines):
            line = lines[number].rstrip("\r\n")
            offset = starts[number]
            number += 1
            if line.lstrip(" \t\ufeff").startswith("#") or not line.strip(" \t\ufeff"):
                # Comments and empty lines may stand between the lines of one instruction.
                more = bool(characters)
                continue
            end = continued.search(line)
            more = end is not None
            kept = line[: end.start()] if end else line
            characters += [(char, offset + place) for place, char in enumerate(kept)]
        if not characters:
            continue
        words = _words(characters)
        if words:
            logical = "".join(char for char, _ in characters).strip(" \t\ufeff")
            keyword = words[0].text.upper()
            if keyword in {"RUN", "COPY", "ADD"}:
                number = _after_heredocs(logical, lines, number)
            found.append(Instruction(keyword, tuple(words[1:]), logical, first + 1, number))
    return found


def _escape(lines: list[str]) -> str:
    """Return the character that continues a line; a directive at the top can change it."""
    for line in lines:
        directive = _DIRECTIVE.match(line.strip().lstrip("\ufeff"))
        if directive is None:
            break
        if directive[1].lower() == "escape":
            return directive[2]
    return "\\"


def _continued(escape: str) -> re.Pattern[str]:
    sign = re.escape(escape)
    return re.compile(rf"(?<!{sign}){sign}[ \t]*$")


def _words(characters: list[tuple[str, int]]) -> list[Word]:
    words: list[Word] = []
    current: list[tuple[str, int]] = []
    for char, place in [*characters, (" ", -1)]:
        if char not in " \t\ufeff":
            current.append((char, place))
        elif current:
            text = "".join(part for part, _ in current)
            words.append(Word(text, current[0][1], current[-1][1] + 1))
            current = []
    return words


def _after_heredocs(logical: str, lines: list[str], number: int) -> int:
    """Return the index of the line behind the here-documents that an instruction opens."""
    after = number
    for heredoc in _HEREDOC.finditer(logical):
        tabs = "\t" if heredoc[1] else ""
        for place in range(after, len(lines)):
            line = lines[place].rstrip("\r\n")
            if (line.lstrip(tabs) if tabs else line) == heredoc[3]:
                after = place + 1
                break
        else:
            return number  # Nothing ends it, so it was no here-document.
    return after
