"""Base images in the lab's registry, from the first source that serves, pinned by digest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from labapp import debian, images, registry_image
from labapp.assembly import build_manifest
from labapp.base_sources import (
    NAMES,
    REGISTRY,
    SOURCE_LABEL,
    labels,
    mirror,
    no_source,
    order,
    place,
    pull_public,
)
from labapp.copies import ImageSource, copy_image, find_image, put_image
from labapp.debian_recipes import recipe
from labapp.engine import Engine
from labapp.errors import BaseError, DamagedContent, LabError, NotInRegistry
from labapp.feedback import Bars, Feedback
from labapp.layouts import Layout
from labapp.manifests import (
    OCI_CONFIG,
    OCI_LAYER,
    Descriptor,
    Manifest,
    Platform,
    digest_of,
    parse_manifest,
)
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry_server import RegistryServer
from labapp.state import LABEL, State

QUIET_SECONDS = 120.0
"""An upload that has had no byte for so long is one that nobody works on any more."""


@dataclass(frozen=True)
class Base:
    """A base image in the lab's registry.

    Attributes:
        name: its public name, ``python:3.13`` or ``python:3.13-slim``; ``registry`` is the
            registry's own.
        reference: where it is in the lab's registry, pinned by digest.
        digest: of its manifest, as the lab recorded it.
        source: where it comes from: ``docker-hub`` or ``debian-packages``.
    """

    name: str
    reference: Reference
    digest: str
    source: str


@dataclass(frozen=True)
class _Shelf:
    """Where the base images go."""

    engine: Engine
    server: RegistryServer
    registry: Registry
    state: State
    feedback: Feedback


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
        shelf = _Shelf(engine, server, registry, state, feedback)
        found = {name: _found(shelf, name) for name in NAMES}
        missing = [name for name, base in found.items() if base is None]
        if missing:
            server.purge_uploads(older_than=QUIET_SECONDS)
            _fill(shelf, missing, sources)
            found |= {name: _found(shelf, name) for name in missing}
    return tuple(base for base in found.values() if base is not None)


def recorded(server: RegistryServer, state: State) -> tuple[Base, ...]:
    """Return the base images as they were recorded, without asking the registry."""
    record = state.read("bases")
    return tuple(_base(server.address, name, record[name]) for name in NAMES if name in record)


def store(
    engine: Engine,
    server: RegistryServer,
    state: State,
    source: ImageSource,
    names: Iterable[str],
    *,
    feedback: Feedback,
) -> dict[str, LabError]:
    """Copy base images from a mirror or a bundle into the lab's registry, and record them.

    Args:
        engine: whose platform the images must fit.
        server: the lab's registry, which runs.
        state: the lab's own files.
        source: where the images are read.
        names: the base images to copy.
        feedback: where progress is told.

    Returns:
        The failure of each base that could not be had.
    """
    shelf = _Shelf(engine, server, server.registry(), state, feedback)
    with feedback.bars("Copying the base images") as bars:
        return _side_by_side(
            shelf, {name: _copier(shelf, source, name, bars) for name in names}, stop=lambda: None
        )


def _fill(shelf: _Shelf, names: Sequence[str], sources: Iterable[str]) -> None:
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
            except BaseError as error:
                failed = dict.fromkeys(missing, error)
            if failed:
                causes[source] = "\n    ".join(sorted({str(error) for error in failed.values()}))
                shelf.feedback.say(f"'{source}' does not serve: {causes[source].splitlines()[0]}")
            missing = list(failed)
    if missing:
        raise no_source(missing, causes)


def _from_mirror(shelf: _Shelf, names: Sequence[str]) -> dict[str, LabError]:
    return store(shelf.engine, shelf.server, shelf.state, mirror(), names, feedback=shelf.feedback)


def _from_hub(shelf: _Shelf, names: Sequence[str]) -> dict[str, LabError]:
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
            _record(shelf, name, pushed.digest)
    return failed


def _from_debian(shelf: _Shelf, names: Sequence[str]) -> dict[str, LabError]:
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
        return _side_by_side(shelf, makers, stop=stop)


def _make(shelf: _Shelf, root: debian.Root, bars: Bars) -> str:
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


def _copier(shelf: _Shelf, source: ImageSource, name: str, bars: Bars) -> Callable[[], str]:
    repository, tag = place(name)

    def copy() -> str:
        platform = Platform.parse(shelf.engine.platform)
        return copy_image(
            source,
            shelf.registry,
            repository,
            find_image(source, repository, tag, platform=platform),
            tag=tag,
            labels=shelf.state.labels,
            progress=lambda done, total: bars.update(name, done, total),
        )

    return copy


def _store_registry_image(shelf: _Shelf) -> None:
    """Put the registry's own image into the registry, so that it goes into bundles and mirrors."""
    repository, tag = place(REGISTRY)
    archive = registry_image.archive(shelf.state)
    if archive.exists():
        layout = Layout(archive)
        platform = Platform.parse(shelf.engine.platform)
        found = find_image(layout, repository, tag, platform=platform)
        digest = copy_image(
            layout,
            shelf.registry,
            repository,
            found,
            tag=tag,
            labels=shelf.state.labels,
            progress=lambda done, total: None,
        )
    else:
        target = Reference(shelf.registry.address, repository, tag)
        images.tag(
            shelf.engine,
            registry_image.engine_name(shelf.state),
            target,
            feedback=shelf.feedback,
        )
        digest = images.push(shelf.engine, shelf.server, target, feedback=shelf.feedback).digest
    _record(shelf, REGISTRY, digest)


def _side_by_side(
    shelf: _Shelf, work: dict[str, Callable[[], str]], *, stop: Callable[[], None]
) -> dict[str, LabError]:
    """Do the work for several bases at once; record what succeeds and return what fails."""
    failed: dict[str, LabError] = {}
    with ThreadPoolExecutor(max(1, len(work))) as threads:
        names: dict[Future[str], str] = {threads.submit(do): name for name, do in work.items()}
        try:
            for future in as_completed(names):
                try:
                    _record(shelf, names[future], future.result())
                except LabError as error:
                    failed[names[future]] = error
        except BaseException:
            stop()
            raise
    return failed


def _record(shelf: _Shelf, name: str, digest: str) -> None:
    repository, _ = place(name)
    manifest = shelf.registry.manifest(repository, digest)
    assert isinstance(manifest, Manifest)
    source = shelf.registry.config(repository, manifest).labels.get(SOURCE_LABEL, "unknown")
    record = shelf.state.read("bases") | {name: {"digest": digest, "source": source}}
    shelf.state.write("bases", record)


def _found(shelf: _Shelf, name: str) -> Base | None:
    """Return a base if it is there and whole; what is damaged is discarded, to be stored anew."""
    record = shelf.state.read("bases").get(name)
    repository, tag = place(name)
    try:
        if record is None:
            _adopt(shelf, name)
            record = shelf.state.read("bases")[name]
        manifest = shelf.registry.manifest(repository, record["digest"])
    except NotInRegistry:
        return None
    except DamagedContent:
        shelf.server.discard_blobs([record["digest"]] if record else [])
        return None
    assert isinstance(manifest, Manifest)
    if damage := shelf.registry.damaged_blobs(repository, manifest):
        what = "; ".join(str(each) for each in damage)
        shelf.feedback.say(f"The base image '{name}' is damaged and is made again: {what}.")
        shelf.server.discard_blobs([blob.digest for blob in damage])
        return None
    try:
        shelf.registry.resolve(repository, tag)
    except NotInRegistry:
        shelf.registry.put_manifest(repository, tag, manifest.raw, manifest.media_type)
    return _base(shelf.registry.address, name, record)


def _adopt(shelf: _Shelf, name: str) -> None:
    """Record a base that is complete, as after a run that was ended just before it could."""
    repository, tag = place(name)
    platform = Platform.parse(shelf.engine.platform)
    manifest = find_image(shelf.registry, repository, tag, platform=platform)
    found = shelf.registry.config(repository, manifest).labels
    if found.get(LABEL) != shelf.state.lab_id or SOURCE_LABEL not in found:
        raise NotInRegistry(f"looking for '{repository}:{tag}': another image has that name.")
    _record(shelf, name, manifest.digest)


def _base(address: str, name: str, record: dict[str, str]) -> Base:
    repository, _ = place(name)
    reference = Reference(address, repository, digest=record["digest"])
    return Base(name, reference, record["digest"], record["source"])
