"""Chapters run without a browser: the executed notebooks, and pages that need no internet."""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labapp import feedback
from labapp.errors import ChapterError, ExerciseError

if TYPE_CHECKING:
    from nbformat import NotebookNode

DIAGRAMS = Path(__file__).parent.parent / "vendor" / "mermaid.tiny.js.gz"
"""What draws the diagrams in a page; where it comes from is told in the README beside it."""


def chapters(notebooks: Path, wanted: Sequence[str] = ()) -> list[Path]:
    """Return the files of chapters by numbers (``01``, ``1``) or names; none means all."""
    files = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    found = []
    for name in wanted:
        short = Path(name).name.removesuffix(".ipynb")
        matches = [f for f in files if f.stem == short or f.stem.startswith(f"{short:0>2}_")]
        if not matches:
            known = ", ".join(file.stem for file in files)
            raise ExerciseError(f"looking for chapter '{name}': there is none. Known: {known}.")
        found += matches
    return found if wanted else files


def run_chapter(file: Path, out: Path, *, environment: Mapping[str, str]) -> None:
    """Run an untouched chapter, write notebook and page to a folder, and say how long it took.

    It runs on a copy, with files of its own: a learner's work folder is left alone. Where a cell
    fails, what was executed until then is written all the same.
    """
    import nbformat  # slow, and a wrong name is told without it

    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(file.parent / "quiz", out / "quiz", dirs_exist_ok=True)
    (out / "mermaid.tiny.js").write_bytes(gzip.decompress(DIAGRAMS.read_bytes()))
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    page, began = out / f"{file.stem}.html", time.monotonic()
    try:
        execute(notebook, folder=out, environment=environment, name=file.stem)
    finally:
        nbformat.write(notebook, out / file.name)  # type: ignore[no-untyped-call]
        page.write_text(to_html(notebook, name=file.stem), encoding="utf-8")
    feedback.say(f"{page}  ({time.monotonic() - began:.0f} s)")


def execute(
    notebook: NotebookNode, *, folder: Path, environment: Mapping[str, str], name: str = "notebook"
) -> None:
    """Execute a notebook's cells in place, in a folder."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    with feedback.bars(f"running {name}", unit="steps") as bars:

        def executed(cell: NotebookNode, cell_index: int, **_: object) -> None:
            bars.update(name, cell_index + 1, len(notebook.cells), cell.get("id", ""))

        client = NotebookClient(
            notebook,
            timeout=900,  # seconds for one cell
            record_timing=False,
            # Else each kernel warns on the terminal that it speaks TCP with this machine.
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_complete=executed,
        )
        try:
            client.execute(env=dict(environment))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise ChapterError(f"running '{name}': {error}") from error


def to_html(notebook: NotebookNode, *, name: str) -> str:
    """Return a notebook as an HTML page that loads nothing from the internet."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="labapp",
        extra_template_basedirs=[str(Path(__file__).parent / "templates")],
        anchor_link_text="",
    )
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    return str(body).replace('.ipynb"', '.html"')
