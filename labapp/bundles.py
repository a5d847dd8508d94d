"""Bundles: base images, the registry's image, wheels and known fixes, for machines offline.

A bundle is an OCI image layout in a tar; wheels and fixes lie beside the layout's blobs.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from labapp import bases, contents, vulnerabilities
from labapp import engine as engines
from labapp.bases import registry_image, wheels
from labapp.bases.layouts import Layout, LayoutWriter
from labapp.bases.shelf import Base, Shelf
from labapp.bases.sources import NAMES, REGISTRY, place
from labapp.bench import REPOSITORY, Bench
from labapp.engine import Engine
from labapp.errors import BaseError, DamagedContent, NotInRegistry, VulnerabilityError
from labapp.feedback import Feedback
from labapp.manifests import Manifest, Platform, parse_config
from labapp.registry.copies import find_image
from labapp.registry.server import RegistryServer
from labapp.state import State
from labapp.vulnerabilities import Fixes

WHEELS = "extra/wheels"
"""The folder of the wheels in a bundle."""

FIXES = f"extra/vulnerabilities/{vulnerabilities.SNAPSHOT}"
"""What Debian had fixed in the base images' packages when the bundle was saved."""


def save(bench: Bench, path: Path, *, feedback: Feedback) -> None:
    """Write a bundle; a file that was there is replaced once the new one is complete.

    Where Debian's mirror can't be reached, it goes without known fixes, and a line says so.

    Args:
        bench: the lab whose base images and wheels are taken.
        path: of the file to write; it has a few hundred megabytes.
        feedback: where the progress is told.

    Raises:
        BaseError: the file can't be written.
        DamagedContent: a base image is damaged in the registry.
    """
    folder = bench.application / "wheels"
    fixes = _known_fixes(bench, feedback)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as draft:
            try:
                with LayoutWriter(draft) as writer, feedback.bars(f"Saving {path.name}") as bars:
                    for base in bench.bases:
                        _save_base(bench, writer, base, functools.partial(bars.update, base.name))
                    for name, data in wheels.packed(folder).items():
                        writer.add_file(f"{WHEELS}/{name}", data)
                    if fixes:
                        writer.add_file(FIXES, fixes)
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
    fixes = _carried_fixes(layout)
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
        if fixes:
            vulnerabilities.keep_snapshot(fixes, folder=_fixes_folder(state))
    return bases.recorded(server, state)


def _known_fixes(bench: Bench, feedback: Feedback) -> bytes:
    """Return a snapshot of Debian's fixes for the Python base images; empty if there is none."""
    images = [
        contents.read(
            bench.registry,
            base.reference,
            folder=bench.state.path("cache", "layers"),
            platform=Platform.parse(bench.engine.platform),
            feedback=feedback,
        )
        for base in bench.bases
        if base.name != REGISTRY
    ]
    if not images:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / vulnerabilities.SNAPSHOT
        try:
            vulnerabilities.save_snapshot(
                path, images, folder=_fixes_folder(bench.state), feedback=feedback
            )
        except VulnerabilityError as error:
            feedback.say(f"The bundle goes without known vulnerabilities. {error}")
            return b""
        return path.read_bytes()


def _carried_fixes(layout: Layout) -> Fixes | None:
    if FIXES not in layout.files(FIXES.rpartition("/")[0]):
        return None
    try:
        return vulnerabilities.parse_snapshot(layout.read_file(FIXES), f"{layout.path}/{FIXES}")
    except VulnerabilityError as error:
        raise DamagedContent(
            f"loading the bundle '{layout.path}': its '{FIXES}' is damaged. Copy the file again; "
            "nothing was changed."
        ) from error


def _fixes_folder(state: State) -> Path:
    return state.path("cache", "vulnerabilities")


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
