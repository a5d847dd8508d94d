"""Bundles: base images, the registry's image and the wheels, in one file for machines offline.

A bundle is an OCI image layout in a tar; the wheels lie beside the layout's blobs.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from labapp import bases
from labapp import engine as engines
from labapp.bases import registry_image, wheels
from labapp.bases.layouts import Layout, LayoutWriter
from labapp.bases.shelf import Base, Shelf
from labapp.bases.sources import NAMES, REGISTRY, place
from labapp.bench import REPOSITORY, Bench
from labapp.engine import Engine
from labapp.errors import BaseError, DamagedContent, NotInRegistry
from labapp.feedback import Feedback
from labapp.manifests import Manifest, Platform, parse_config
from labapp.registry.copies import find_image
from labapp.registry.server import RegistryServer
from labapp.state import State

WHEELS = "extra/wheels"
"""The folder of the wheels in a bundle."""


def save(bench: Bench, path: Path, *, feedback: Feedback) -> None:
    """Write a bundle; a file that was there is replaced once the new one is complete.

    Args:
        bench: the lab whose base images and wheels are taken.
        path: of the file to write; it has a few hundred megabytes.
        feedback: where the progress is told.

    Raises:
        BaseError: the file can't be written.
        DamagedContent: a base image is damaged in the registry.
    """
    folder = bench.application / "wheels"
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as draft:
            try:
                with LayoutWriter(draft) as writer, feedback.bars(f"Saving {path.name}") as bars:
                    for base in bench.bases:
                        _save_base(bench, writer, base, functools.partial(bars.update, base.name))
                    for name, data in wheels.packed(folder).items():
                        writer.add_file(f"{WHEELS}/{name}", data)
            except BaseException:
                Path(draft.name).unlink()
                raise
        Path(draft.name).chmod(0o644)
        Path(draft.name).replace(path)
    except OSError as error:
        raise BaseError(
            f"saving the bundle '{path}': {error.strerror or error}. Name a file in a folder that "
            "exists, is writable and has a gigabyte to spare."
        ) from error
    feedback.say(f"Saved {path} ({path.stat().st_size / 1e6:,.0f} MB).")


def load(
    state: State, path: Path, *, wheel_folder: Path | None = None, feedback: Feedback
) -> tuple[Base, ...]:
    """Take everything from a bundle: the registry's image first, so that a registry can run.

    The whole file is verified before anything is changed.

    Args:
        state: the lab's own files.
        path: of the bundle.
        wheel_folder: where the wheels go; by default the application's.
        feedback: where the progress is told.

    Returns:
        The base images, as they are now in the lab's registry.

    Raises:
        DamagedContent: the file is cut off, altered, or no bundle; nothing was changed.
        BaseError: it is for another platform, or the engine did not take the images.
        EngineNotFound: no engine answers.
    """
    layout = Layout(path)
    with feedback.bars(f"Verifying {path.name}") as bars:
        layout.verify(progress=lambda done, total: bars.update("bytes", done, total))
    engine = engines.start(state, feedback=feedback)
    _check(layout, engine)
    carried = {name.rpartition("/")[2]: layout.read_file(name) for name in layout.files(WHEELS)}
    server = RegistryServer(engine=engine, state=state)
    with state.lock("prepare"), state.lock("bases"):
        if not registry_image.is_on_engine(engine, state):
            registry_image.copy(engine, state, layout, origin=state.labels)
        server.start(image=registry_image.engine_name(state), feedback=feedback)
        shelf = Shelf(engine, server, server.registry(), state, feedback)
        for error in shelf.copy(layout, NAMES).values():
            raise error
        wheels.unpack(wheel_folder or REPOSITORY / "dockerfiles" / "app" / "wheels", carried)
    return bases.recorded(server, state)


def _save_base(
    bench: Bench, writer: LayoutWriter, base: Base, progress: Callable[[int, int], None]
) -> None:
    repository, tag = place(base.name)
    manifest = bench.registry.manifest(repository, base.digest)
    assert isinstance(manifest, Manifest)
    total, done = sum(blob.size for blob in manifest.blobs), 0

    def passing(chunks: Iterable[bytes]) -> Generator[bytes]:
        nonlocal done
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            progress(done, total)

    for blob in manifest.blobs:
        chunks = bench.registry.open_blob(repository, blob.digest, size=blob.size)
        writer.add_blob(blob.digest, blob.size, passing(chunks))
    load_as = f"docker.io/{registry_image.engine_name(bench.state)}"
    writer.add_image(
        f"{repository}:{tag}", manifest, load_as=load_as if base.name == REGISTRY else None
    )


def _check(layout: Layout, engine: Engine) -> None:
    """Make sure that the file is a bundle, and that its images run on this engine."""
    platform = Platform.parse(engine.platform)
    for name in NAMES:
        repository, tag = place(name)
        try:
            image = find_image(layout, repository, tag, platform=platform)
        except NotInRegistry as error:
            raise DamagedContent(
                f"loading the bundle '{layout.path}': it has no '{name}'. "
                "Take a file that 'labapp bundle save' wrote; nothing was changed."
            ) from error
        made_for = parse_config(layout.read_blob(repository, image.config.digest)).platform
        if not platform.can_run(made_for):
            raise BaseError(
                f"loading the bundle '{layout.path}': its images are for {made_for}, the engine "
                f"runs {platform}. Take a bundle from a machine like this one; nothing was changed."
            )
