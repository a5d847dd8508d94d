"""The instructions of a Dockerfile, each with the place where it stands in the text.

Source: https://docs.docker.com/reference/dockerfile/ (format, parser directives, here-documents).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_BLANK = " \t\ufeff"
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
    """One instruction: its keyword in upper case, and what follows it, split at spaces.

    ``words`` are without here-documents, which ``last_line`` does count.
    """

    keyword: str
    words: tuple[Word, ...]
    line: int
    last_line: int


def instructions(text: str) -> list[Instruction]:
    """Return the instructions in order; a faulty Dockerfile is read as far as it makes sense."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    starts = [0, *itertools.accumulate(map(len, lines))]
    escape = re.escape(_escape(lines))
    continued = re.compile(rf"(?<!{escape}){escape}[ \t]*$")
    found: list[Instruction] = []
    number = 0
    while number < len(lines):
        first, joined, places, more = number, "", list[int](), True
        while more and number < len(lines):
            line, offset = lines[number].rstrip("\r\n"), starts[number]
            number += 1
            if line.lstrip(_BLANK).startswith("#") or not line.strip(_BLANK):
                # Comments and empty lines may stand between the lines of one instruction.
                more = bool(joined)
                continue
            end = continued.search(line)
            more = end is not None
            kept = line[: end.start()] if end else line
            joined += kept
            places += range(offset, offset + len(kept))
        words = [
            Word(word[0], places[word.start()], places[word.end() - 1] + 1)
            for word in re.finditer(rf"[^{_BLANK}]+", joined)
        ]
        if words:
            keyword = words[0].text.upper()
            does = words[1].text.upper() if keyword == "ONBUILD" and words[1:] else keyword
            if does in {"RUN", "COPY", "ADD"}:
                number = _after_heredocs(joined, lines, number)
            found.append(Instruction(keyword, tuple(words[1:]), first + 1, number))
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


def _after_heredocs(joined: str, lines: list[str], number: int) -> int:
    """Return the index of the line behind the here-documents that an instruction opens."""
    after = number
    for heredoc in _HEREDOC.finditer(joined):
        tabs = "\t" if heredoc[1] else ""
        for place in range(after, len(lines)):
            line = lines[place].rstrip("\r\n")
            if (line.lstrip(tabs) if tabs else line) == heredoc[3]:
                after = place + 1
                break
        else:
            return number  # Nothing ends it, so it was no here-document.
    return after
