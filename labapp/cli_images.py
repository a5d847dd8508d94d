"""The commands for any image in any registry; each imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from labapp.errors import InvalidReference, LabError, NotInRegistry
from labapp.state import State

if TYPE_CHECKING:
    from labapp.inspection import Comparison, Inspection
    from labapp.manifests import Platform
    from labapp.reference import Reference

Command = TypeVar("Command", bound=Callable[..., Any])

_HUB = ("docker.io/", "index.docker.io/")
"""How a reference begins that says Docker Hub, and does not only leave the registry out."""

OPTIONS = [
    click.option(
        "--cves",
        type=click.Choice(["auto", "debian", "grype", "trivy", "snapshot", "none"]),
        default="auto",
        show_default=True,
        help="Who tells the known CVEs. 'debian': what Debian itself has fixed, from the mirror "
        "that the image's own apt configuration names. 'snapshot': the same from a bundle, for a "
        "machine without internet. 'auto': the mirror, or else the snapshot. 'grype', 'trivy': "
        "that scanner, when it is installed. 'none': nobody is asked.",
    ),
    click.option(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="Which image of an index, as in linux/arm64. By default the one for this machine's "
        "processor.",
    ),
    click.option(
        "--charts",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="FOLDER",
        help="Also draw the charts, as PNG and SVG, into this folder.",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print all that was found as JSON instead of tables; sizes are in bytes.",
    ),
]
"""What both commands take."""


def options(command: Command) -> Command:
    """Give a command the options that both have."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command(short_help="Show what an image weighs, holds, and leaves to patch.")
@click.argument("reference")
@options
@click.option(
    "--sbom",
    type=(click.Choice(["cyclonedx", "spdx"]), click.Path(dir_okay=False, path_type=Path)),
    multiple=True,
    metavar="FORMAT FILE",
    help="Also write a bill of materials, for a scanner: 'cyclonedx' (1.6) or 'spdx' (2.3), as "
    "JSON. May be given twice.",
)
def inspect(
    reference: str,
    cves: str,
    platform: str | None,
    charts: Path | None,
    as_json: bool,
    sbom: Sequence[tuple[str, Path]],
) -> None:
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
    from labapp import listings

    found = _inspect(_reference(reference, State.open()), cves, _platform(platform))
    for form, file in sbom:
        _write_sbom(found, form, file)
    if charts is not None:
        _draw(found, charts)
    if as_json:
        click.echo(listings.as_json(found))
    else:
        listings.print_inspection(_console(), found)


@click.command(short_help="Show images side by side.")
@click.argument("references", nargs=-1, required=True, metavar="[NAME=]REFERENCE...")
@options
def compare(
    references: Sequence[str],
    cves: str,
    platform: str | None,
    charts: Path | None,
    as_json: bool,
) -> None:
    """Show two or more images side by side: a row a fact, a column an image.

    Each image is named as for 'inspect'. A name of your own for the column goes in front of it:

    \b
      compare localhost:41233/shop/web:full localhost:41233/shop/web:slim
      compare before=localhost:41233/shop/web:1.4 mine=docker.io/me/web:latest

    Without one, the column is called by the last part of the repository, or the tag, whichever
    tells the images apart. The charts show sizes, where the bytes are (of the first two images),
    what there is to attack, CVEs over time, shared layers, and times to pull.
    """
    from labapp import listings
    from labapp.inspection import Comparison

    if len(references) < 2:
        raise click.UsageError("compare takes two images or more; 'inspect' shows a single one.")
    state, chosen = State.open(), _platform(platform)
    images = column_names([named(text, state) for text in references])
    found = Comparison({name: _inspect(each, cves, chosen) for name, each in images.items()})
    if charts is not None:
        _draw(found, charts)
    if as_json:
        click.echo(listings.as_json(found))
    else:
        listings.print_comparison(_console(), found)


def _inspect(reference: Reference, cves: str, platform: Platform | None) -> Inspection:
    """Read an image where its reference says that it is; progress goes to standard error."""
    from labapp import inspection
    from labapp.feedback import TerminalFeedback
    from labapp.registry.reader import RegistryReader

    state, reader = State.open(), RegistryReader(reference.registry)
    try:
        # A plain image is for one platform, and no registry refuses it to others.
        offered = reader.image(reference, platform=platform).config.platform if platform else None
        if platform and offered and not platform.can_run(offered):
            raise NotInRegistry(
                f"inspecting '{reference}': it is an image for {offered} alone, not for "
                f"{platform}. Leave --platform out."
            )
        with contextlib.redirect_stdout(sys.stderr):
            return inspection.inspect(
                reader,
                reference,
                cache=state.path(inspection.CACHE),
                source=None if cves == "none" else cves,  # type: ignore[arg-type]
                platform=platform,
                feedback=TerminalFeedback(),
            )
    except NotInRegistry as error:
        if not _is_on_engine(str(reference), state):
            raise
        raise NotInRegistry(
            f"inspecting '{reference}': the engine has it, its registry does not, and an image is "
            f"read from the registry. Push it first: 'docker push {reference}'."
        ) from error


def _reference(text: str, state: State) -> Reference:
    """Read a reference, which has to say its registry: no default would be what everybody means.

    Raises:
        InvalidReference: it is none, or has no registry; the message says how to write it.
    """
    from labapp.reference import DOCKER_HUB, Reference

    reference = Reference.parse(text)
    if reference.registry != DOCKER_HUB or text.startswith(_HUB):
        return reference
    port = state.read("registry").get("port", "PORT")
    hub = f"{DOCKER_HUB}/{reference.repository}{text[len(reference.name) :]}"
    message = f"inspecting '{text}': it names no registry. "
    mine = f"localhost:{port}/{text}"
    if _is_on_engine(text, state):
        raise InvalidReference(
            f"{message}The engine has it, but an image is read from a registry. Push it first: "
            f"'docker tag {text} {mine}', then 'docker push {mine}', and inspect '{mine}'."
        )
    raise InvalidReference(
        f"{message}Write '{mine}' for the lab's own registry, or '{hub}' for Docker Hub."
    )


def named(text: str, state: State) -> tuple[str, Reference]:
    """Split ``name=reference``; the name is empty where there is none."""
    name, equals, rest = text.rpartition("=")
    if equals and not name.strip():
        raise click.UsageError(f"there is no name before the '=' of '{text}'.")
    return name.strip(), _reference(rest, state)


def column_names(images: Sequence[tuple[str, Reference]]) -> dict[str, Reference]:
    """Give each image a name, the shortest by which all are told apart."""
    references = [reference for _, reference in images]
    last = [each.repository.rpartition("/")[2] for each in references]
    tags = [(each.tag or each.identifier)[:19] for each in references]
    both = [f"{one}:{tag}" for one, tag in zip(last, tags, strict=True)]
    whole = [str(each) for each in references]
    choices = (last, tags, both, whole)
    given = [name for name, _ in images]
    for short in choices:
        names = [mine or other for mine, other in zip(given, short, strict=True)]
        if len(set(names)) == len(names):
            return dict(zip(names, references, strict=True))
    raise click.UsageError("two images have the same name. Give each its own: 'name=REFERENCE'.")


def _platform(text: str | None) -> Platform | None:
    from labapp.manifests import Platform

    try:
        return Platform.parse(text) if text is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--platform'") from error


def _is_on_engine(name: str, state: State) -> bool:
    """Tell whether an engine answers and has an image of that name."""
    from labapp import engine

    with contextlib.suppress(LabError):
        found = engine.find(state)
        with found.doing(f"looking for '{name}'", NotInRegistry):
            found.client.images.get(name)
            return True
    return False


def _write_sbom(found: Inspection, form: str, file: Path) -> None:
    from labapp import sbom

    text = {"cyclonedx": sbom.cyclonedx, "spdx": sbom.spdx}[form](found.contents)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabError(
            f"writing the bill of materials '{file}': {error.strerror or error}. Choose a file "
            "that you may write."
        ) from error
    click.echo(f"{file}  ({form}, {len(found.contents.packages)} packages)", err=True)


def _draw(found: Inspection | Comparison, folder: Path) -> None:
    for name, chart in found.charts().items():
        for kind in ("png", "svg"):
            path = chart.save(folder / f"{name}.{kind}")
        click.echo(f"{path.with_suffix('')}.png, .svg  {chart.title}", err=True)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)
