"""What the lab tells while it works: lines, the commands it runs, and progress bars.

The same calls serve a notebook (HTML without scripts, which stays readable in a saved file), a
terminal (rich), a log file (plain lines) and a test (:class:`QuietFeedback`).
"""

from __future__ import annotations

import html
import shlex
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

Unit = Literal["bytes", "steps"]

REDRAW_SECONDS = 0.1


@dataclass
class Bar:
    """One line of progress; ``total`` is None while it is not known."""

    done: float = 0.0
    total: float | None = None
    note: str = ""
    finished: bool = False


class Bars:
    """Progress of one operation, a bar for each of its parts; use it in a ``with`` block."""

    def __init__(self, title: str, *, unit: Unit = "bytes") -> None:
        self.title = title[:1].upper() + title[1:]
        self.unit = unit
        self.bars: dict[str, Bar] = {}
        self.failed = False
        self._began = time.monotonic()
        self._drawn = 0.0
        self._lock = threading.RLock()

    def __enter__(self) -> Bars:
        self.draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        with self._lock:
            self.failed = error is not None
            if not self.failed:
                for key in self.bars:
                    self.finish(key, self.bars[key].note)
            self.draw()
            self.close()

    @property
    def seconds(self) -> float:
        """How long the operation has taken so far, in seconds."""
        return time.monotonic() - self._began

    def update(self, key: str, done: float, total: float | None, note: str = "") -> None:
        """Say how far a part is.

        Args:
            key: the part's name; an unknown one adds a bar.
            done: bytes or steps done so far.
            total: of how many; None when that is not known.
            note: a word or two shown behind the bar.
        """
        with self._lock:
            self.bars[key] = Bar(done, total, note)
            if time.monotonic() - self._drawn >= REDRAW_SECONDS:
                self._drawn = time.monotonic()
                self.draw()

    def finish(self, key: str, note: str = "done") -> None:
        """Say that a part reached its end."""
        with self._lock:
            bar = self.bars.setdefault(key, Bar())
            end = bar.total or bar.done or 1.0
            self.bars[key] = Bar(end, end, note, finished=True)

    def draw(self) -> None:
        """Show the bars as they stand; a kind of feedback that shows none leaves this out."""

    def close(self) -> None:
        """End the display."""


class Feedback:
    """Where the lab's words go: here, plain lines to standard output."""

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def command(self, argv: Sequence[str]) -> None:
        """Print the command line that does what the lab is about to do."""
        self.say(f"$ {shlex.join(argv)}")

    def bars(self, title: str, *, unit: Unit = "bytes") -> Bars:
        """Return progress bars under a title, to be used in a ``with`` block."""
        return _PlainBars(title, unit=unit)


class TerminalFeedback(Feedback):
    """Lines, and on a terminal moving bars; where output is a file, a line when a part ends."""

    def command(self, argv: Sequence[str]) -> None:
        """Print the command line that does what the lab is about to do."""
        click.secho(f"$ {shlex.join(argv)}", bold=True)

    def bars(self, title: str, *, unit: Unit = "bytes") -> Bars:
        """Return progress bars under a title."""
        return (_TerminalBars if sys.stdout.isatty() else _PlainBars)(title, unit=unit)


class NotebookFeedback(Feedback):
    """Plain lines and HTML bars, updated in place, in the output of a notebook's cell."""

    def bars(self, title: str, *, unit: Unit = "bytes") -> Bars:
        """Return progress bars under a title."""
        return _NotebookBars(title, unit=unit)


@dataclass
class QuietFeedback(Feedback):
    """Keeps what it was told, and prints nothing."""

    lines: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    shown: list[Bars] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep one line."""
        self.lines.append(text)

    def command(self, argv: Sequence[str]) -> None:
        """Keep a command line, without the leading ``$``."""
        self.commands.append(shlex.join(argv))

    def bars(self, title: str, *, unit: Unit = "bytes") -> Bars:
        """Return bars that are kept in ``shown``."""
        self.shown.append(Bars(title, unit=unit))
        return self.shown[-1]


F = TypeVar("F", bound=Feedback)

_current: Feedback | None = None


def current() -> Feedback:
    """Return where the lab's words go now: what :func:`using` named, else what fits this place."""
    global _current
    if _current is None:
        _current = feedback_here()
    return _current


@contextmanager
def using(feedback: F) -> Iterator[F]:
    """Send the lab's words to a feedback of one's own, in all of this process, for a while."""
    global _current
    before, _current = _current, feedback
    try:
        yield feedback
    finally:
        _current = before


def say(text: str) -> None:
    """Print one line."""
    current().say(text)


def command(argv: Sequence[str]) -> None:
    """Print the command line that does what the lab is about to do."""
    current().command(argv)


def bars(title: str, *, unit: Unit = "bytes") -> Bars:
    """Return progress bars under a title, to be used in a ``with`` block."""
    return current().bars(title, unit=unit)


def feedback_here() -> Feedback:
    """Return the feedback that fits: a notebook's inside a Jupyter kernel, else a terminal's."""
    # Importing IPython takes a second, and inside a kernel it has been imported.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return NotebookFeedback() if getattr(shell, "kernel", None) else TerminalFeedback()


def amount(value: float, unit: Unit = "bytes") -> str:
    """Return a number as a person reads it: ``12.3 MB`` (powers of ten), or ``4``."""
    if unit == "steps":
        return f"{value:.0f}"
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.0f} B"


def _how_far(bar: Bar, unit: Unit) -> str:
    if bar.total is None:
        return amount(bar.done, unit) if bar.done else ""
    if bar.finished:
        return amount(bar.total, unit) if unit == "bytes" and bar.total > 1 else ""
    return f"{amount(bar.done, unit)} of {amount(bar.total, unit)}"


class _PlainBars(Bars):
    """A line when the operation starts, and one for each part that ends."""

    def draw(self) -> None:
        if not self.bars and not self.failed:
            print(self.title, flush=True)

    def finish(self, key: str, note: str = "done") -> None:
        already = key in self.bars and self.bars[key].finished
        super().finish(key, note)
        if not already:
            words = " ".join(
                filter(None, [key, _how_far(self.bars[key], self.unit), note or "done"])
            )
            print(f"  {words}", flush=True)


class _TerminalBars(Bars):
    def __init__(self, title: str, *, unit: Unit) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(title, unit=unit)
        self._progress = Progress(
            TextColumn("  {task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
        )
        self._tasks: dict[str, TaskID] = {}
        print(self.title)
        self._progress.start()

    def draw(self) -> None:
        for key, bar in self.bars.items():
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(key[:28], total=None, words="")
            words = " ".join(filter(None, [_how_far(bar, self.unit), bar.note]))
            self._progress.update(
                self._tasks[key], completed=bar.done, total=bar.total, words=words[:60]
            )

    def close(self) -> None:
        self._progress.stop()


_CELL = "padding:1px 10px 1px 0;border:0;text-align:left;vertical-align:middle"


class _NotebookBars(Bars):
    """An HTML table with a ``<progress>`` in each row, redrawn by ``display_id``."""

    def __init__(self, title: str, *, unit: Unit) -> None:
        super().__init__(title, unit=unit)
        self._handle: Any = None
        self._last = ""

    def draw(self) -> None:
        from IPython.display import HTML, display

        text = self._html()
        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)  # type: ignore[no-untyped-call]
        elif text != self._last:
            self._handle.update(HTML(text))  # type: ignore[no-untyped-call]
        self._last = text

    def _html(self) -> str:
        ended = bool(self.bars) and all(bar.finished for bar in self.bars.values())
        state, words = "running", "…"
        if self.failed:
            state, words = "failed", "stopped by an error"
        elif ended:
            state, words = "done", f"{self.seconds:.1f} s"
        return (
            f'<div class="labapp-bars" data-state="{state}">'
            f"<div>{html.escape(self.title)} <small>{words}</small></div>"
            f'<table style="border-collapse:collapse;margin:2px 0 6px 0">{"".join(self._rows())}'
            "</table></div>"
        )

    def _rows(self) -> Iterator[str]:
        for key, bar in self.bars.items():
            end = bar.total or 1
            value = f' value="{min(bar.done, end):.0f}"' if bar.total else ""
            words = " · ".join(filter(None, [_how_far(bar, self.unit), bar.note]))
            yield (
                f'<tr><td style="{_CELL}"><code>{html.escape(key)}</code></td>'
                f'<td style="{_CELL}"><progress max="{end:.0f}"{value} '
                f'aria-label="{html.escape(key)}" style="width:160px"></progress></td>'
                f'<td style="{_CELL}">{html.escape(words)}</td></tr>'
            )
