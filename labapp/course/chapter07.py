"""Chapter 07, By hand: the checks."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.errors import PullError, RunError
from labapp.journey import transfer
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import digest_of

_LARGEST = 1_000_000
"""The bytes of layers that a check reads, at most; the chapter's have some hundreds."""


def check_07_diffid(bench: Bench, answer: Any) -> Verdict:
    """Is the answer the digest of the file's tar?"""
    answer = checks.answered(answer, "your computation, a text")
    packed = checks.written(bench, "layer.tar.gz").read_bytes()
    layer = _unpacked(packed)
    if layer is None or bench.state.lab_id.encode() not in layer:
        raise Wrong(
            "'layer.tar.gz' is not what the cell above made: a compressed tar that holds this "
            "lab's number. Run that cell again."
        )
    if answer == digest_of(layer):
        return correct(
            "However the layer is compressed, its diff ID stays the same.",
            layer=digest_of(packed),
            diff_id=answer,
        )
    checks.check_form(answer)
    if answer == digest_of(packed):
        raise Wrong(
            "That is the digest of the compressed bytes: the manifest's name for this layer. The "
            "config knows it by its tar, unpacked."
        )
    raise Wrong(
        f"{checks.short(answer)} is not the digest of this file's tar. Did you take the bytes of "
        "the file, and unpack them before anything else? A layer is the whole tar."
    )


def check_07_upload(bench: Bench, answer: object) -> Verdict:
    """Has the image the learner's layer on top of the first one, all of it fitting, and runs?"""
    hello = checks.given(bench, "hand/hello:1")
    held = _fitting(bench, "hand/hello:mine")
    top = checks.written(bench, "layer.tar.gz").read_bytes()
    lowest, wanted = (next(iter(each.config.diff_ids), None) for each in (held, hello))
    if lowest != wanted:
        raise Wrong(
            f"'hand/hello:mine' stands on the layer {checks.short(lowest)}; expected is that of "
            f"'hand/hello:1', {checks.short(wanted)} The lowest comes first."
        )
    said = _said(bench, held)
    if bench.state.lab_id not in said:
        raise Wrong(
            f"'hand/hello:mine' says '{said.strip()[:60]}'. Expected: the text with this lab's "
            f"number, {bench.state.lab_id}. Is the layer of 'layer.tar.gz' on top of that of "
            "'hand/hello:1'?"
        )
    # An engine that builds packs the file anew, with times and names of its own.
    if [layer.digest for layer in held.manifest.layers[1:]] != [digest_of(top)]:
        raise Wrong(
            "It says the right words, but its upper layer is not 'layer.tar.gz' as it is, "
            f"{checks.short(digest_of(top))} Did an engine pack it anew?"
        )
    return correct(
        f"It says '{said.strip()}': the file of the upper layer hides the lower one's.",
        image=held.pinned,
    )


def check_07_change(bench: Bench, answer: object) -> Verdict:
    """Has the image the changed layer, with a config and a manifest that fit it?"""
    hello = checks.given(bench, "hand/hello:1")
    held, wanted = _fitting(bench, "hand/hello:repaired"), _changed(bench, hello)
    if list(held.config.diff_ids) != [wanted]:
        raise Wrong(
            "'hand/hello:repaired' is to have one layer: that of 'hand/hello:1' with one byte "
            f"changed, as the cell above does, {checks.short(wanted)} It has "
            f"{checks.short(next(iter(held.config.diff_ids), None))}"
        )
    said = _said(bench, held)
    return correct(
        f"It says '{said.strip()[:60]}'. One byte, and four digests are others: the layer's, its "
        "diff ID, the config's and the manifest's. Only the names are the old ones.",
        image=held.pinned,
        before=hello.pinned,
    )


def _changed(bench: Bench, hello: RegistryImage) -> str:
    """Return the diff ID of the first image's layer after the change of one byte in this lab."""
    layers = hello.manifest.layers
    if len(layers) == 1 and layers[0].size <= _LARGEST:
        layer = _unpacked(bench.registry.read_blob(hello.reference.repository, layers[0].digest))
        if layer and (first := layer.find(b"Made by hand")) >= 0:
            place = first + int(bench.state.lab_id, 16) % len(b"Made by hand")
            return digest_of(layer[:place] + b"#" + layer[place + 1 :])
    raise NotYet("'hand/hello:1' is not the chapter's first image. Run the cells above again.")


def _fitting(bench: Bench, name: str) -> RegistryImage:
    """Return an image whose manifest, config and layers fit each other, or end the check."""
    held = checks.pushed(bench, name)
    if held.manifest.download_bytes > _LARGEST:
        raise Wrong(
            f"'{name}' has {held.manifest.download_bytes / 1e6:.1f} MB of layers. Expected: some "
            "hundred bytes, with the two layers of this chapter. What else is in it?"
        )
    registry, repository = bench.registry, held.reference.repository
    if damage := registry.damaged_blobs(repository, held.manifest, contents=True):
        raise Wrong(
            f"'{name}': the manifest does not fit: {damage[0]}. Were digest and size those of "
            "these bytes?"
        )
    layers, promised = held.manifest.layers, held.config.diff_ids
    if len(layers) != len(promised):
        raise Wrong(
            f"'{name}': the manifest has {len(layers)} layers, the config {len(promised)} diff "
            "IDs. Each layer needs one, in the same order."
        )
    for number, (layer, diff_id) in enumerate(zip(layers, promised, strict=True), 1):
        tar = _unpacked(registry.read_blob(repository, layer.digest))
        if tar is None:
            raise Wrong(f"'{name}': layer {number} is compressed, and can't be unpacked.")
        if diff_id != digest_of(tar):
            raise Wrong(
                f"'{name}': the config's diff ID of layer {number} is {checks.short(diff_id)}; the "
                f"layer's tar has {checks.short(digest_of(tar))} Did you take the compressed "
                "bytes, or another layer's? Both lists begin with the lowest."
            )
    machine, wanted = held.config.platform.architecture, bench.engine.platform.split("/")[1]
    if machine != wanted:
        raise Wrong(f"'{name}': the config is for '{machine}'; this engine runs '{wanted}'.")
    return held


def _said(bench: Bench, held: RegistryImage) -> str:
    """Return what an image's program prints, or end the check where it does not run."""
    was_here = bench.engine.image(str(held.pinned)) is not None
    try:
        return checks.run_once(bench, held.pinned, [])
    except (RunError, PullError) as error:
        raise Wrong(f"'{held.reference}' is in the registry, but does not run: {error}") from error
    finally:
        # An engine that has a layer does not unpack it again, and would not see the next slip.
        if not was_here:
            transfer.remove(bench.engine, held.pinned)


def _unpacked(blob: bytes) -> bytes | None:
    """Return a layer's tar, whether it is compressed or not; None where it can't be unpacked."""
    if blob[:2] != b"\x1f\x8b":
        return blob
    try:
        return gzip.decompress(blob)
    except (OSError, EOFError, zlib.error):
        return None
