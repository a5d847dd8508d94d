"""Base images in the lab's registry, from the first source that serves, pinned by digest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from labapp import images
from labapp.bases import debian, registry_image
from labapp.bases.debian_recipes import recipe
from labapp.bases.layouts import Layout
from labapp.bases.shelf import RECORD, Base, Shelf
from labapp.bases.sources import (
    NAMES,
    REGISTRY,
    labels,
    mirror,
    no_source,
    order,
    place,
    pull_public,
)
from labapp.engine import Engine
from labapp.errors import BaseError, EngineLost, LabError
from labapp.feedback import Bars, Feedback
from labapp.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_manifest,
)
from labapp.manifests.assembly import build_manifest
from labapp.reference import Reference
from labapp.registry.copies import put_image
from labapp.registry.server import RegistryServer
from labapp.state import State

__all__ = ["Base", "prepare", "recorded"]

QUIET_SECONDS = 120.0
"""An upload that has had no byte for so long is one that nobody works on any more."""


def prepare(
    engine: Engine,
    server: RegistryServer,
    state: State,
    *,
    source: str = "auto",
    feedback: Feedback,
) -> tuple[Base, ...]:
    """Start the registry and put the base images into it, unless they are there and whole.

    Each base is recorded as soon as it is complete, so an interrupted run goes on where it was.

    Args:
        engine: where the registry runs.
        server: the lab's registry.
        state: the lab's own files; the digests are recorded there.
        source: ``auto``, ``mirror``, ``hub`` or ``debian``.
        feedback: where progress is told.

    Raises:
        BaseError: no source serves; each is told with its cause.
        RegistryError: the registry does not start, or fails.
        EngineLost: the engine does not answer any more.
    """
    sources = order(source)

    def waiting() -> None:
        feedback.say("Another process of this lab prepares the base images; waiting for it.")

    with state.lock("bases", waiting=waiting):
        debian.clear(state.path("roots"))
        image = registry_image.prepare(engine, state, sources=sources, feedback=feedback)
        registry = server.start(image=image, feedback=feedback)
        shelf = Shelf(engine, server, registry, state, feedback)
        found = {name: shelf.find(name) for name in NAMES}
        missing = [name for name, base in found.items() if base is None]
        if missing:
            server.purge_uploads(older_than=QUIET_SECONDS)
            _fill(shelf, missing, sources)
            found |= {name: shelf.find(name) for name in missing}
    return tuple(base for base in found.values() if base is not None)


def recorded(server: RegistryServer, state: State) -> tuple[Base, ...]:
    """Return the base images as they were recorded, without asking the registry."""
    record = state.read(RECORD)
    return tuple(
        Base.from_record(server.address, name, record[name]) for name in NAMES if name in record
    )


def _fill(shelf: Shelf, names: Sequence[str], sources: Iterable[str]) -> None:
    """Get the missing bases, each from the first source that serves."""
    missing = [name for name in names if name != REGISTRY]
    causes: dict[str, str] = {}
    fillers = {"mirror": _from_mirror, "hub": _from_hub, "debian": _from_debian}
    if REGISTRY in names:
        _store_registry_image(shelf)
    for source in sources:
        if missing:
            try:
                failed = fillers[source](shelf, missing)
            except EngineLost:
                raise
            except LabError as error:
                failed = dict.fromkeys(missing, error)
            if failed:
                causes[source] = "\n    ".join(sorted({str(error) for error in failed.values()}))
                shelf.feedback.say(f"'{source}' does not serve: {causes[source].splitlines()[0]}")
            missing = list(failed)
    if missing:
        raise no_source(missing, causes)


def _from_mirror(shelf: Shelf, names: Sequence[str]) -> dict[str, LabError]:
    return shelf.copy(mirror(), names)


def _from_hub(shelf: Shelf, names: Sequence[str]) -> dict[str, LabError]:
    failed: dict[str, LabError] = {}
    for name in names:
        repository, tag = place(name)
        reference = Reference(shelf.registry.address, repository, tag)
        try:
            pull_public(
                shelf.engine, shelf.state, name, tag=str(reference), feedback=shelf.feedback
            )
            pushed = images.push(shelf.engine, shelf.server, reference, feedback=shelf.feedback)
        except LabError as error:
            failed[name] = error
        else:
            shelf.record(name, pushed.digest)
    return failed


def _from_debian(shelf: Shelf, names: Sequence[str]) -> dict[str, LabError]:
    if reason := debian.why_not(shelf.engine.platform):
        raise BaseError(reason)
    debian.install_tools(feedback=shelf.feedback)
    with shelf.feedback.bars("Making the base images from Debian packages", unit="steps") as bars:
        folder = shelf.state.path("roots")
        roots = {name: debian.Root(recipe(name), folder=folder, bars=bars) for name in names}

        def maker(root: debian.Root) -> Callable[[], str]:
            return lambda: _make(shelf, root, bars)

        def stop() -> None:
            for root in roots.values():
                root.stop()

        makers = {name: maker(root) for name, root in roots.items()}
        try:
            return shelf.side_by_side(makers, stop=stop)
        finally:
            debian.clear(folder)


def _make(shelf: Shelf, root: debian.Root, bars: Bars) -> str:
    """Make a root, store it as an image of one layer, and return the image's digest."""
    name = root.recipe.name
    repository, tag = place(name)
    layer = debian.Layer(root)
    chunks = iter(layer)
    try:
        # The upload begins when the tar does: minutes from now.
        first = next(chunks)
        bars.update(name, 1, 1, "compressing and storing")
        digest, size = shelf.registry.upload_blob(repository, itertools.chain([first], chunks))
    except BaseException:
        root.stop()
        raise
    config = root.recipe.config(
        diff_id=layer.diff_id,
        platform=Platform.parse(shelf.engine.platform),
        labels=labels(shelf.state, "debian-packages", title=f"{name}, from Debian packages"),
    )
    shelf.registry.upload_blob(repository, [config])
    manifest = parse_manifest(
        build_manifest(
            Descriptor(OCI_CONFIG, digest_of(config), len(config)),
            [Descriptor(OCI_LAYER, digest, size)],
        )
    )
    assert isinstance(manifest, Manifest)
    bars.finish(name, f"{size / 1e6:,.0f} MB stored")
    return put_image(shelf.registry, repository, tag, manifest)


def _store_registry_image(shelf: Shelf) -> None:
    """Put the registry's own image into the registry, so that it goes into bundles and mirrors."""
    archive = registry_image.archive(shelf.state)
    if archive.exists():
        for error in shelf.copy(Layout(archive), [REGISTRY]).values():
            raise error
        return
    repository, tag = place(REGISTRY)
    target = Reference(shelf.registry.address, repository, tag)
    name = registry_image.engine_name(shelf.state)
    images.tag(shelf.engine, name, target, feedback=shelf.feedback)
    pushed = images.push(shelf.engine, shelf.server, target, feedback=shelf.feedback)
    shelf.record(REGISTRY, pushed.digest)
