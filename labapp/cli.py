"""The command line. Each command imports what it needs when it runs, so that it comes at once."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labapp import feedback
from labapp.errors import InvalidReference, LabError, StateError, printable
from labapp.reference import DOCKER_HUB, Reference
from labapp.state import REPOSITORY, State, write_file

if TYPE_CHECKING:
    from labapp.course.hand_in import Place
    from labapp.doctor import Finding
    from labapp.inside.inspection import Comparison, Inspection
    from labapp.registry.client import Registry
    from labapp.registry.manifests import Platform
    from labapp.room import Room

FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

SECOND = "-second"
"""How the name of the folder of the tests' second lab ends."""

CA = click.option(
    "--ca",
    type=EXISTING,
    help="Trust the certificates of this authority (a PEM file), say your school's, and no others.",
)

BASES = click.option(
    "--bases",
    type=click.Choice(["auto", "mirror", "hub", "debian"]),
    default="auto",
    show_default=True,
    envvar="LABAPP_BASES",
    help="Where missing base images come from: an instructor's mirror (named in LABAPP_MIRROR), "
    "Docker Hub, or Debian packages (root on Debian or Ubuntu). 'auto' tries them in this order.",
)

NOTEBOOKS = click.option(
    "--notebooks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=REPOSITORY / "notebooks",
    show_default="notebooks/ in the clone",
    help="The folder of the chapters, for an instructor's own copy of them.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; the lab's errors are told without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A pipe on Windows has not all of the letters that names of files and images have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = command.main(args=argv, prog_name="python3 -m labapp", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("labapp: interrupted. What was finished is kept.", err=True)
        return 130
    except (LabError, OSError) as error:
        click.echo(f"labapp: {printable(str(error))}", err=True)
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


@command.command()
@click.option("--no-browser", is_flag=True, help="Only print the address to open, with its token.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="JupyterLab's port. By default the first free one from 8888.",
)
@NOTEBOOKS
@BASES
def start(no_browser: bool, port: int | None, notebooks: Path, bases: str) -> None:
    """Set everything up, and open your chapter in JupyterLab.

    Finds the container engine (on Debian and Ubuntu, as root, installs and starts one if there is
    none), starts the registry, prepares the base images, and serves the notebooks until Ctrl-C.

    The first start takes some minutes, a later one some seconds. Whatever was interrupted or has
    died since is mended. When JupyterLab runs already, its address is printed.
    """
    from labapp.bench import prepare
    from labapp.course.progress import chapter_of
    from labapp.course.receipts import Receipts
    from labapp.machine import jupyter

    state, folder = State.open(), notebooks.resolve()
    engine = prepare(state, source=bases, clean=jupyter.find(state) is None).engine
    if jupyter.SERVICE_PREFIX in os.environ:
        feedback.say("All is ready. The hub runs your JupyterLab: it is the page that you are in.")
        return
    file = chapter_of(Receipts(state), folder)
    name = file.name if file else ""
    jupyter.serve(state, engine, folder=folder, chapter=name, port=port, browser=not no_browser)


@command.command()
@BASES
def prepare(bases: str) -> None:
    """Do what 'start' does, without JupyterLab.

    It is for a hub that serves the notebooks itself.
    """
    from labapp import bench

    bench.prepare(State.open(), source=bases, clean=True)


@command.command()
def stop() -> None:
    """End JupyterLab, the registry, and the lab's own engine.

    Nothing is removed: images, base images and your progress are there at the next start.
    """
    from labapp.errors import EngineNotFound
    from labapp.machine import engine, jupyter, own_engine
    from labapp.private.registry import PrivateRegistry
    from labapp.registry.server import RegistryServer

    state = State.open()
    jupyter.stop(state)
    # Where no engine answers, no registry runs.
    with contextlib.suppress(EngineNotFound):
        found = engine.find(state)
        RegistryServer(engine=found, state=state).stop()
        PrivateRegistry(engine=found, state=state).stop()
    own_engine.stop(state)
    feedback.say("The lab is stopped.")


@command.command()
def status() -> int:
    """Tell what runs, and where.

    The exit code is 0 when the lab is ready to work, else 1. 'doctor' looks closer.
    """
    from labapp import doctor as checks
    from labapp import tidy as tidies
    from labapp.machine import jupyter
    from labapp.private import service

    state = State.open()
    code = _print(checks.examine_lab(state))
    if realm := service.find(state):
        _line("private registry", f"lets accounts in; its token service is {realm}")
    server = jupyter.find(state)
    _line("JupyterLab", server.url if server else "is not running")
    _line("state", f"'{state.folder}', lab {state.lab_id}")
    _line("on the disk", tidies.taken(state))
    return code


@command.command()
def doctor() -> int:
    """Check this machine, and say what to do.

    Looks at Python, disk space, engine, image store, builder, the docker command, registry and base
    images. Changes nothing. The exit code is 0 when every line is OK, else 1.
    """
    from labapp import doctor as checks

    return _print(checks.examine(State.open()))


@command.command()
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
    """Execute chapters without a browser.

    CHAPTER is a number or a name: 'run 02', 'run 02_registry'. Without any, all are run. Their
    notebooks and HTML pages, which need no internet to be read, go to out/.

    They run in a lab of their own on the same engine, which is removed at the end: what you have
    made in your chapters stays as it is.
    """
    from labapp import reset as resets
    from labapp.bench import prepare
    from labapp.course import pages
    from labapp.machine import jupyter

    files = pages.chapters(REPOSITORY / "notebooks", chapters)
    first = prepare(State.open(), source=bases)
    os.environ["DOCKER_HOST"] = first.engine.host
    os.environ["LABAPP_MIRROR"] = f"http://{first.registry.address}"
    os.environ.pop("LABAPP_CLASS", None)  # what a lab apart does is not the learner's
    state = State.open(apart("run"))
    try:
        environment = jupyter.environment(state, prepare(state, source="mirror").engine)
        for file in files:
            pages.run_chapter(file, out, environment=environment)
    finally:
        with feedback.using(feedback.QuietFeedback()):
            resets.carry_out(resets.plan(state, everything=True))


@command.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME...",
    help="Run the chapters on other engines instead, each made of Debian's packages (as root on "
    "Debian or Ubuntu): docker-20.10, docker-26, docker-28, podman-4, podman-5, ... or 'all'.",
)
@click.option("--room", "all_of_room", is_flag=True, help="Also the long tests of a room.")
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST_ARGS]...")
def test(pytest_args: tuple[str, ...], engines: tuple[str, ...], all_of_room: bool) -> int:
    """Set up a lab apart, and run the test suite.

    That lab's state folder ends in '-test', or is named in LABAPP_STATE_TEST: a running lab is not
    disturbed. PYTEST_ARGS go to pytest: 'test tests/unit -x'. Unit tests alone need no engine. The
    exit code is pytest's.
    """
    from labapp.bench import prepare
    from labapp.machine import own_engine, root

    state = State.open(tests_folder())
    os.environ["LABAPP_STATE"] = str(state.folder)
    os.environ.pop("LABAPP_CLASS", None)
    if engines:
        command = [sys.executable, "tests/engines.py", *engines, *pytest_args]
        return subprocess.run(command, cwd=REPOSITORY).returncode
    if root.why_no_packages() is None:
        os.environ.setdefault("LABAPP_BASES", "debian")
    units = any(argument.startswith("tests/unit") for argument in pytest_args)
    bench = None if units else prepare(state, clean=True)
    command = [sys.executable, "-m", "pytest"]
    left_out = [] if all_of_room else ["not long"]
    if whole := not any(argument.startswith("tests/") for argument in pytest_args):
        # Tests wait for builds most of the time: two processes share them, each with a lab.
        command += ["-n", "2"]
    if reason := own_engine.can_start():
        feedback.say(f"Left out: the tests that make an engine or a root. Why: {reason}")
        left_out.append("not own_engine")
    elif whole:
        left_out.append("not on_modern_engine")
    command += ["-m", " and ".join(left_out)]
    with subprocess.Popen([*command, *pytest_args], cwd=REPOSITORY) as process:
        # At Ctrl-C, pytest gets the same signal, and cleans up after itself.
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        code = process.wait()
    if bench is not None:
        # Nothing is printed after pytest's own lines.
        with contextlib.suppress(LabError), feedback.using(feedback.QuietFeedback()):
            bench.stop()
    return code


def tests_folder() -> Path:
    """Return the state folder of the tests' own lab."""
    named = os.environ.get("LABAPP_STATE_TEST")
    return Path(named).expanduser().absolute() if named else apart("test")


def apart(name: str) -> Path:
    """Return the state folder of a lab beside the learner's, in which a command works."""
    mine = State.open().folder
    return mine.with_name(f"{mine.name}-{name}")


@command.command()
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--everything", is_flag=True, help="Also the lab's own engine, and all its state.")
def reset(yes: bool, everything: bool) -> int:
    """Remove what the lab made.

    That is its files, and those containers, images, volumes and networks that carry its label or an
    image name with its registry's address; nothing else is touched. The list is shown first. The
    receipts of passed exercises stay, but with --everything.
    """
    from labapp import reset as resets
    from labapp.machine import jupyter

    state, tests = State.open(), tests_folder()
    work = REPOSITORY / "notebooks" / "work"
    plans = [resets.plan(state, everything=everything, work=work)]
    for lab in (tests, tests.with_name(tests.name + SECOND), apart("run")):
        if everything and lab.exists():
            plans.append(resets.plan(State.open(lab), everything=True))
    lines = [line for plan in plans for line in plan.lines()]
    click.echo("\n  ".join(["This will be removed:", *lines]))
    if not yes:
        click.confirm("Remove all this?", abort=True)
    if everything:
        jupyter.stop(state)
        click.echo(f"Python's packages go with the folder of the clone: '{REPOSITORY}'.")
    left = [line for plan in plans for line in resets.carry_out(plan)]
    for line in left:
        click.echo(f"labapp: not removed: {line}", err=True)
    return 1 if left else 0


@command.command()
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only show what can go.")
@NOTEBOOKS
def tidy(yes: bool, dry_run: bool, notebooks: Path) -> int:
    """Show what of the disk can be freed, and free it.

    That is what the registry holds and no image needs (the registry stands still meanwhile), images
    without a tag and the builds' cache, as far as they are this lab's, and what 'inspect' has read
    long ago. 'docker builder prune' and 'docker image prune' free what is anybody's.

    Kept is every tag and what it names, each image of an index, and each digest that a receipt, a
    file in 'work', a cell of a chapter or a container names.
    """
    from labapp import tidy as tidies

    state, freed, left = State.open(), 0, 0
    heaps = tidies.plan(state, notebooks)
    for heap in heaps:
        click.echo(f"{feedback.amount(heap.size):>9}  {heap.what}")
    click.echo(f"{feedback.amount(sum(heap.size for heap in heaps)):>9}  can be freed")
    if dry_run or not heaps or not (yes or click.confirm("Free all this?")):
        return 0
    with state.lock("prepare"):
        for heap in heaps:
            try:
                freed += heap.free()
            except LabError as error:
                click.echo(f"labapp: {error}", err=True)
                left = 1
    click.echo(f"{feedback.amount(freed):>9}  freed")
    return left


@command.group()
def bundle() -> None:
    """Carry everything to machines without internet.

    An instructor saves a bundle once; each learner loads it before the first start, and nobody
    needs Docker Hub. The file is a zip, some hundred megabytes.
    """


@bundle.command("save")
@click.argument("file", type=FILE)
@BASES
@click.option(
    "--platform",
    "platforms",
    metavar="OS/ARCH,…",
    type=lambda text: [_platform(each) for each in dict.fromkeys(text.split(","))],
    help="For which processors, as in linux/amd64,linux/arm64. By default for this engine's; the "
    "images for others come from the mirror or from Docker Hub.",
)
@click.option("--room", "for_room", is_flag=True, help="Also what 'room start' needs: its images.")
def save_bundle(file: Path, bases: str, platforms: list[Platform] | None, for_room: bool) -> None:
    """Write base images, registry image, wheels and a snapshot of known fixes to FILE, a zip."""
    from labapp import bundle as bundles
    from labapp import room as rooms
    from labapp.bench import prepare

    bench = prepare(State.open(), source=bases)
    more = rooms.pushed(bench) if for_room else ()
    bundles.save(bench, file, platforms=platforms or (), source=bases, more=more)


@bundle.command("load")
@click.argument("file", type=EXISTING)
def load_bundle(file: Path) -> None:
    """Take base images, registry image and wheels from FILE; then run 'start'."""
    from labapp import bundle as bundles

    bundles.load(State.open(), file)


@command.group()
def room() -> None:
    """Serve a class, which needs browsers only.

    Each learner gets a lab and an engine of their own. JupyterHub does it, on this machine's
    engine. 'docs/room.md' goes through an instructor's day.
    """


@room.command("start")
@click.option("--learners", type=click.IntRange(1), help="How many servers at most. [default: 30]")
@click.option("--class-password", help="What lets a new name in; by default, one is drawn.")
@click.option(
    "--list-only/--sign-up",
    default=None,
    help="No new names: only who is in a list of 'room add'. [default: --sign-up]",
)
@click.option("--memory", help="For a learner's notebooks. [default: 1G]")
@click.option("--engine-memory", help="For a learner's engine and all in it. [default: 2G]")
@click.option("--cpus", type=float, help="For each of the two. [default: 2]")
@click.option("--disk", help="For a learner's engine; 'none' sets no limit. [default: 12G]")
@click.option("--spawns", type=click.IntRange(1), help="Servers that start at once. [default: 3]")
@click.option(
    "--idle-minutes", type=click.IntRange(1), help="Until who left is ended. [default: 90]"
)
@click.option("--trust", help="privileged, capabilities, or a runtime such as sysbox-runc.")
@click.option("--port", type=click.IntRange(1, 65535), help="The hub's port. [default: 8000]")
@click.option("--bind", help="The address to listen at. [default: all of this machine]")
@click.option("--url", help="The address for the board, where it is another than this machine's.")
@click.option(
    "--certificate",
    nargs=2,
    type=EXISTING,
    metavar="CERTIFICATE KEY",
    help="Serve HTTPS: a certificate with its chain, and its key, as PEM.",
)
@BASES
def start_room(bases: str, certificate: tuple[Path, Path] | None, **said: Any) -> None:
    """Open the room, and print the address for the board.

    The first time, the images are built, which takes some minutes. What was said once is kept.
    """
    from labapp import room as rooms
    from labapp.bench import prepare

    given = {name: value for name, value in said.items() if value is not None}
    told = rooms.start(prepare(State.open(), source=bases), certificate=certificate, **given)
    _line("address", told["address"])
    if not told["list_only"]:
        _line("class password", told["class_password"])
    _line("teacher", f"'{told['teacher']}', with the password '{told['teacher_password']}'")


@room.command("stop")
def stop_room() -> None:
    """Close the room; what learners made stays, and is there when it opens again."""
    from labapp import room as rooms

    rooms.stop(_room())
    feedback.say("The room is closed.")


@room.command("status")
def room_status() -> None:
    """Tell whether the room is open, who is in it, and since when nothing was heard of them."""
    found = _room()
    learners = found.ask("/users?state=active")
    _line("address", found.settings()["address"])
    _line("servers", str(len(learners)))
    for each in learners:
        _line(each["name"], f"heard of at {each['last_activity']}")


@room.command("add")
@click.argument("names", type=EXISTING)
def add_to_room(names: Path) -> None:
    """Give the learners of NAMES, a CSV file, their accounts; print them with their passwords.

    NAMES has a name a line, and beside it a password if you want to choose it.
    """
    from labapp import room as rooms

    click.echo(rooms.add(_room(), names), nl=False)


def _room() -> Room:
    from labapp.machine import engine
    from labapp.room import Room

    state = State.open()
    return Room.of(engine.find(state), state)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that 'inspect' and 'compare' both have."""
    for option in (
        CA,
        click.option("--json", "as_json", is_flag=True, help="Print all as JSON; sizes in bytes."),
        click.option("--charts", type=FOLDER, help="Also draw the charts into it, as PNG and SVG."),
        click.option(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            type=_platform,
            help="Which image of an index, as in linux/arm64. By default the one for this "
            "machine's processor.",
        ),
        click.option(
            "--cves",
            type=click.Choice(["auto", "debian", "snapshot", "none"]),
            default="auto",
            show_default=True,
            help="Who tells the known CVEs. 'debian': what Debian itself has fixed, from the "
            "mirror that the image's own apt configuration names. 'snapshot': the same as a mirror "
            "told it last, here or to the maker of a bundle, for a machine without internet. "
            "'auto': the mirror, or else the snapshot. 'none': nobody is asked.",
        ),
    ):
        command = option(command)
    return command


def _platform(text: str) -> Platform:
    from labapp.registry.manifests import Platform

    return Platform.parse(text)


@command.command()
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
    for _, file in sbom:
        if not file.absolute().parent.is_dir():
            raise StateError(
                f"writing '{file}': there is no such folder. Make it, or name another."
            )
    found = _inspect(_reference(reference), **asked)
    for form, file in sbom:
        from labapp.inside import sbom as bills

        text = {"cyclonedx": bills.cyclonedx, "spdx": bills.spdx}[form](found.contents)
        write_file(file, text, mode=0o644)
        click.echo(f"{file}  ({form}, {len(found.contents.packages)} packages)", err=True)
    _tell(found, **asked)


@command.command()
@click.argument("references", nargs=-1, required=True, metavar="[NAME=]REFERENCE...")
@click.option("--changes", is_flag=True, help="Tell what changed from the first to the second.")
@options
def compare(references: Sequence[str], changes: bool, **asked: Any) -> None:
    """Show images side by side.

    A row is a fact, a column an image. Each is named as for 'inspect'; a name of your own for its
    column goes in front:

    \b
      compare localhost:41233/shop/web:full localhost:41233/shop/web:slim
      compare before=localhost:41233/shop/web:1.4 mine=docker.io/me/web:latest
      compare --changes localhost:41233/shop/web:1.3 localhost:41233/shop/web:1.4

    Without one, the column is called by the last part of the repository, or the tag, whichever
    tells the images apart. The charts show sizes, where the bytes are (of the first two images),
    what there is to attack, CVEs over time, shared layers, and times to pull.

    '--changes' is for a review: which packages, layers and files are other ones in the second image
    than in the first, and which of the files belong to no changed package.
    """
    if changes and len(references) != 2:
        raise click.UsageError("--changes takes two images, the old one first.")
    if len(references) < 2:
        raise click.UsageError("compare takes two images or more; 'inspect' shows a single one.")
    from labapp.inside.inspection import Comparison

    images = _columns(references)
    asked["cves"] = "none" if changes else asked["cves"]
    both = Comparison({name: _inspect(each, **asked) for name, each in images.items()})
    _tell(both, changes=changes, **asked)


def _reference(text: str) -> Reference:
    """Read a reference, which has to say its registry: no default would be what everybody means."""
    reference = Reference.parse(text)
    if reference.registry != DOCKER_HUB or text.startswith(("docker.io/", "index.docker.io/")):
        return reference
    raise InvalidReference(
        f"looking for '{text}': it names no registry. Write 'docker.io/{text}' for Docker Hub. For "
        "what only the engine has, push it to the lab's own; 'python3 -m labapp status' tells the "
        "address to put in front."
    )


def _columns(texts: Sequence[str]) -> dict[str, Reference]:
    """Read ``NAME=REFERENCE``; without a name, repositories or else tags tell images apart."""
    given = [text.rpartition("=")[::2] for text in texts]
    references = [_reference(reference) for _, reference in given]
    short = [reference.repository.rpartition("/")[2] for reference in references]
    if len({*short}) < len(short):
        short = [(reference.tag or reference.identifier)[:19] for reference in references]
    names = [name or other for (name, _), other in zip(given, short, strict=True)]
    if len({*names}) < len(names):
        raise click.UsageError("two images have one name. Give each its own: 'name=REFERENCE'.")
    return dict(zip(names, references, strict=True))


def _registry(address: str, ca: Path | None) -> Registry:
    """Return a registry's client, which speaks HTTPS where an authority to trust is named."""
    import ssl

    from labapp.registry.client import Registry

    try:
        if ca:
            ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise click.UsageError(f"--ca: '{ca}' holds no certificate (PEM): {error}") from error
    return Registry(address, certificates=ca, secure=True if ca else None)


def _inspect(
    reference: Reference, *, cves: str, platform: Platform | None, ca: Path | None, **_: Any
) -> Inspection:
    """Read an image where its reference says that it is; progress goes to standard error."""
    from labapp.inside import inspection

    registry = _registry(reference.registry, ca)
    cache, source = State.open().path(inspection.CACHE), None if cves == "none" else cves
    with contextlib.redirect_stdout(sys.stderr):
        return inspection.inspect(
            registry, reference, cache=cache, source=source, platform=platform
        )


def _tell(
    found: Inspection | Comparison,
    *,
    charts: Path | None,
    as_json: bool,
    changes: bool = False,
    **_: Any,
) -> None:
    from labapp.inside import inspection

    if charts is not None:
        for name, chart in found.charts().items():
            for kind in ("png", "svg"):
                path = chart.save(charts / f"{name}.{kind}")
            click.echo(f"{path.with_suffix('')}.png, .svg  {chart.title}", err=True)
    if as_json:
        click.echo(inspection.as_json(found, changes=changes))
    elif changes:
        inspection.print_changes(found.changes)
    else:
        inspection.print_inspection(found)


@command.command()
@click.option("--name", metavar="NAME", help="From now on, write this name into the receipts.")
@click.option("--save", type=FILE, help="Write a copy of the receipts, to hand in.")
@click.option("--map", "picture", type=FILE, help="Draw the journey map: PNG, SVG.")
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
    click.echo(overview(receipts, REPOSITORY / "notebooks"))
    if save is not None:
        receipts.save(save)
        click.echo(f"A copy of the receipts is in '{save}'.")
    if picture is not None:
        saved = journey_map(receipts.read().passed).save(picture)
        click.echo(f"The journey map is in '{saved}'.")


@command.command()
@click.argument("place", metavar="REGISTRY[/REPOSITORY]")
@CA
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def hand_in(place: str, ca: Path | None, yes: bool) -> int:
    """Send receipts, and the images they name, to your class.

    Your instructor names the REGISTRY, and where it is not 'hand-in', the REPOSITORY:

    \b
      hand-in registry.example:5000
      hand-in registry.example/class/ada --ca school.pem

    Your receipts go there, and the images that they name by digest, byte for byte; nothing else
    does. What that is, and how much, is shown before, and you are asked.

    What is there already is not sent. When something cuts it off, run it again: each layer that has
    arrived stays. For a registry with accounts, log in before with 'docker login REGISTRY'.
    """
    from labapp.course.hand_in import pack
    from labapp.course.receipts import Receipts
    from labapp.machine import engine
    from labapp.registry.server import RegistryServer

    state, target = State.open(), _place(place, ca)
    source = RegistryServer(engine=engine.find(state), state=state).registry()
    parcel = pack(Receipts(state), source, target)
    click.echo("\n".join(parcel.lines()))
    if parcel.is_new():
        if not yes:
            click.confirm("Hand this in?", abort=True)
        parcel.send()
        click.echo(f"Handed in as '{target}:{parcel.tag}'.")
    else:
        click.echo("All of it is there already.")
    for line in parcel.lost.values():
        click.echo(f"labapp: not handed in: {line}", err=True)
    return 1 if parcel.lost else 0


def _place(text: str, ca: Path | None) -> Place:
    from labapp.course.hand_in import REPOSITORY, Place

    name = _reference(text if "/" in text else f"{text}/{REPOSITORY}")
    return Place(_registry(name.registry, ca), name.repository)


@command.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--registry",
    metavar="REGISTRY[/REPOSITORY]",
    help="Read what was handed in there, and below; and tell of the images that receipts name "
    "whether they are there. With a FOLDER, only that; REGISTRY then has them by their own names.",
)
@CA
@click.option("--csv", type=FILE, help="Write points for a learning platform.")
@click.option(
    "--platform",
    type=click.Choice(["moodle", "canvas"]),
    default="moodle",
    show_default=True,
    help="The columns of the CSV file: a point for each exercise, a column for each chapter.",
)
@click.option("--page", type=FILE, help="Draw the class as a grid: a page for a browser (HTML).")
@click.option("--key", type=FILE, help="Tell which receipts the class with this public key signed.")
@click.option(
    "--view",
    is_flag=True,
    help="Show the FOLDER as a page for the projector, drawn anew every few seconds until Ctrl-C.",
)
def report(
    folder: Path | None,
    registry: str | None,
    ca: Path | None,
    csv: Path | None,
    platform: str,
    page: Path | None,
    key: Path | None,
    view: bool,
) -> None:
    """Show how far a class is, from its receipts.

    FOLDER holds the receipts that learners saved with 'progress --save', or that they handed in
    beside a notebook, one file each, in any folders below it. In its place, '--registry' can name
    where learners sent theirs with 'hand-in': to 'r.example/class', or below it, each to their own.

    The receipts are a chain: one that was edited or taken out breaks it, and is named. What comes
    after a break does not count. The chain is no signature; '--registry' also asks a registry for
    the evidence, the images that the receipts name. A class on a hub signs what it sees posted:
    who and when; '--key' asks for that.
    """
    from labapp.course import report as reports
    from labapp.course import signatures
    from labapp.course.exercises import all_exercises

    if view:
        if folder is None:
            raise click.UsageError("--view shows a FOLDER of receipts: name one.")
        return reports.watch(folder, State.open().path("class.html"))
    place = _place(registry, ca) if registry else None
    if place and folder and "/" not in str(registry):
        place = replace(place, repository="")
    source = folder or place
    if source is None:
        raise click.UsageError("name a FOLDER of receipts, or the '--registry' of your class.")
    trusted = signatures.read_key(key) if key else None
    found = reports.report(source, list(all_exercises()), place=place, key=trusted)
    click.echo(str(found))
    if csv is not None:
        write_file(csv, found.gradebook(platform), mode=0o644)
        click.echo(f"The points are in '{csv}'.")
    if page is not None:
        write_file(page, found.page(), mode=0o644)
        click.echo(f"The page is in '{page}'.")


def _print(findings: Sequence[Finding]) -> int:
    """Print the findings, and return the exit code: 0 where all is well."""
    for finding in findings:
        mark = click.style("OK", fg="green") if finding.ok else click.style("DO", fg="red")
        _line(finding.subject, finding.text, mark=mark)
    return 0 if all(finding.ok for finding in findings) else 1


def _line(subject: str, text: str, *, mark: str = "  ") -> None:
    click.echo(f"{mark}   {subject:<21} {text}".replace("\n", "\n" + " " * 27))
