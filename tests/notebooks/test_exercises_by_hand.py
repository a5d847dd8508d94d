"""The exercises of chapter 07, where images are made by hand: right ways and wrong states.

A learner works with what the notebook's cells define, so the cells are run first, once for all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
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
    all_of,
    copied,
    forget,
    nothing,
    run_cells,
    solved,
    step,
    write,
)

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


@step
def built_on_hello(desk: Hand, line: str, *tags: str, text: str = "Made by {}.\n") -> None:
    """With docker: the first image, and on top a file, or the layer as an archive to unpack."""
    folder = desk.work / "top"
    write(folder / "Dockerfile", f"FROM {desk.name('hand/hello:1')}\n{line}\n")
    (folder / "hello").write_bytes(desk.names["program"](text.format(desk.names["me"]).encode()))
    (folder / "hello").chmod(0o755)
    (folder / "layer.tar.gz").write_bytes(desk.names["top"])
    for tag in tags:
        desk.made(folder, f"hand/hello:{tag}")


@step
def indexed(desk: Hand, tag: str, *then: Steps) -> None:
    """Let the tag name an index, with another machine's image beside the one that was made."""
    all_of(*then)(desk)
    entries = []
    for each, machine in ((tag, desk.lab.platform.split("/")[1]), ("1", "s390x")):
        held = desk.bench.registry.image(desk.name(f"hand/hello:{each}")).manifest
        entry = {"mediaType": held.media_type, "digest": held.digest, "size": len(held.raw)}
        entries.append(entry | {"platform": {"os": "linux", "architecture": machine}})
    desk.index(f"hand/hello:{tag}", *entries)


def in_a_shell(desk: Hand) -> str:
    script = 'import gzip, sys; sys.stdout.buffer.write(gzip.open("layer.tar.gz").read())'
    typed = f"{sys.executable} -c '{script}' | sha256sum | cut -c 1-64"
    return "sha256:" + subprocess.check_output(typed, shell=True, cwd=desk.work, text=True).strip()


def packed_again(desk: Hand) -> None:
    """The chapter's layer, compressed anew: not what the file holds."""
    desk.names["anew"] = gzip.compress(desk.names["mine"], 1)
    put("mine", "layer", "anew")(desk)


def compressed(desk: Hand) -> None:
    """The changed layer travels compressed, and is the same layer."""
    desk.names["packed"] = gzip.compress(desk.names["changed"])
    put("repaired", "packed")(desk)


def another_byte(desk: Hand) -> None:
    """As a neighbour's lab changes it."""
    at = desk.names["layer"].index(b"Made by hand")
    own, layer = desk.names["place"] - at, bytearray(desk.names["layer"])
    layer[at + (own + 1) % 12] = ord("#")
    desk.names["theirs"] = bytes(layer)
    put("changed", "theirs")(desk)
    put("repaired", "theirs")(desk)


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
        in_a_shell,
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
        put("mine", "layer", "top", **ENTRY),
        put("mine", "layer", "top", author="me", history=[{}, {}]),
        indexed("mine", put("mine", "layer", "top")),
        (early, "NotYet", "hand/hello:1"),
        (nothing, "NotYet", "hand/hello:mine"),
        (only_on_the_engine, "Wrong", "push"),
        (again("manifest", "mine"), "Wrong", "hand/hello:1"),
        (promised(lower, lambda names: digest_of(names["top"])), "Wrong", "layer 2"),
        (promised(upper), "Wrong", "1 diff IDs"),
        (promised(upper, lower), "Wrong", "layer 1"),
        (promised(lower, lambda names: digest_of(b"")), "Wrong", "layer 2"),
        (built_on_hello("ADD layer.tar.gz /", "mine"), "Wrong", "layer.tar.gz"),
        (built_on_hello("COPY hello /hello", "mine"), "Wrong", "layer.tar.gz"),
        (built_on_hello("COPY hello /hello", "mine", text="By {}.\n"), "Wrong", "layer.tar.gz"),
        (packed_again, "Wrong", "layer.tar.gz"),
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
        compressed,
        indexed("repaired", put("repaired", "changed")),
        (early, "NotYet", "hand/hello:1"),
        (nothing, "NotYet", "hand/hello:repaired"),
        (again("manifest", "repaired"), "Wrong", "hand/hello:1"),
        (again("broken", "repaired"), "Wrong", "layer 1"),
        (put("repaired", "changed", config={"Entrypoint": ["/bye"]}), "Wrong", "run"),
        (put("repaired", "changed", diff_ids=lambda names: []), "Wrong", "0 diff IDs"),
        (put("repaired", "mine"), "Wrong", "hand/hello:1"),
        (built_on_hello("COPY hello /hello", "changed", "repaired"), "Wrong", "hand/hello:1"),
        (all_of(put("changed", "layer"), put("repaired", "layer")), "Wrong", "one byte"),
        (another_byte, "Wrong", "one byte"),
    ],
}


class TestExercises(Tried):
    chapters = ("07",)
