"""The command line. Each command imports what it needs when it runs, so that help comes at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from labapp import cli_images, cli_progress
from labapp.errors import LabError
from labapp.state import State

if TYPE_CHECKING:
    from labapp.doctor import Finding
    from labapp.feedback import Feedback

ROOT = Path(__file__).resolve().parent.parent
"""The clone."""

BASES = click.option(
    "--bases",
    type=click.Choice(["auto", "mirror", "hub", "debian"]),
    default="auto",
    show_default=True,
    envvar="LABAPP_BASES",
    help="Where missing base images come from: an instructor's mirror (named in LABAPP_MIRROR), "
    "Docker Hub, or Debian packages (root on Debian or Ubuntu). 'auto' tries them in this order.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; the lab's errors are told without a traceback."""
    try:
        code = command.main(args=argv, prog_name="python3 -m labapp", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("labapp: interrupted. What was finished is kept.", err=True)
        return 130
    except LabError as error:
        click.echo(f"labapp: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="'python3 -m labapp COMMAND --help' explains a command.",
)
def command() -> None:
    """A hands-on lab on building and delivering container images.

    Everything runs on this machine: a real container engine, a real registry, and JupyterLab for
    the chapters. Begin with 'python3 -m labapp start'.

    \b
    Environment variables:
      DOCKER_HOST    the container engine to use; by default the lab looks for one
      LABAPP_STATE   the folder of the lab's own files; by default one for each user
      LABAPP_BASES   the default of --bases
      LABAPP_MIRROR  a registry on the network that serves the base images
    """


@command.command(short_help="Set everything up and open JupyterLab on the chapters.")
@click.option("--no-browser", is_flag=True, help="Only print the address to open, with its token.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="JupyterLab's port. By default the first free one from 8888.",
)
@click.option(
    "--notebooks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=ROOT / "notebooks",
    show_default="notebooks/ in the clone",
    help="The folder to serve, for an instructor's own copy of the chapters.",
)
@BASES
def start(no_browser: bool, port: int | None, notebooks: Path, bases: str) -> None:
    """Set everything up and open JupyterLab on the chapters.

    Finds the container engine (on Debian and Ubuntu, as root, installs and starts one if there is
    none), starts the registry, prepares the base images, and serves the notebooks until Ctrl-C.

    The first start takes some minutes, a later one some seconds. Whatever was interrupted or has
    died since is mended. When JupyterLab runs already, its address is printed.
    """
    from labapp import bench, jupyter

    state, feedback = State.open(), _feedback()
    alone = jupyter.find(state) is None
    ready = bench.prepare(state, source=bases, clean=alone, feedback=feedback)
    jupyter.serve(
        state,
        ready.engine,
        folder=notebooks.resolve(),
        port=port,
        browser=not no_browser,
        feedback=feedback,
    )


@command.command(short_help="End JupyterLab, the registry, and the lab's own engine.")
def stop() -> None:
    """End JupyterLab, the registry, and the engine if it is the lab's own.

    Nothing is removed: images, base images and your progress are there at the next start.
    """
    from labapp import engine, jupyter
    from labapp.errors import EngineNotFound
    from labapp.private import process
    from labapp.private.server import PrivateServer
    from labapp.registry.server import RegistryServer

    state, feedback = State.open(), _feedback()
    jupyter.stop(state, feedback=feedback)
    process.stop(state)
    # Where no engine answers, no registry runs.
    with contextlib.suppress(EngineNotFound):
        for server in (RegistryServer, PrivateServer):
            server(engine=engine.find(state), state=state).stop(feedback=feedback)
    engine.stop(state, feedback=feedback)
    feedback.say("The lab is stopped.")


@command.command(short_help="Tell what runs, and where.")
def status() -> None:
    """Tell what runs and where: engine, registry, base images, JupyterLab.

    The exit code is 0 when the lab is ready to work, else 1. 'doctor' looks closer.
    """
    from labapp import doctor, jupyter
    from labapp.private import process

    state = State.open()
    findings = doctor.examine_lab(state)
    _print(findings)
    server = jupyter.find(state)
    if state.read("private"):
        found = process.find(state)
        place = f"lets accounts in; its token service is {found.realm}" if found else "is stopped"
        click.echo(f"     {'private registry':<21} {place}")
    click.echo(f"     {'JupyterLab':<21} {server.url if server else 'is not running'}")
    click.echo(f"     {'state':<21} '{state.folder}', lab {state.lab_id}")
    _exit(0 if all(finding.ok for finding in findings) else 1)


@command.command(short_help="Check this machine, and say what to do.")
def doctor() -> None:
    """Check what the lab needs of this machine, and say what to do where something is missing.

    Looks at Python, disk space, engine, image store, builder, the docker command, registry, base
    images and proxy settings. Changes nothing. The exit code is 0 when every line is OK, else 1.
    """
    from labapp import doctor as checks

    findings = checks.examine(State.open())
    _print(findings)
    _exit(0 if all(finding.ok for finding in findings) else 1)


@command.command(short_help="Execute chapters without a browser.")
@click.argument("chapters", nargs=-1, metavar="[CHAPTER]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "out",
    show_default="out/ in the clone",
    help="Where the executed notebooks and their pages go.",
)
@BASES
def run(chapters: tuple[str, ...], out: Path, bases: str) -> None:
    """Execute chapters without a browser, and write notebooks and HTML pages to out/.

    CHAPTER is a number or a name: 'run 02', 'run 02_registry'. Without any, all are run. A page
    needs no internet to be read.
    """
    from labapp import bench, jupyter, pages

    state, feedback = State.open(), _feedback()
    files = pages.chapters(ROOT / "notebooks", chapters)
    ready = bench.prepare(state, source=bases, feedback=feedback)
    environment = jupyter.environment(state, ready.engine)
    for file in files:
        page = pages.run_chapter(file, out, environment=environment, feedback=feedback)
        feedback.say(f"{page.html}  ({page.seconds:.0f} s)")


@command.command(
    short_help="Set up a lab apart, and run the test suite.",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST_ARGS]...")
def test(pytest_args: tuple[str, ...]) -> None:
    """Set up as 'start' does, then run the test suite.

    Works in a lab of its own (its state folder ends in '-test', or is named in LABAPP_STATE_TEST),
    so that a running lab is not disturbed. PYTEST_ARGS go to pytest: 'test tests/unit -x'. Unit
    tests alone need no engine. The exit code is pytest's.
    """
    from labapp import suite

    _exit(suite.run(pytest_args, feedback=_feedback()))


@command.command(short_help="Remove what the lab made.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--everything",
    is_flag=True,
    help="Also the lab's own engine with all its data, and the whole state folder.",
)
def reset(yes: bool, everything: bool) -> None:
    """Remove what the lab made: containers, images, volumes, networks, and its own files.

    Exactly those things are removed that carry this lab's label or an image name with its
    registry's address; nothing else on the engine is touched. The list is shown first. The
    receipts of passed exercises stay, but with --everything.
    """
    from labapp import jupyter, removal, suite

    state, feedback = State.open(), _feedback()
    work = ROOT / "notebooks" / "work"
    plans = [removal.plan(state, everything=everything, work=work, feedback=feedback)]
    tests = suite.folder()
    if everything and tests.exists():
        plans.append(removal.plan(State.open(tests), everything=True, feedback=feedback))
    click.echo("This will be removed:")
    for line in [line for plan in plans for line in plan.lines()]:
        click.echo(f"  {line}")
    if not yes:
        click.confirm("Remove all this?", abort=True)
    if everything:
        jupyter.stop(state, feedback=feedback)
    left = [line for plan in plans for line in removal.carry_out(plan, feedback=feedback)]
    for line in left:
        click.echo(f"labapp: not removed: {line}", err=True)
    if everything:
        click.echo(f"Python's packages go with the folder of the clone: '{ROOT}'.")
    _exit(1 if left else 0)


@command.group(short_help="Carry everything to machines without internet.")
def bundle() -> None:
    """Carry base images, registry and wheels to machines without internet, in one file.

    An instructor saves a bundle once; each learner loads it before the first start, and nobody
    needs Docker Hub. The file is an OCI image layout in a tar, some hundred megabytes.
    """


@bundle.command("save", short_help="Write a bundle.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@BASES
def save_bundle(file: Path, bases: str) -> None:
    """Write base images, registry image, wheels and a snapshot of known fixes to FILE, a tar."""
    from labapp import bench, bundles

    feedback = _feedback()
    ready = bench.prepare(State.open(), source=bases, feedback=feedback)
    bundles.save(ready, file, feedback=feedback)


@bundle.command("load", short_help="Take from a bundle.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def load_bundle(file: Path) -> None:
    """Take base images, registry image and wheels from FILE; then run 'start'."""
    from labapp import bundles

    bundles.load(State.open(), file, feedback=_feedback())


command.add_command(cli_images.inspect)
command.add_command(cli_images.compare)
command.add_command(cli_progress.progress)
command.add_command(cli_progress.report)


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        mark = click.style("OK ", fg="green") if finding.ok else click.style("DO ", fg="red")
        first, *rest = finding.text.splitlines() or [""]
        click.echo(f"{mark}  {finding.subject:<21} {first}")
        for line in rest:
            click.echo(f"     {'':<21} {line}")


def _feedback() -> Feedback:
    from labapp.feedback import TerminalFeedback

    return TerminalFeedback()


def _exit(code: int) -> None:
    click.get_current_context().exit(code)
