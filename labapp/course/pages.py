"""Chapters run without a browser: the executed notebooks, and pages that need no internet."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from labapp import feedback
from labapp.errors import ChapterError, ExerciseError
from labapp.feedback import Bars

CELL_SECONDS = 900
"""How long one cell may take, in seconds, before the run is given up."""

TEMPLATES = Path(__file__).parent / "templates"

DIAGRAMS = Path(__file__).parent.parent / "vendor" / "mermaid.tiny.js.gz"
"""What draws the diagrams in a page; where it comes from is told in the README beside it."""


@dataclass(frozen=True)
class Page:
    """A chapter that was run.

    Attributes:
        chapter: its file's name without the ending, such as ``01_build``.
        notebook: the executed notebook.
        html: the page made of it.
        seconds: how long the cells took together.
    """

    chapter: str
    notebook: Path
    html: Path
    seconds: float


def chapters(notebooks: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Return the files of chapters, in order, by numbers (``01``, ``1``) or names; none means all.

    Raises:
        ExerciseError: there is no such chapter; the message lists those that there are.
    """
    files = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not wanted:
        return files
    found = []
    for name in wanted:
        short = Path(name).name.removesuffix(".ipynb")
        matches = [f for f in files if f.stem == short or f.stem.startswith(f"{short:0>2}_")]
        if not matches:
            known = ", ".join(file.stem for file in files)
            raise ExerciseError(f"looking for chapter '{name}': there is none. Known: {known}.")
        found += matches
    return found


def run_chapter(file: Path, out: Path, *, environment: Mapping[str, str]) -> Page:
    """Run a chapter from top to bottom, as an untouched notebook, and write it to a folder.

    It runs on a copy, with files of its own: a learner's work folder is left alone.

    Raises:
        ChapterError: a cell failed; what was executed until then is written all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(file.parent / "quiz", out / "quiz", dirs_exist_ok=True)
    (out / "mermaid.tiny.js").write_bytes(gzip.decompress(DIAGRAMS.read_bytes()))
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    began = time.monotonic()
    try:
        with feedback.bars(f"Running {file.name}", unit="steps") as bars:
            execute(notebook, folder=out, environment=environment, bars=bars, name=file.stem)
    finally:
        target = out / file.name
        nbformat.write(notebook, target)  # type: ignore[no-untyped-call]
        page = target.with_suffix(".html")
        page.write_text(to_html(notebook, name=file.stem), encoding="utf-8")
    return Page(file.stem, target, page, time.monotonic() - began)


def execute(
    notebook: NotebookNode,
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    bars: Bars | None = None,
    name: str = "notebook",
) -> None:
    """Execute a notebook's cells in place, in a folder.

    Raises:
        ChapterError: a cell raised, took too long, or the kernel died.
    """
    total = len(notebook.cells)

    def executed(cell: NotebookNode, cell_index: int, **_: object) -> None:
        if bars is not None:
            bars.update(name, cell_index + 1, total, cell.get("id", ""))

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        # Else each kernel warns on the terminal that it speaks TCP with this machine.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
        on_cell_complete=executed,
    )
    try:
        client.execute(env=dict(environment if environment is not None else os.environ))
    except CellExecutionError as error:
        raise ChapterError(f"running '{name}': a cell failed.\n{error}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise ChapterError(f"running '{name}': {error}") from error


def to_html(notebook: NotebookNode, *, name: str) -> str:
    """Return a notebook as an HTML page that loads nothing from the internet."""
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="labapp",
        extra_template_basedirs=[str(TEMPLATES)],
        anchor_link_text="",
    )
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    return str(body).replace('.ipynb"', '.html"')
