"""The image of the lab's registry: on the engine before a registry runs, so from a file.

The file is kept in the state folder; an engine that has lost the image gets it back from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import docker.errors

from labapp.bases import debian
from labapp.bases.debian_recipes import recipe, tidy_registry
from labapp.bases.layouts import LayoutWriter
from labapp.bases.sources import (
    REGISTRY,
    labels,
    mirror,
    no_source,
    place,
    pull_public,
)
from labapp.engine import Engine
from labapp.errors import BaseError, LabError
from labapp.feedback import Feedback
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
from labapp.registry.copies import ImageSource, Labelled, add_labels, find_image
from labapp.state import State


def engine_name(state: State) -> str:
    """Return what the image is called on the engine; each lab has one of its own."""
    return f"labapp/registry:{state.lab_id}"


def archive(state: State) -> Path:
    """Return the file that the image is kept in: an image layout, once it has been made."""
    return state.path("registry-image.tar")


def prepare(engine: Engine, state: State, *, sources: Iterable[str], feedback: Feedback) -> str:
    """Make sure that the engine has the registry's image, and return its name there.

    Args:
        engine: where it must be.
        state: the lab's own files.
        sources: where it may come from, first that serves.
        feedback: where progress is told.

    Raises:
        BaseError: no source serves; each is told with its cause.
    """
    if is_on_engine(engine, state):
        return engine_name(state)
    if archive(state).exists():
        try:
            return load(engine, state)
        except BaseError:
            archive(state).unlink()  # damaged; it is made again
    causes: dict[str, str] = {}
    makers: dict[str, Callable[[Engine, State, Feedback], str]] = {
        "mirror": _from_mirror,
        "hub": _from_hub,
        "debian": _from_debian,
    }
    for source in sources:
        try:
            return makers[source](engine, state, feedback)
        except LabError as error:
            causes[source] = str(error)
    raise no_source([REGISTRY], causes)


def is_on_engine(engine: Engine, state: State) -> bool:
    """Tell whether the engine has the image."""
    with engine.doing("looking for the registry's image"):
        try:
            engine.client.images.get(engine_name(state))
        except docker.errors.ImageNotFound:
            return False
    return True


def store(
    state: State, image: Labelled, open_layer: Callable[[Descriptor], Iterable[bytes]]
) -> None:
    """Write the image to its file.

    Args:
        state: the lab's own files.
        image: its manifest and config.
        open_layer: gives a layer's bytes.
    """
    path = archive(state)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as draft:
        try:
            with LayoutWriter(draft) as writer:
                config = image.manifest.config
                writer.add_blob(config.digest, config.size, [image.config])
                for layer in image.manifest.layers:
                    writer.add_blob(layer.digest, layer.size, open_layer(layer))
                name = ":".join(place(REGISTRY))
                load_as = f"docker.io/{engine_name(state)}"
                writer.add_image(name, image.manifest, load_as=load_as)
        except OSError as error:
            Path(draft.name).unlink()
            raise BaseError(
                f"writing the registry's image to '{path}': {error.strerror or error}. "
                "Free some disk space, then try again."
            ) from error
        except BaseException:
            Path(draft.name).unlink()
            raise
    Path(draft.name).replace(path)


def load(engine: Engine, state: State) -> str:
    """Give the engine the image from its file, and return its name there.

    Raises:
        BaseError: the engine did not take it.
    """
    doing = f"loading the registry's image from '{archive(state)}'"
    with engine.doing(doing, BaseError), archive(state).open("rb") as file:
        events = engine.client.api.load_image(file, quiet=True)  # type: ignore[no-untyped-call]
        for event in events:
            if "error" in event:
                raise BaseError(f"{doing}: the engine says: {event['error']}. Try again.")
    if not is_on_engine(engine, state):
        raise BaseError(f"{doing}: the engine took it and has no such image. Try again.")
    return engine_name(state)


def copy(engine: Engine, state: State, source: ImageSource, *, origin: dict[str, str]) -> str:
    """Take the image from a mirror or a bundle, and return its name on the engine.

    Args:
        engine: which gets it.
        state: the lab's own files.
        source: where it is read.
        origin: labels to add.

    Raises:
        LabError: the source has not got it whole, or the engine did not take it.
    """
    repository, tag = place(REGISTRY)
    found = find_image(source, repository, tag, platform=Platform.parse(engine.platform))
    config = source.read_blob(repository, found.config.digest)
    image = add_labels(found, config, origin)
    store(state, image, lambda each: source.open_blob(repository, each.digest, size=each.size))
    return load(engine, state)


def _from_mirror(engine: Engine, state: State, feedback: Feedback) -> str:
    registry = mirror()
    feedback.say(f"Taking the registry's image from '{registry.address}'.")
    return copy(engine, state, registry, origin=state.labels)


def _from_hub(engine: Engine, state: State, feedback: Feedback) -> str:
    pull_public(engine, state, REGISTRY, tag=engine_name(state), feedback=feedback)
    return engine_name(state)


def _from_debian(engine: Engine, state: State, feedback: Feedback) -> str:
    if reason := debian.why_not(engine.platform):
        raise BaseError(f"making 'registry' from Debian packages: {reason}")
    debian.install_tools(feedback=feedback)
    made = recipe(REGISTRY)
    with feedback.bars("Making the registry's image from Debian packages", unit="steps") as bars:
        root = debian.Root(made, folder=state.path("roots"), bars=bars)
        layer = debian.Layer([tidy_registry(b"".join(root))])
        packed = b"".join(layer)
        config = made.config(
            diff_id=layer.diff_id,
            platform=Platform.parse(engine.platform),
            labels=labels(state, "debian-packages", title="registry, from Debian packages"),
        )
        manifest = parse_manifest(
            build_manifest(
                Descriptor(OCI_CONFIG, digest_of(config), len(config)),
                [Descriptor(OCI_LAYER, digest_of(packed), len(packed))],
            )
        )
        assert isinstance(manifest, Manifest)
        store(state, Labelled(manifest, config), lambda _: [packed])
        return load(engine, state)
