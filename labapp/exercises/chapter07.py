"""Chapter 07, By hand: the exercises."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

from labapp import images
from labapp.bench import Bench
from labapp.errors import PullError, RegistryError, RegistryUnreachable, RunError
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.feedback import QuietFeedback
from labapp.manifests import Platform, digest_of, is_digest
from labapp.registry.reader import RegistryImage

_REPOSITORY = "hand/hello"
_CELLS_ABOVE = "Run the cells above first."
_LARGEST = 1_000_000
"""The bytes of layers that a check reads, at most; the chapter's have some hundreds."""


def _check_diffid(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with your computation.")
    file = bench.work / "layer.tar.gz"
    if not file.is_file():
        return not_yet(f"'layer.tar.gz' is missing. {_CELLS_ABOVE}")
    packed = file.read_bytes()
    layer = _unpacked(packed)
    if layer is None or bench.state.lab_id.encode() not in layer:
        return wrong(
            "'layer.tar.gz' is not what the cell above made: a compressed tar that holds this "
            "lab's number. Run that cell again."
        )
    if not isinstance(answer, str):
        return wrong(f"The answer is of type {type(answer).__name__}. Expected: a text.")
    if answer == digest_of(layer):
        return correct(
            "However the layer is compressed, its diff ID stays the same.",
            evidence={"layer": digest_of(packed), "diff_id": answer},
        )
    if f"sha256:{answer}" == digest_of(layer):
        return wrong("The digits are right. A diff ID is a digest: say which algorithm, in front.")
    if not is_digest(answer):
        return wrong(f"'{answer[:24]}' is no digest: expected 'sha256:' and 64 hexadecimal digits.")
    if answer == digest_of(packed):
        return wrong(
            "That is the digest of the compressed bytes: the manifest's name for this layer. The "
            "config knows it by its tar, unpacked."
        )
    if answer in _digests_of_files(layer):
        return wrong("That is the digest of the program in the tar. A layer is the whole tar.")
    return wrong(
        f"{evidence.short(answer)} is not the digest of this file's tar. Did you take the bytes "
        "of the file, and unpack them before anything else?"
    )


def _check_upload(bench: Bench, answer: object) -> Verdict:
    hello = evidence.image(bench, _REPOSITORY, "1")
    if hello is None:
        return not_yet(f"The registry has no '{_REPOSITORY}:1' yet. {_CELLS_ABOVE}")
    held = _held(bench, "mine")
    if isinstance(held, Verdict):
        return held
    if held.config.diff_ids == hello.config.diff_ids:
        return wrong("'hand/hello:mine' has the layer of 'hand/hello:1', and no other on top.")
    if (slip := _slip(bench, held)) is not None:
        return wrong(f"'hand/hello:mine': {slip}")
    lowest, wanted = (next(iter(each.config.diff_ids), None) for each in (held, hello))
    if lowest != wanted:
        return wrong(
            f"'hand/hello:mine' stands on the layer {evidence.short(lowest)}; expected is that of "
            f"'hand/hello:1', {evidence.short(wanted)} The lowest comes first."
        )
    said = _said(bench, held)
    if isinstance(said, Verdict):
        return said
    if bench.state.lab_id not in said:
        return wrong(
            f"'hand/hello:mine' says '{said.strip()[:60]}'. Expected: the text with this lab's "
            f"number, {bench.state.lab_id}. Is the layer on top that of 'layer.tar.gz'?"
        )
    return correct(
        f"It says '{said.strip()}': the file of the upper layer hides the lower one's.",
        evidence={"image": str(held.pinned)},
    )


def _check_change(bench: Bench, answer: object) -> Verdict:
    hello = evidence.image(bench, _REPOSITORY, "1")
    changed = evidence.image(bench, _REPOSITORY, "changed")
    if hello is None or changed is None:
        return not_yet(f"The registry needs 'hand/hello:1' and 'changed'. {_CELLS_ABOVE}")
    held = _held(bench, "repaired")
    if isinstance(held, Verdict):
        return held
    if held.manifest.layers == hello.manifest.layers:
        return wrong(
            "'hand/hello:repaired' has the layer of 'hand/hello:1', without the changed byte. "
            "Expected: the changed layer, and a config and a manifest that fit it."
        )
    found, wanted = ([layer.digest for layer in each.manifest.layers] for each in (held, changed))
    if found != wanted:
        return wrong(
            f"'hand/hello:repaired' has the layer {evidence.short(next(iter(found), None))}; that "
            f"of 'hand/hello:changed' is {evidence.short(next(iter(wanted), None))}"
        )
    if (slip := _slip(bench, held)) is not None:
        return wrong(f"'hand/hello:repaired': {slip}")
    said = _said(bench, held)
    if isinstance(said, Verdict):
        return said
    return correct(
        f"It says '{said.strip()[:60]}'. One byte, and four digests are others: the layer's, its "
        "diff ID, the config's and the manifest's. Only the names are the old ones.",
        evidence={"image": str(held.pinned), "before": str(hello.pinned)},
    )


def _held(bench: Bench, tag: str) -> RegistryImage | Verdict:
    """Return the learner's image, or why there is none to judge."""
    name = f"{_REPOSITORY}:{tag}"
    if evidence.digest(bench, _REPOSITORY, tag) is None:
        if evidence.on_engine(bench, f"{bench.registry.address}/{name}"):
            return wrong(f"'{name}' is on the engine, but not in the registry: push it.")
        return not_yet(f"The registry has no '{name}' yet.")
    try:
        held = bench.registry.image(
            f"{bench.registry.address}/{name}", platform=Platform.parse(bench.engine.platform)
        )
    except RegistryUnreachable:
        raise
    except RegistryError as error:
        return wrong(f"'{name}' is there, but can't be read: {error}")
    if held.manifest.download_bytes > _LARGEST:
        return wrong(
            f"'{name}' has {held.manifest.download_bytes / 1e6:.1f} MB of layers. Expected: some "
            "hundred bytes, with the two layers of this chapter. What else is in it?"
        )
    return held


def _slip(bench: Bench, held: RegistryImage) -> str | None:
    """Return what does not fit in an image: a size, a digest, or the processor; None if it does."""
    damage = bench.registry.damaged_blobs(held.reference.repository, held.manifest, contents=True)
    if damage:
        return f"the manifest does not fit: {damage[0]}. Were digest and size those of these bytes?"
    layers, promised = held.manifest.layers, held.config.diff_ids
    if len(layers) != len(promised):
        return (
            f"the manifest has {len(layers)} layers, the config {len(promised)} diff IDs. Each "
            "layer needs one, in the same order."
        )
    found = []
    for number, layer in enumerate(layers, 1):
        tar = _unpacked(bench.registry.read_blob(held.reference.repository, layer.digest))
        if tar is None:
            return f"layer {number} is compressed, and can't be unpacked."
        found.append(digest_of(tar))
    for number, (layer, diff_id, real) in enumerate(zip(layers, promised, found, strict=True), 1):
        if real == diff_id:
            continue
        said = f"the config's diff ID of layer {number} is {evidence.short(diff_id)}"
        if diff_id == layer.digest:
            return f"{said} That is the digest of its compressed bytes. Expected: of its tar."
        if sorted(found) == sorted(promised):
            return f"{said} That is another of its layers. Both lists begin with the lowest."
        return f"{said} Unpacked, the layer has {evidence.short(real)} Which bytes did you take?"
    machine, wanted = held.config.platform.architecture, bench.engine.platform.split("/")[1]
    if machine != wanted:
        return f"the config says it is for '{machine}'; this engine runs '{wanted}'."
    return None


def _said(bench: Bench, held: RegistryImage) -> str | Verdict:
    """Return what an image's program prints, or why it does not run."""
    quiet, labels = QuietFeedback(), bench.state.labels
    was_here = evidence.on_engine(bench, str(held.pinned))
    try:
        return images.run_once(bench.engine, held.pinned, [], labels=labels, feedback=quiet)
    except (RunError, PullError) as error:
        return wrong(f"'{held.reference}' is in the registry, but does not run: {error}")
    finally:
        # An engine that has a layer does not unpack it again, and would not see the next slip.
        if not was_here:
            images.remove(bench.engine, held.pinned)


def _unpacked(blob: bytes) -> bytes | None:
    """Return a layer's tar, whether it is compressed or not; None where it can't be unpacked."""
    if blob[:2] != b"\x1f\x8b":
        return blob
    try:
        return gzip.decompress(blob)
    except (OSError, EOFError, zlib.error):
        return None


def _digests_of_files(layer: bytes) -> set[str]:
    try:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            opened = [archive.extractfile(member) for member in archive]
            return {digest_of(file.read()) for file in opened if file is not None}
    except tarfile.TarError:
        return set()


EXERCISES = (
    Exercise(
        id="07-diffid",
        check=_check_diffid,
        hints=(
            "The manifest has the digest of what is in the file. The config has the digest of what "
            "comes out when it is unpacked.",
            "`(lab.work / 'layer.tar.gz').read_bytes()` reads the file, `gzip.decompress` unpacks "
            "it, and `digest` you have.",
        ),
        solution="""
packed = (lab.work / "layer.tar.gz").read_bytes()
answer = digest(gzip.decompress(packed))
""",
        why="The diff ID is the digest of the tar, so it does not depend on who compressed it, "
        "and how well.",
    ),
    Exercise(
        id="07-upload",
        check=_check_upload,
        hints=(
            "Take the cells of config and manifest, put one more entry into each list, and give "
            "the results new names.",
            "`diff_ids` is `[digest(layer), digest(gzip.decompress(top))]`, where `top` are the "
            "bytes of the file. The manifest's second layer is "
            "`part('layer.v1.tar+gzip', top)`.",
            "Upload `top` and the new config with `upload`, then `PUT` the new manifest to "
            "`/v2/hand/hello/manifests/mine`, as above.",
        ),
        solution="""
top = (lab.work / "layer.tar.gz").read_bytes()
new = json.loads(config)
new["rootfs"]["diff_ids"].append(digest(gzip.decompress(top)))
config_2 = json.dumps(new).encode()
new = json.loads(manifest)
new["config"] = part("config.v1+json", config_2)
new["layers"].append(part("layer.v1.tar+gzip", top))
upload(top)
upload(config_2)
ask("PUT", "/v2/hand/hello/manifests/mine", data=json.dumps(new).encode(), headers=KIND);
""",
        why="The lower layer is in the repository already, so it is not sent again: the manifest "
        "only names it.",
    ),
    Exercise(
        id="07-change",
        check=_check_change,
        hints=(
            "Begin at the layer and follow the arrows of the first picture. What holds the "
            "layer's digest? Whose digest does that change?",
            "In `broken` the layer is right. In `config`, replace the old diff ID: that gives a "
            "new config. Then `broken` has to name the new config.",
            "Upload the new config with `upload`, then `PUT` the new manifest to "
            "`/v2/hand/hello/manifests/repaired`.",
        ),
        solution="""
config_3 = config.replace(digest(layer).encode(), digest(changed).encode())
whole = broken.replace(digest(config).encode(), digest(config_3).encode())
upload(config_3)
ask("PUT", "/v2/hand/hello/manifests/repaired", data=whole, headers=KIND)
print("before:", digest(manifest))
print("after: ", digest(whole))
""",
        why="The layer's tar isn't compressed, so its digest is its diff ID as well. The config "
        "changed with it, and so did the manifest. The sizes are the old ones, for one digest is "
        "as long as another.",
    ),
)
