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

import pytest
from desk import (
    Desk,
    Names,
    States,
    Steps,
    Tried,
    copied,
    forget,
    nothing,
    run_cells,
    solved,
    step,
    verdict,
    write,
)

from labapp.errors import PullError
from labapp.journey.bases import SLIM
from labapp.registry.manifests import digest_of

CELLS = """
machine program-run layer-pack layer-run config-run manifest-run ask early-run
layer-upload manifest-upload-run compressed-run byte-run
"""


@dataclass(frozen=True)
class Hand(Desk):
    """A desk with what the chapter's cells define, and the file that they write."""

    names: Names

    @property
    def file(self) -> Path:
        return self.work / "layer.tar.gz"


@pytest.fixture(scope="module")
def shelf(bare: Desk) -> Iterator[Hand]:
    lab = SimpleNamespace(
        work=bare.work, address=bare.lab.address, id=bare.lab.id, platform=bare.lab.platform
    )
    names = run_cells("07", CELLS, {"hashlib": hashlib, "json": json, "lab": lab})
    neighbour = names["pack"]("hello", names["program"](b"Made by 00000000.\n"))
    names["neighbour"] = gzip.compress(neighbour)
    names["top"] = (bare.work / "layer.tar.gz").read_bytes()
    yield Hand(bare.bench, names)
    # Images that were made by hand carry no label.
    forget(bare.bench, "hand/hello")


@pytest.fixture
def desk(shelf: Hand, tmp_path: Path) -> Hand:
    """The registry and the file as the cells leave them, and no layer on the engine."""
    forget(shelf.bench, "hand/hello")
    desk = Hand(shelf.at(tmp_path).bench, {**shelf.names})
    desk.names["lab"].work = desk.work
    desk.file.write_bytes(desk.names["top"])
    store(desk, "1", desk.names["manifest"])
    store(desk, "changed", desk.names["broken"])
    return desk


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


def unpacked(layer: bytes) -> bytes:
    return gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer


@step
def put(
    desk: Hand,
    tag: str,
    *which: str,
    diff_ids: Callable[[Names], list[str]] | None = None,
    cut: int | None = None,
    more_bytes: int = 0,
    **config: object,
) -> None:
    """Upload an image of some layers as the chapter does, with the slips that a test wants."""
    names = desk.names
    layers = [names[each] for each in which]
    content = json.loads(names["config"]) | config
    promised = diff_ids(names) if diff_ids else [digest_of(unpacked(each)) for each in layers]
    content["rootfs"]["diff_ids"] = promised
    written = json.dumps(content).encode()
    manifest = json.loads(names["manifest"]) | {"layers": []}
    manifest["config"] = names["part"]("config.v1+json", written)
    names["upload"](written)
    for plain in layers:
        packed = plain != unpacked(plain)
        layer = plain[:cut] if packed else plain
        part = names["part"]("layer.v1.tar" + "+gzip" * packed, layer)
        manifest["layers"].append(part | {"size": len(layer) + more_bytes})
        names["upload"](layer)
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
    desk.lab.pull(desk.name("hand/hello:1"))
    desk.tag("hand/hello:1", "hand/hello:mine")


@step
def in_file(desk: Hand, content: Callable[[Names], bytes]) -> str:
    """Write something else into the layer's file, and answer what the cells' file would have."""
    desk.file.write_bytes(content(desk.names))
    return digest_of(desk.names["mine"])


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

STATES: States = {
    "07-diffid": [
        solved("07-diffid"),
        answer(lambda names: digest_of(names["mine"])),
        answer(lambda names: digest_of(zlib.decompress(names["top"], 31))),
        (nothing, "NotYet"),
        (early, "NotYet", "layer.tar.gz"),
        (answer(lambda names: 7), "Wrong", "int"),
        (answer(lambda names: digest_of(names["top"])), "Wrong", "compressed"),
        (answer(lambda names: digest_of(names["mine"])[7:]), "Wrong"),
        (answer(lambda names: names["me"]), "Wrong"),
        (answer(of_the_program), "Wrong", "whole tar"),
        (answer(lower), "Wrong"),
        (in_file(lambda names: names["top"][:-20]), "Wrong"),
        (in_file(lambda names: gzip.compress(names["me"].encode())), "Wrong"),
        (in_file(lambda names: names["neighbour"]), "Wrong"),
    ],
    "07-upload": [
        solved("07-upload"),
        built_on_hello,
        put("mine", "layer", "top", **ENTRY),
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
        (put("mine", "layer", "neighbour"), "Wrong", "Made by 00000000."),
        (put("mine", "layer", "top", cut=-20), "Wrong", "layer 2"),
        (put("mine", "layer", "top", more_bytes=1), "Wrong", "does not fit"),
        (put("mine", "layer", "top", architecture="riscv64"), "Wrong", "riscv64"),
        (put("mine", "layer", "top", config={}), "Wrong", "run"),
        (put("mine", "layer", "top", config=[]), "Wrong", "read"),
        (copied(f"base/{SLIM}", "hand/hello:mine"), "Wrong", "MB"),
    ],
    "07-change": [
        solved("07-change"),
        put("repaired", "changed"),
        put("repaired", "changed", **ENTRY),
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
    solved("07-upload")(desk)
    assert verdict("07-upload", desk.bench)[0] == "Correct"
    with pytest.raises(PullError):
        desk.lab.pull(desk.name("hand/hello:changed"))
