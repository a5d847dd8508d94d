"""The commands on what learners did: one's own progress, and the report on a class."""

from __future__ import annotations

from pathlib import Path

import click

from labapp.state import State

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Show which exercises you passed, and where to go on.")
@click.option("--name", metavar="NAME", help="From now on, write this name into the receipts.")
@click.option("--save", type=FILE, metavar="FILE", help="Write a copy of the receipts, to hand in.")
@click.option("--map", "picture", type=FILE, metavar="FILE", help="Draw the journey map: PNG, SVG.")
def progress(name: str | None, save: Path | None, picture: Path | None) -> None:
    """Show which exercises you passed, and where to go on.

    Each exercise that 'lab.check' finds right gets a receipt: when, after how many tries and
    hints, and by what it was judged. The receipts are kept across restarts of kernel, lab and
    machine. For a class, give yourself the name that the class knows you by, and hand in a copy:

    \b
      progress --name ada@example.org --save ada.json
    """
    from rich.console import Console

    from labapp.progress.journey import journey_map
    from labapp.progress.listing import print_progress
    from labapp.progress.overview import overview
    from labapp.progress.receipts import Receipts

    receipts = Receipts(State.open())
    if name is not None:
        receipts.rename(name)
    print_progress(Console(highlight=False), overview(receipts, NOTEBOOKS))
    if save is not None:
        receipts.save(save)
        click.echo(f"A copy of the receipts is in '{save}'.")
    if picture is not None:
        saved = journey_map(receipts.read().passed).chart.save(picture)
        click.echo(f"The journey map is in '{saved}'.")


@click.command(short_help="Show how far a class is, from its receipts.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--registry",
    metavar="ADDRESS",
    help="Ask this registry whether it has the images that the receipts name by digest.",
)
@click.option("--csv", type=FILE, metavar="FILE", help="Write points for a learning platform.")
@click.option(
    "--platform",
    type=click.Choice(["moodle", "canvas"]),
    default="moodle",
    show_default=True,
    help="The columns of the CSV file: a point for each exercise, a column for each chapter.",
)
@click.option("--chart", type=FILE, metavar="FILE", help="Draw the class as a grid: PNG or SVG.")
def report(
    folder: Path, registry: str | None, csv: Path | None, platform: str, chart: Path | None
) -> None:
    """Show how far a class is: who is where, and which exercise is hard.

    FOLDER holds the receipts that learners saved with 'progress --save', or that they handed in
    beside a notebook, one file each, in any folders below it.

    The receipts are a chain: one that was edited or taken out breaks it, and is named. What comes
    after a break does not count. The chain is no signature; '--registry' also asks a registry for
    the evidence, the images that the receipts name.
    """
    from rich.console import Console

    from labapp.errors import StateError
    from labapp.exercises import all_exercises
    from labapp.progress import report as reports
    from labapp.progress.listing import print_report
    from labapp.registry import Registry

    asked = None if registry is None else Registry(registry)
    found = reports.report(folder, list(all_exercises()), registry=asked)
    print_report(Console(highlight=False), found)
    if csv is not None:
        try:
            csv.parent.mkdir(parents=True, exist_ok=True)
            csv.write_text(found.gradebook(platform), encoding="utf-8", newline="")
        except OSError as error:
            raise StateError(
                f"writing the points to '{csv}': {error.strerror or error}. Choose a folder that "
                "you may write to."
            ) from error
        click.echo(f"The points are in '{csv}'.")
    if chart is not None:
        click.echo(f"The chart is in '{found.chart.save(chart)}'.")
