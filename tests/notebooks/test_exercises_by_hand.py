"""The exercises of chapter 07, where images are made by hand: right ways and wrong states.

A learner works with what the notebook's cells define, so the cells are run first.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from desk import Desk, Steps, Tried, judge

from labapp import images
from labapp.bench import Bench
from labapp.errors import PullError
from labapp.exercises import find_exercise
from labapp.feedback import QuietFeedback
from labapp.manifests import Descriptor, Platform, digest_of
from labapp.manifests.assembly import build_config, build_manifest

FILE = Path(__file__).parents[2] / "notebooks" / "07_by_hand.ipynb"
OCI = "application/vnd.oci.image."

CELLS = """
machine program-run layer-pack layer-run config-run manifest-run ask early-run
layer-upload manifest-upload-run compressed-run byte-run byte-upload
"""

Names = dict[str, Any]


@pytest.fixture
def desk(bench: Bench, tmp_path: Path, emptied: Callable[[], None]) -> Iterator[Desk]:
    emptied()
    yield Desk(replace(bench, work=tmp_path))
    forget(bench)


def forget(bench: Bench) -> None:
    """Take images off the engine that were made by hand, and so carry no label."""
    api = bench.engine.client.api
    for image in api.images(filters={"reference": f"{bench.registry.address}/hand/hello"}):
        for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
            with contextlib.suppress(docker.errors.ImageNotFound):
                api.remove_image(name, force=True)


def chapter(desk: Desk) -> Names:
    """Run the cells that make and upload images, and return what they define."""
    lab = SimpleNamespace(bench=desk.bench, work=desk.work, address=desk.bench.registry.address)
    names: Names = {"hashlib": hashlib, "json": json, "lab": lab}
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    sources = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    for id in CELLS.split():
        exec(sources[id], names)
    return names


def solved(id: str) -> Steps:
    """Run the chapter's own solution; what it returns is the answer, where there is one."""

    def steps(desk: Desk) -> object:
        names = chapter(desk)
        exec(find_exercise(id).solution, names)
        return names.get("answer")

    return steps


def after(answer: Callable[[Names], object]) -> Steps:
    """Run the chapter, then compute an answer from what it defines."""
    return lambda desk: answer(chapter(desk))


def top(names: Names) -> bytes:
    return bytes((names["lab"].work / "layer.tar.gz").read_bytes())


def unpacked(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer


def put(
    names: Names,
    tag: str,
    layers: list[bytes],
    *,
    diff_ids: list[str] | None = None,
    more_bytes: int = 0,
    **config: object,
) -> None:
    """Upload an image as the chapter does, with the slips that a test wants."""
    if diff_ids is None:
        diff_ids = [digest_of(unpacked(layer)) for layer in layers]
    content = json.loads(names["config"]) | config
    content["rootfs"]["diff_ids"] = diff_ids
    written = json.dumps(content).encode()
    manifest = json.loads(names["manifest"])
    manifest["config"] = names["part"]("config.v1+json", written)
    kinds = ["layer.v1.tar" + "+gzip" * (layer[:2] == b"\x1f\x8b") for layer in layers]
    parts = zip(kinds, layers, strict=True)
    manifest["layers"] = [names["part"](kind, layer) for kind, layer in parts]
    for layer in manifest["layers"]:
        layer["size"] += more_bytes
    for blob in (written, *layers):
        names["upload"](blob)
    store(names, tag, json.dumps(manifest).encode())


def store(names: Names, tag: str, manifest: bytes) -> None:
    path = f"/v2/hand/hello/manifests/{tag}"
    assert names["ask"]("PUT", path, data=manifest, headers=names["KIND"]).status_code == 201


def mine(**slips: object) -> Steps:
    """Make the image of two layers, with a slip."""

    def steps(desk: Desk) -> None:
        names = chapter(desk)
        made = {name: slip(names) if callable(slip) else slip for name, slip in slips.items()}
        layers: Any = made.pop("layers", [names["layer"], top(names)])
        put(names, "mine", layers, **made)  # type: ignore[arg-type]

    return steps


def repaired(**slips: object) -> Steps:
    """Make the image with the changed byte, with a slip."""

    def steps(desk: Desk) -> None:
        names = chapter(desk)
        put(names, "repaired", [names["changed"]], **slips)  # type: ignore[arg-type]

    return steps


def again(which: str, tag: str) -> Steps:
    """Give one of the chapter's own manifests the name that the exercise asks for."""

    def steps(desk: Desk) -> None:
        names = chapter(desk)
        store(names, tag, names[which])

    return steps


def built_on_hello(desk: Desk) -> None:
    """With docker: the first image, and a file on top."""
    names = chapter(desk)
    folder = desk.work / "top"
    folder.mkdir()
    program = folder / "hello"
    program.write_bytes(names["program"](f"Built for {names['me']}.\n".encode()))
    program.chmod(0o755)
    (folder / "Dockerfile").write_text(f"FROM {desk.name('hand/hello:1')}\nCOPY hello /hello\n")
    desk.pushed_from(folder, "hand/hello:mine")


def built_on_slim(desk: Desk) -> None:
    chapter(desk)
    desk.pushed("hand/hello:mine")


def by_the_client(which: str, tag: str) -> Steps:
    """With the lab's own client, which writes other configs and manifests."""

    def steps(desk: Desk) -> None:
        names = chapter(desk)
        layers = [names["layer"], top(names)] if tag == "mine" else [names[which]]
        registry = desk.bench.registry
        parts = []
        for layer in layers:
            kind = OCI + "layer.v1.tar" + "+gzip" * (layer[:2] == b"\x1f\x8b")
            parts.append(Descriptor(kind, *registry.upload_blob("hand/hello", [layer])))
        config = build_config(
            platform=Platform.parse(desk.bench.engine.platform),
            diff_ids=[digest_of(unpacked(layer)) for layer in layers],
            cmd=["/hello"],
        )
        written = Descriptor(OCI + "config.v1+json", *registry.upload_blob("hand/hello", [config]))
        manifest = build_manifest(written, parts)
        registry.put_manifest("hand/hello", tag, manifest, OCI + "manifest.v1+json")

    return steps


def only_on_the_engine(desk: Desk) -> None:
    chapter(desk)
    images.pull(
        desk.bench.engine, desk.bench.server, desk.name("hand/hello:1"), feedback=QuietFeedback()
    )
    desk.tag("hand/hello:1", "hand/hello:mine")


def damaged_file(desk: Desk) -> str:
    names = chapter(desk)
    (desk.work / "layer.tar.gz").write_bytes(top(names)[:-20])
    return digest_of(top(names))


def no_tar(desk: Desk) -> str:
    names = chapter(desk)
    (desk.work / "layer.tar.gz").write_bytes(gzip.compress(names["me"].encode()))
    return digest_of(names["mine"])


def file_of_a_neighbour(desk: Desk) -> str:
    names = chapter(desk)
    layer = names["pack"]("hello", names["program"](b"Made by 00000000.\n"))
    (desk.work / "layer.tar.gz").write_bytes(gzip.compress(layer))
    return digest_of(layer)


def of_a_neighbour(names: Names) -> list[bytes]:
    layer = names["pack"]("hello", names["program"](b"Made by 00000000.\n"))
    return [names["layer"], gzip.compress(layer)]


def both(names: Names) -> list[str]:
    return [digest_of(names["layer"]), digest_of(gzip.decompress(top(names)))]


RIGHT: list[tuple[str, Steps]] = [
    ("07-diffid", solved("07-diffid")),
    ("07-diffid", after(lambda names: digest_of(names["mine"]))),
    ("07-diffid", after(lambda names: digest_of(zlib.decompress(top(names), 31)))),
    ("07-upload", solved("07-upload")),
    ("07-upload", built_on_hello),
    ("07-upload", by_the_client("layer", "mine")),
    ("07-change", solved("07-change")),
    ("07-change", repaired()),
    ("07-change", by_the_client("changed", "repaired")),
]

WRONG: list[tuple[str, Steps, str, str]] = [
    ("07-diffid", after(lambda names: ...), "NotYet", "No answer yet"),
    ("07-diffid", lambda desk: "sha256:0", "NotYet", "is missing"),
    ("07-diffid", after(lambda names: 7), "Wrong", "type int"),
    ("07-diffid", after(lambda names: digest_of(top(names))), "Wrong", "compressed bytes"),
    ("07-diffid", after(lambda names: digest_of(names["mine"])[7:]), "Wrong", "in front"),
    ("07-diffid", after(lambda names: names["me"]), "Wrong", "is no digest"),
    (
        "07-diffid",
        after(lambda names: digest_of(names["program"](f"Made by {names['me']}.\n".encode()))),
        "Wrong",
        "whole tar",
    ),
    ("07-diffid", after(lambda names: digest_of(names["layer"])), "Wrong", "not the digest of"),
    ("07-diffid", damaged_file, "Wrong", "not what the cell above made"),
    ("07-diffid", no_tar, "Wrong", "not the digest of"),
    ("07-diffid", file_of_a_neighbour, "Wrong", "not what the cell above made"),
    ("07-upload", lambda desk: None, "NotYet", "Run the cells above"),
    ("07-upload", lambda desk: chapter(desk) and None, "NotYet", "no 'hand/hello:mine' yet"),
    ("07-upload", only_on_the_engine, "Wrong", "push it"),
    ("07-upload", again("manifest", "mine"), "Wrong", "no other on top"),
    (
        "07-upload",
        mine(diff_ids=lambda names: [digest_of(names["layer"]), digest_of(top(names))]),
        "Wrong",
        "Expected: of its tar",
    ),
    ("07-upload", mine(diff_ids=lambda names: both(names)[1:]), "Wrong", "the config 1 diff IDs"),
    ("07-upload", mine(diff_ids=lambda names: both(names)[::-1]), "Wrong", "another of its layers"),
    (
        "07-upload",
        mine(diff_ids=lambda names: [both(names)[0], digest_of(b"")]),
        "Wrong",
        "Which bytes did you take?",
    ),
    (
        "07-upload",
        mine(layers=lambda names: [top(names), names["layer"]]),
        "Wrong",
        "The lowest comes first",
    ),
    ("07-upload", mine(layers=[]), "Wrong", "stands on the layer nothing"),
    ("07-upload", mine(layers=of_a_neighbour), "Wrong", "says 'Made by 00000000.'"),
    (
        "07-upload",
        mine(layers=lambda names: [names["layer"], top(names)[:-20]], diff_ids=both),
        "Wrong",
        "can't be unpacked",
    ),
    ("07-upload", mine(more_bytes=1), "Wrong", "does not fit"),
    ("07-upload", mine(architecture="riscv64"), "Wrong", "it is for 'riscv64'"),
    ("07-upload", mine(config={}), "Wrong", "does not run"),
    ("07-upload", mine(config=[]), "Wrong", "can't be read"),
    ("07-upload", built_on_slim, "Wrong", "MB of layers"),
    ("07-change", lambda desk: None, "NotYet", "Run the cells above"),
    ("07-change", lambda desk: chapter(desk) and None, "NotYet", "no 'hand/hello:repaired' yet"),
    ("07-change", again("manifest", "repaired"), "Wrong", "without the changed byte"),
    ("07-change", again("broken", "repaired"), "Wrong", "the config's diff ID of layer 1"),
    ("07-change", repaired(config={"Entrypoint": ["/bye"]}), "Wrong", "does not run"),
    ("07-change", repaired(diff_ids=[]), "Wrong", "the config 0 diff IDs"),
    (
        "07-change",
        after(lambda names: put(names, "repaired", [names["mine"]])),
        "Wrong",
        "that of 'hand/hello:changed'",
    ),
]


class TestExercises(Tried):
    chapters = ("07",)


def test_the_engine_refuses_what_does_not_fit_its_config(desk: Desk) -> None:
    """What the chapter says of the engine, also where a check has had an image in between."""
    solved("07-upload")(desk)
    assert judge("07-upload", desk, lambda desk: None)[0] == "Correct"
    changed = desk.name("hand/hello:changed")
    with pytest.raises(PullError, match=r"configuration|diff"):
        images.pull(desk.bench.engine, desk.bench.server, changed, feedback=QuietFeedback())
