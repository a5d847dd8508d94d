"""The command line. Each command imports what it needs when it runs, so that it comes at once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from labapp import feedback
from labapp.errors import InvalidReference, LabError, NotInRegistry
from labapp.state import REPOSITORY, State, write_atomically

if TYPE_CHECKING:
    from labapp.doctor import Finding
    from labapp.inside.inspection import Comparison, Inspection
    from labapp.reference import Reference
    from labapp.registry.manifests import Platform

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

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
    default=REPOSITORY / "notebooks",
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
    from labapp.bench import prepare
    from labapp.machine import jupyter

    state = State.open()
    ready = prepare(state, source=bases, clean=jupyter.find(state) is None)
    folder, browser = notebooks.resolve(), not no_browser
    jupyter.serve(state, ready.engine, folder=folder, port=port, browser=browser)


@command.command(short_help="End JupyterLab, the registry, and the lab's own engine.")
def stop() -> None:
    """End JupyterLab, the registry, and the engine if it is the lab's own.

    Nothing is removed: images, base images and your progress are there at the next start.
    """
    from labapp.errors import EngineNotFound
    from labapp.machine import engine, jupyter
    from labapp.private.registry import PrivateRegistry
    from labapp.registry.server import RegistryServer

    state = State.open()
    jupyter.stop(state)
    # Where no engine answers, no registry runs.
    with contextlib.suppress(EngineNotFound):
        found = engine.find(state)
        RegistryServer(engine=found, state=state).stop()
        PrivateRegistry(engine=found, state=state).stop()
    engine.stop(state)
    feedback.say("The lab is stopped.")


@command.command(short_help="Tell what runs, and where.")
def status() -> int:
    """Tell what runs and where: engine, registry, base images, JupyterLab.

    The exit code is 0 when the lab is ready to work, else 1. 'doctor' looks closer.
    """
    from labapp import doctor as doctor_
    from labapp.machine import jupyter
    from labapp.private import service

    state = State.open()
    findings = doctor_.examine_lab(state)
    _print(findings)
    if service.was_started(state):
        realm = service.find(state)
        place = f"lets accounts in; its token service is {realm}" if realm else "is stopped"
        click.echo(f"     {'private registry':<21} {place}")
    server = jupyter.find(state)
    click.echo(f"     {'JupyterLab':<21} {server.url if server else 'is not running'}")
    click.echo(f"     {'state':<21} '{state.folder}', lab {state.lab_id}")
    return 0 if all(finding.ok for finding in findings) else 1


@command.command(short_help="Check this machine, and say what to do.")
def doctor() -> int:
    """Check what the lab needs of this machine, and say what to do where something is missing.

    Looks at Python, disk space, engine, image store, builder, the docker command, registry, base
    images and proxy settings. Changes nothing. The exit code is 0 when every line is OK, else 1.
    """
    from labapp import doctor as checks

    findings = checks.examine(State.open())
    _print(findings)
    return 0 if all(finding.ok for finding in findings) else 1


@command.command(short_help="Execute chapters without a browser.")
@click.argument("chapters", nargs=-1, metavar="[CHAPTER]...")
@click.option(
    "--out",
    type=FOLDER,
    default=REPOSITORY / "out",
    show_default="out/ in the clone",
    help="Where the executed notebooks and their pages go.",
)
@BASES
def run(chapters: tuple[str, ...], out: Path, bases: str) -> None:
    """Execute chapters without a browser, and write notebooks and HTML pages to out/.

    CHAPTER is a number or a name: 'run 02', 'run 02_registry'. Without any, all are run. A page
    needs no internet to be read.
    """
    from labapp.bench import prepare
    from labapp.course import pages
    from labapp.machine import jupyter

    state = State.open()
    files = pages.chapters(REPOSITORY / "notebooks", chapters)
    environment = jupyter.environment(state, prepare(state, source=bases).engine)
    for file in files:
        page = pages.run_chapter(file, out, environment=environment)
        feedback.say(f"{page.html}  ({page.seconds:.0f} s)")


@command.command(
    short_help="Set up a lab apart, and run the test suite.",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST_ARGS]...")
def test(pytest_args: tuple[str, ...]) -> int:
    """Set up as 'start' does, then run the test suite.

    Works in a lab of its own (its state folder ends in '-test', or is named in LABAPP_STATE_TEST),
    so that a running lab is not disturbed. PYTEST_ARGS go to pytest: 'test tests/unit -x'. Unit
    tests alone need no engine. The exit code is pytest's.
    """
    from labapp import suite

    return suite.run(pytest_args)


@command.command(short_help="Remove what the lab made.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--everything",
    is_flag=True,
    help="Also the lab's own engine with all its data, and the whole state folder.",
)
def reset(yes: bool, everything: bool) -> int:
    """Remove what the lab made: containers, images, volumes, networks, and its own files.

    Exactly those things are removed that carry this lab's label or an image name with its
    registry's address; nothing else on the engine is touched. The list is shown first. The
    receipts of passed exercises stay, but with --everything.
    """
    from labapp import reset as resets
    from labapp import suite
    from labapp.machine import jupyter

    state, tests = State.open(), suite.folder()
    labs = [tests, tests.with_name(tests.name + suite.SECOND)]
    work = REPOSITORY / "notebooks" / "work"
    plans = [resets.plan(state, everything=everything, work=work)]
    for lab in labs if everything else ():
        if lab.exists():
            plans.append(resets.plan(State.open(lab), everything=True))
    click.echo("This will be removed:")
    for line in [line for plan in plans for line in plan.lines()]:
        click.echo(f"  {line}")
    if not yes:
        click.confirm("Remove all this?", abort=True)
    if everything:
        jupyter.stop(state)
    left = [line for plan in plans for line in resets.carry_out(plan)]
    for line in left:
        click.echo(f"labapp: not removed: {line}", err=True)
    if everything:
        click.echo(f"Python's packages go with the folder of the clone: '{REPOSITORY}'.")
    return 1 if left else 0


@command.group(short_help="Carry everything to machines without internet.")
def bundle() -> None:
    """Carry base images, registry and wheels to machines without internet, in one file.

    An instructor saves a bundle once; each learner loads it before the first start, and nobody
    needs Docker Hub. The file is an OCI image layout in a tar, some hundred megabytes.
    """


@bundle.command("save", short_help="Write a bundle.")
@click.argument("file", type=FILE)
@BASES
def save_bundle(file: Path, bases: str) -> None:
    """Write base images, registry image, wheels and a snapshot of known fixes to FILE, a tar."""
    from labapp import bundle as bundles
    from labapp.bench import prepare

    bundles.save(prepare(State.open(), source=bases), file)


@bundle.command("load", short_help="Take from a bundle.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def load_bundle(file: Path) -> None:
    """Take base images, registry image and wheels from FILE; then run 'start'."""
    from labapp import bundle as bundles

    bundles.load(State.open(), file)


def options(command: Command) -> Command:
    """Give a command the options that 'inspect' and 'compare' both have."""
    for option in (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print all that was found as JSON instead of tables; sizes are in bytes.",
        ),
        click.option(
            "--charts",
            type=FOLDER,
            metavar="FOLDER",
            help="Also draw the charts, as PNG and SVG, into this folder.",
        ),
        click.option(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            callback=_platform,
            help="Which image of an index, as in linux/arm64. By default the one for this "
            "machine's processor.",
        ),
        click.option(
            "--cves",
            type=click.Choice(["auto", "debian", "grype", "trivy", "snapshot", "none"]),
            default="auto",
            show_default=True,
            help="Who tells the known CVEs. 'debian': what Debian itself has fixed, from the "
            "mirror that the image's own apt configuration names. 'snapshot': the same as a mirror "
            "told it last, here or to the maker of a bundle, for a machine without internet. "
            "'auto': the mirror, or else the snapshot. 'grype', 'trivy': that scanner, when it is "
            "installed. 'none': nobody is asked.",
        ),
    ):
        command = option(command)
    return command


def _platform(context: click.Context, option: click.Parameter, text: str | None) -> Platform | None:
    from labapp.registry.manifests import Platform

    try:
        return Platform.parse(text) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@command.command(short_help="Show what an image weighs, holds, and leaves to patch.")
@click.argument("reference")
@options
@click.option(
    "--sbom",
    type=(click.Choice(["cyclonedx", "spdx"]), FILE),
    multiple=True,
    metavar="FORMAT FILE",
    help="Also write a bill of materials, for a scanner: 'cyclonedx' (1.6) or 'spdx' (2.3), as "
    "JSON. May be given twice.",
)
def inspect(reference: str, sbom: Sequence[tuple[str, Path]], **asked: Any) -> None:
    """Show what an image weighs, holds, and leaves to patch.

    REFERENCE is an image in any registry that this machine reaches, with the registry's address in
    front:

    \b
      inspect localhost:41233/shop/web:1.4     in the lab's registry ('status' tells its port)
      inspect docker.io/library/python:3.13    on Docker Hub
      inspect ghcr.io/owner/image@sha256:…     anywhere else, by digest

    Neither a container engine nor a running lab is needed. Layers are read from the registry and
    verified; what was read is kept, so that the next time takes a moment. For a private image, log
    in before with 'docker login REGISTRY'.

    Tables go to standard output, progress to standard error: 'inspect … --json > web.json'.
    """
    found = _inspect(_reference(reference), **asked)
    for form, file in sbom:
        from labapp.inside import sbom as bills

        _write(file, {"cyclonedx": bills.cyclonedx, "spdx": bills.spdx}[form](found.contents))
        click.echo(f"{file}  ({form}, {len(found.contents.packages)} packages)", err=True)
    _tell(found, **asked)


@command.command(short_help="Show images side by side.")
@click.argument("references", nargs=-1, required=True, metavar="[NAME=]REFERENCE...")
@options
def compare(references: Sequence[str], **asked: Any) -> None:
    """Show two or more images side by side: a row a fact, a column an image.

    Each image is named as for 'inspect'. A name of your own for the column goes in front of it:

    \b
      compare localhost:41233/shop/web:full localhost:41233/shop/web:slim
      compare before=localhost:41233/shop/web:1.4 mine=docker.io/me/web:latest

    Without one, the column is called by the last part of the repository, or the tag, whichever
    tells the images apart. The charts show sizes, where the bytes are (of the first two images),
    what there is to attack, CVEs over time, shared layers, and times to pull.
    """
    if len(references) < 2:
        raise click.UsageError("compare takes two images or more; 'inspect' shows a single one.")
    from labapp.inside.inspection import Comparison

    images = _columns(references)
    _tell(Comparison({name: _inspect(each, **asked) for name, each in images.items()}), **asked)


def _reference(text: str) -> Reference:
    """Read a reference, which has to say its registry: no default would be what everybody means."""
    from labapp.reference import DOCKER_HUB, Reference
    from labapp.registry.server import port_in

    reference = Reference.parse(text)
    if reference.registry != DOCKER_HUB or text.startswith(("docker.io/", "index.docker.io/")):
        return reference
    mine = f"localhost:{port_in(State.open()) or 'PORT'}/{text}"
    hub = f"{DOCKER_HUB}/{reference.repository}{text[len(reference.name) :]}"
    raise InvalidReference(
        f"inspecting '{text}': it names no registry. Write '{mine}' for the lab's own, or '{hub}' "
        f"for Docker Hub. An image that only the engine has must be pushed first: 'docker tag "
        f"{text} {mine}', then 'docker push {mine}'."
    )


def _columns(texts: Sequence[str]) -> dict[str, Reference]:
    """Read ``NAME=REFERENCE``; without names, repositories or else tags tell the images apart."""
    pairs = [text.rpartition("=") for text in texts]
    references = [_reference(reference) for *_, reference in pairs]
    last = [each.repository.rpartition("/")[2] for each in references]
    tags = [(each.tag or each.identifier)[:19] for each in references]
    both = [f"{one}:{tag}" for one, tag in zip(last, tags, strict=True)]
    for short in (last, tags, both):
        names = [
            name.strip() if equals else other
            for (name, equals, _), other in zip(pairs, short, strict=True)
        ]
        if "" in names:
            raise click.UsageError("there is no name before an '='.")
        if len(set(names)) == len(names):
            return dict(zip(names, references, strict=True))
    raise click.UsageError("two images have the same name. Give each its own: 'name=REFERENCE'.")


def _inspect(reference: Reference, *, cves: str, platform: Platform | None, **_: Any) -> Inspection:
    """Read an image where its reference says that it is; progress goes to standard error."""
    from labapp.inside import inspection
    from labapp.registry.client import Registry

    registry = Registry(reference.registry)
    # A plain image is for one platform, and no registry refuses it to others.
    offered = registry.image(reference, platform=platform).config.platform if platform else None
    if platform and offered and not platform.can_run(offered):
        raise NotInRegistry(
            f"inspecting '{reference}': it is an image for {offered} alone, not for {platform}. "
            "Leave --platform out."
        )
    cache, source = State.open().path(inspection.CACHE), None if cves == "none" else cves
    with contextlib.redirect_stdout(sys.stderr):
        return inspection.inspect(
            registry, reference, cache=cache, source=source, platform=platform
        )


def _tell(found: Inspection | Comparison, *, charts: Path | None, as_json: bool, **_: Any) -> None:
    """Print what was found, and draw it where that is asked for."""
    from labapp.inside import inspection

    if charts is not None:
        for name, chart in found.charts().items():
            for kind in ("png", "svg"):
                path = chart.save(charts / f"{name}.{kind}")
            click.echo(f"{path.with_suffix('')}.png, .svg  {chart.title}", err=True)
    if as_json:
        click.echo(inspection.as_json(found))
    else:
        inspection.print_inspection(found)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text, mode=0o644)
    except OSError as error:
        raise LabError(
            f"writing '{file}': {error.strerror or error}. Choose a folder that you may write to."
        ) from error


@command.command(short_help="Show which exercises you passed, and where to go on.")
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
    from labapp.course.progress import journey_map, overview
    from labapp.course.receipts import Receipts

    receipts = Receipts(State.open())
    if name is not None:
        receipts.rename(name)
    click.echo(repr(overview(receipts, REPOSITORY / "notebooks")))
    if save is not None:
        receipts.save(save)
        click.echo(f"A copy of the receipts is in '{save}'.")
    if picture is not None:
        saved = journey_map(receipts.read().passed).chart.save(picture)
        click.echo(f"The journey map is in '{saved}'.")


@command.command(short_help="Show how far a class is, from its receipts.")
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
    from labapp.course import report as reports
    from labapp.course.exercises import all_exercises
    from labapp.registry.client import Registry

    asked = None if registry is None else Registry(registry)
    found = reports.report(folder, list(all_exercises()), registry=asked)
    click.echo(str(found))
    if csv is not None:
        _write(csv, found.gradebook(platform))
        click.echo(f"The points are in '{csv}'.")
    if chart is not None:
        click.echo(f"The chart is in '{found.chart.save(chart)}'.")


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        mark = click.style("OK ", fg="green") if finding.ok else click.style("DO ", fg="red")
        first, *rest = finding.text.splitlines() or [""]
        click.echo(f"{mark}  {finding.subject:<21} {first}")
        for line in rest:
            click.echo(f"     {'':<21} {line}")
