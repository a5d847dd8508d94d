"""What the lab tells while it works: lines, the commands it runs, and progress bars.

The same calls serve a notebook (HTML without scripts, which stays readable in a saved file), a
terminal (rich), a log file (plain lines) and a test (:class:`QuietFeedback`).
"""

from __future__ import annotations

import html
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.progress import TaskID

Unit = Literal["bytes", "steps"]


@dataclass
class Bar:
    """One line of progress; ``total`` is None while it is not known."""

    done: float = 0.0
    total: float | None = None
    note: str = ""
    finished: bool = False


class Bars:
    """Progress of one operation, a bar for each of its parts; use it in a ``with`` block.

    Here it is only kept; a kind that shows it has its own ``draw`` and ``close``.
    """

    def __init__(self, title: str, *, unit: Unit = "bytes") -> None:
        self.title = title[:1].upper() + title[1:]
        self.unit = unit
        self.bars: dict[str, Bar] = {}
        self.ended = self.failed = False
        self._began = time.monotonic()
        self._drawn = 0.0
        self._lock = threading.RLock()

    def __enter__(self) -> Bars:
        self.draw()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._lock:
            self.ended, self.failed = True, error is not None
            for key, bar in [] if self.failed else list(self.bars.items()):
                if not bar.finished:
                    self.finish(key, bar.note)
            self.draw()
            self.close()

    def update(self, key: str, done: float, total: float | None, note: str = "") -> None:
        """Say how far a part is, with a word or two behind its bar; a new name adds a bar."""
        with self._lock:
            self.bars[key] = Bar(done, total, note)
            if time.monotonic() - self._drawn >= 0.1:  # seconds
                self._drawn = time.monotonic()
                self.draw()

    def finish(self, key: str, note: str = "done") -> None:
        """Say that a part reached its end."""
        with self._lock:
            bar = self.bars.get(key, Bar())
            end = bar.total or bar.done or 1.0
            self.bars[key] = Bar(end, end, note, finished=True)

    def draw(self) -> None:
        """Show the bars as they stand."""

    def close(self) -> None:
        """End the display."""

    def _words(self, bar: Bar) -> list[str]:
        shown = amount if self.unit == "bytes" else "{:.0f}".format
        if bar.total is None:
            far = shown(bar.done) if bar.done else ""
        elif not bar.finished:
            far = f"{shown(bar.done)} of {shown(bar.total)}"
        else:
            far = amount(bar.total) if self.unit == "bytes" and bar.total > 1 else ""
        return [text for text in (far, bar.note) if text]


@dataclass
class QuietFeedback:
    """Keeps what the lab says instead of showing it; command lines without the ``$``."""

    lines: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    shown: list[Bars] = field(default_factory=list)


_quiet: QuietFeedback | None = None


@contextmanager
def using(quiet: QuietFeedback | None) -> Iterator[Any]:
    """Keep the lab's words, in all of this process, for a while; None shows them again."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield quiet
    finally:
        _quiet = before


def say(text: str) -> None:
    """Print one line."""
    if _quiet is not None:
        _quiet.lines.append(text)
    else:
        print(text, flush=True)


def program() -> str:
    """Return the command line's name: ``docker``, or ``podman`` where only that is installed."""
    return "podman" if shutil.which("podman") and not shutil.which("docker") else "docker"


def command(argv: Sequence[str], *, reads: str = "") -> None:
    """Print the command line that does what the lab is about to do; ``reads`` is what it reads."""
    line = reads + shlex.join([program() if argv[0] == "docker" else argv[0], *argv[1:]])
    if _quiet is not None:
        _quiet.commands.append(line)
    else:
        say(f"$ {line}")


def bars(title: str, *, unit: Unit = "bytes") -> Bars:
    """Return progress bars under a title, to be used in a ``with`` block."""
    if _quiet is not None:
        _quiet.shown.append(Bars(title, unit=unit))
        return _quiet.shown[-1]
    # Importing IPython takes a second, and inside a kernel it has been imported.
    ipython = sys.modules.get("IPython")
    if getattr(ipython and ipython.get_ipython(), "kernel", None):
        return _NotebookBars(title, unit=unit)
    return (_TerminalBars if sys.stdout.isatty() else _PlainBars)(title, unit=unit)


def amount(value: float) -> str:
    """Return a number of bytes as a person reads it: ``12.3 MB`` (powers of ten)."""
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.0f} B"


class _PlainBars(Bars):
    """A line when the operation starts, and one for each part that ends."""

    def __init__(self, title: str, *, unit: Unit) -> None:
        super().__init__(title, unit=unit)
        print(self.title, flush=True)

    def finish(self, key: str, note: str = "done") -> None:
        is_new = not self.bars.get(key, Bar()).finished
        super().finish(key, note or "done")
        if is_new:
            print(f"  {' '.join([key, *self._words(self.bars[key])])}", flush=True)


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
            words = " ".join(self._words(bar))[:60]
            self._progress.update(
                self._tasks[key], completed=bar.done, total=bar.total, words=words
            )

    def close(self) -> None:
        self._progress.stop()


_CELL = "padding:1px 10px 1px 0;border:0;text-align:left;vertical-align:middle"


class _NotebookBars(Bars):
    """An HTML table with a ``<progress>`` in each row, redrawn by ``display_id``."""

    _handle: Any = None

    def draw(self) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(self._html()), display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        state, words = "running", "…"
        if self.failed:
            state, words = "failed", "stopped by an error"
        elif self.ended:
            state, words = "done", f"{time.monotonic() - self._began:.1f} s"
        rows = "".join(self._row(key, bar) for key, bar in self.bars.items())
        return (
            f'<div class="labapp-bars" data-state="{state}">'
            f"<div>{html.escape(self.title)} <small>{words}</small></div>"
            f'<table style="border-collapse:collapse;margin:2px 0 6px 0">{rows}</table></div>'
        )

    def _row(self, key: str, bar: Bar) -> str:
        end, name = bar.total or 1, html.escape(key)
        value = f' value="{min(bar.done, end):.0f}"' if bar.total else ""
        return (
            f'<tr><td style="{_CELL}"><code>{name}</code></td>'
            f'<td style="{_CELL}"><progress max="{end:.0f}"{value} '
            f'aria-label="{name}" style="width:160px"></progress></td>'
            f'<td style="{_CELL}">{html.escape(" · ".join(self._words(bar)))}</td></tr>'
        )
