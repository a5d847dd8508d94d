"""The exercises of chapter 07, where images are made by hand: right ways and wrong states.

A learner works with what the notebook's cells define, so the cells are run first, once for all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from desk import (
    Desk,
    Right,
    Steps,
    Tried,
    Wrong,
    cells,
    empty,
    forget,
    judge,
    nothing,
    step,
    unanswered,
    write,
)

from labapp.bench import Bench
from labapp.course.exercises import find_exercise
from labapp.errors import PullError
from labapp.journey import transfer
from labapp.registry.manifests import digest_of

CELLS = """
machine program-run layer-pack layer-run config-run manifest-run ask early-run
layer-upload manifest-upload-run compressed-run byte-run byte-upload
"""

Names = dict[str, Any]


@dataclass(frozen=True)
class Hand(Desk):
    """A desk with what the chapter's cells define, and the file that they write."""

    names: Names

    @property
    def file(self) -> Path:
        return self.work / "layer.tar.gz"


@pytest.fixture(scope="module")
def chapter(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hand]:
    empty(bench)
    desk = Desk(bench).at(tmp_path_factory.mktemp("hand"))
    lab = SimpleNamespace(
        work=desk.work,
        address=bench.registry.address,
        id=bench.state.lab_id,
        platform=bench.engine.platform,
    )
    names: Names = {"hashlib": hashlib, "json": json, "lab": lab}
    sources = cells("07")
    for id in CELLS.split():
        exec(sources[id], names)
    names["top"] = (desk.work / "layer.tar.gz").read_bytes()
    yield Hand(desk.bench, names)


@pytest.fixture
def desk(chapter: Hand) -> Iterator[Hand]:
    """The registry and the file as the cells leave them."""
    forget(chapter.bench, "hand/hello")
    chapter.file.write_bytes(chapter.names["top"])
    store(chapter, "1", chapter.names["manifest"])
    store(chapter, "changed", chapter.names["broken"])
    yield Hand(chapter.bench, dict(chapter.names))
    # Images that were made by hand carry no label.
    forget(chapter.bench, "hand/hello")


def store(desk: Hand, tag: str, manifest: bytes) -> None:
    path, names = f"/v2/hand/hello/manifests/{tag}", desk.names
    assert names["ask"]("PUT", path, data=manifest, headers=names["KIND"]).status_code == 201


def early(desk: Hand) -> str:
    """Before the cells were run."""
    forget(desk.bench, "hand/hello")
    desk.file.unlink()
    return digest_of(desk.names["mine"])


def answer(compute: Callable[[Names], object]) -> Steps:
    return lambda desk: compute(desk.names)


@step
def solved(desk: Hand, id: str) -> object:
    """Run the chapter's own solution; what it returns is the answer, where there is one."""
    exec(find_exercise(id).solution, desk.names)
    return desk.names.get("answer")


def unpacked(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer


@step
def put(
    desk: Hand,
    tag: str,
    *which: str | bytes,
    diff_ids: Callable[[Names], list[str]] | None = None,
    cut: int | None = None,
    more_bytes: int = 0,
    **config: object,
) -> None:
    """Upload an image of some layers as the chapter does, with the slips that a test wants."""
    names = desk.names
    layers = [names[each] if isinstance(each, str) else each for each in which]
    promised = [digest_of(unpacked(layer)) for layer in layers]
    layers = [layer[:cut] if layer[:2] == b"\x1f\x8b" else layer for layer in layers]
    content = json.loads(names["config"]) | config
    content["rootfs"]["diff_ids"] = diff_ids(names) if diff_ids else promised
    written = json.dumps(content).encode()
    manifest = json.loads(names["manifest"])
    manifest["config"] = names["part"]("config.v1+json", written)
    kinds = ["layer.v1.tar" + "+gzip" * (layer[:2] == b"\x1f\x8b") for layer in layers]
    pairs = zip(kinds, layers, strict=True)
    manifest["layers"] = [names["part"](kind, layer) for kind, layer in pairs]
    for layer in manifest["layers"]:
        layer["size"] += more_bytes
    for blob in (written, *layers):
        names["upload"](blob)
    store(desk, tag, json.dumps(manifest).encode())


def again(which: str, tag: str) -> Steps:
    """Give one of the chapter's own manifests the name that the exercise asks for."""
    return lambda desk: store(desk, tag, desk.names[which])


def built_on_hello(desk: Hand) -> None:
    """With docker: the first image, and a file on top."""
    program = desk.names["program"](f"Built for {desk.names['me']}.\n".encode())
    folder = desk.work / "top"
    write(folder / "Dockerfile", f"FROM {desk.name('hand/hello:1')}\nCOPY hello /hello\n")
    (folder / "hello").write_bytes(program)
    (folder / "hello").chmod(0o755)
    desk.made(folder, "hand/hello:mine")


def only_on_the_engine(desk: Hand) -> None:
    transfer.pull(desk.bench.engine, desk.bench.server, desk.name("hand/hello:1"))
    desk.tag("hand/hello:1", "hand/hello:mine")


@step
def in_file(desk: Hand, content: Callable[[Names], bytes]) -> str:
    """Write something else into the layer's file, and answer what the cells' file would have."""
    desk.file.write_bytes(content(desk.names))
    return digest_of(desk.names["mine"])


def of_a_neighbour(names: Names) -> bytes:
    return gzip.compress(names["pack"]("hello", names["program"](b"Made by 00000000.\n")))


def a_neighbours_on_top(desk: Hand) -> None:
    put("mine", "layer", of_a_neighbour(desk.names))(desk)


def of_the_program(names: Names) -> str:
    return digest_of(names["program"](f"Made by {names['me']}.\n".encode()))


def lower(names: Names) -> str:
    return digest_of(names["layer"])


def upper(names: Names) -> str:
    return digest_of(gzip.decompress(names["top"]))


def promised(*diff_ids: Callable[[Names], str]) -> Steps:
    """Upload both layers, and let the config promise what may be something else."""
    return put("mine", "layer", "top", diff_ids=lambda names: [each(names) for each in diff_ids])


ENTRY = {"config": {"Cmd": ["/hello"]}}
"""How other tools write a config: a command, and no entry point."""

RIGHT: Right = {
    "07-diffid": [
        solved("07-diffid"),
        answer(lambda names: digest_of(names["mine"])),
        answer(lambda names: digest_of(zlib.decompress(names["top"], 31))),
    ],
    "07-upload": [solved("07-upload"), built_on_hello, put("mine", "layer", "top", **ENTRY)],
    "07-change": [
        solved("07-change"),
        put("repaired", "changed"),
        put("repaired", "changed", **ENTRY),
    ],
}

WRONG: Wrong = {
    "07-diffid": [
        (unanswered, "NotYet"),
        (early, "NotYet", "layer.tar.gz"),
        (answer(lambda names: 7), "Wrong", "int"),
        (answer(lambda names: digest_of(names["top"])), "Wrong", "compressed"),
        (answer(lambda names: digest_of(names["mine"])[7:]), "Wrong"),
        (answer(lambda names: names["me"]), "Wrong"),
        (answer(of_the_program), "Wrong", "whole tar"),
        (answer(lower), "Wrong"),
        (in_file(lambda names: names["top"][:-20]), "Wrong"),
        (in_file(lambda names: gzip.compress(names["me"].encode())), "Wrong"),
        (in_file(of_a_neighbour), "Wrong"),
    ],
    "07-upload": [
        (early, "NotYet", "hand/hello:1"),
        (nothing, "NotYet", "hand/hello:mine"),
        (only_on_the_engine, "Wrong", "push"),
        (again("manifest", "mine"), "Wrong", "hand/hello:1"),
        (promised(lower, lambda names: digest_of(names["top"])), "Wrong", "layer 2"),
        (promised(upper), "Wrong", "1 diff IDs"),
        (promised(upper, lower), "Wrong", "layer 1"),
        (promised(lower, lambda names: digest_of(b"")), "Wrong", "layer 2"),
        (put("mine", "top", "layer"), "Wrong", "lowest"),
        (put("mine"), "Wrong", "nothing"),
        (a_neighbours_on_top, "Wrong", "Made by 00000000."),
        (put("mine", "layer", "top", cut=-20), "Wrong", "layer 2"),
        (put("mine", "layer", "top", more_bytes=1), "Wrong", "does not fit"),
        (put("mine", "layer", "top", architecture="riscv64"), "Wrong", "riscv64"),
        (put("mine", "layer", "top", config={}), "Wrong", "run"),
        (put("mine", "layer", "top", config=[]), "Wrong", "read"),
        (lambda desk: desk.copy(desk.slim, "hand/hello:mine"), "Wrong", "MB"),
    ],
    "07-change": [
        (early, "NotYet", "hand/hello:1"),
        (nothing, "NotYet", "hand/hello:repaired"),
        (again("manifest", "repaired"), "Wrong", "hand/hello:1"),
        (again("broken", "repaired"), "Wrong", "layer 1"),
        (put("repaired", "changed", config={"Entrypoint": ["/bye"]}), "Wrong", "run"),
        (put("repaired", "changed", diff_ids=lambda names: []), "Wrong", "0 diff IDs"),
        (put("repaired", "mine"), "Wrong", "hand/hello:changed"),
    ],
}


class TestExercises(Tried):
    chapters = ("07",)


def test_the_engine_refuses_what_does_not_fit_its_config(desk: Hand) -> None:
    """What the chapter says of the engine, also where a check has had an image in between."""
    assert judge("07-upload", desk, solved("07-upload"))[0] == "Correct"
    changed = desk.name("hand/hello:changed")
    with pytest.raises(PullError):
        transfer.pull(desk.bench.engine, desk.bench.server, changed)
