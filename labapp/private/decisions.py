"""The token service's log: a line of JSON for each decision, who asked for what and got what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from labapp.state import State

KEPT_BYTES = 2_000_000
"""A log longer than that goes aside as ``decisions.log.1``, and a new one begins."""


@dataclass(frozen=True)
class Decision:
    """One decision of the token service.

    Attributes:
        account: who asked; empty for who does not log in.
        repository: what for; empty for a login alone.
        asked: actions, comma between them.
        granted: those of them that the token opens.
        status: the HTTP status of the answer.
        why: in words, where not all of it was granted.
        time: ISO 8601, UTC.
    """

    account: str
    repository: str = ""
    asked: str = ""
    granted: str = ""
    status: int = 200
    why: str = ""
    time: str = ""


def log_file(state: State) -> Path:
    """Return the file of the log."""
    return state.path("private", "decisions.log")


def write(state: State, decision: Decision) -> None:
    """Add a decision to the log; its time is now."""
    file = log_file(state)
    if file.exists() and file.stat().st_size > KEPT_BYTES:
        file.replace(file.with_name("decisions.log.1"))
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({**asdict(decision), "time": now}) + "\n")


def read(state: State) -> list[Decision]:
    """Return the decisions in the log, oldest first; a line that is cut short is left out."""
    file = log_file(state)
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(Decision(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
