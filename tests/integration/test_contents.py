"""Images made for the purpose, read from a real registry; Syft's and dive's word on real ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from labapp import contents
from labapp.contents import Contents
from labapp.engine import Engine
from labapp.errors import DamagedContent, NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.manifests import (
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    Platform,
    digest_of,
)
from labapp.manifests.assembly import build_config, build_manifest
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.reader import RegistryImage
from labapp.registry.server import RegistryServer
from labapp.state import State

REPOSITORY = "contents/made"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory,
    engine: Engine,
    server: RegistryServer,
    state: State,
    feedback: QuietFeedback,
) -> Iterator[RegistryServer]:
    """A registry of these tests alone, whose storage they may damage."""
    assert server.is_running()
    own = RegistryServer(engine=engine, state=State.open(tmp_path_factory.mktemp("state")))
    try:
        own.start(image=str(state.read("registry")["image"]), feedback=feedback)
        yield own
    finally:
        own.remove(volume=True)


class Counting(Registry):
    """A registry client that remembers which blobs were opened."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.opened: list[str] = []

    def open_blob(
        self, repository: str, digest: str, *, size: int | None = None
    ) -> Generator[bytes]:
        self.opened.append(digest)
        return super().open_blob(repository, digest, size=size)


@pytest.fixture
def made(own: RegistryServer) -> Counting:
    return Counting(own.address)


@dataclass(frozen=True)
class Layer:
    """A layer to be made: files (bytes, None for a folder, ``=> `` before a hard link's target)."""

    files: Mapping[str, bytes | str | None] = field(default_factory=dict)
    compression: str = "gzip"
    media_type: str = OCI_LAYER
    archive: bytes | None = None

    @property
    def plain(self) -> bytes:
        if self.archive is not None:
            return self.archive
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as written:
            for name, content in self.files.items():
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type = tarfile.DIRTYPE
                elif isinstance(content, str):
                    info.type, info.linkname = tarfile.LNKTYPE, content.removeprefix("=> ")
                else:
                    info.size = len(content)
                written.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
        return held.getvalue()

    @property
    def blob(self) -> bytes:
        if self.compression == "gzip":
            return gzip.compress(self.plain, mtime=0)
        return zstandard.compress(self.plain) if self.compression == "zstd" else self.plain


def put(
    registry: Registry,
    *layers: Layer,
    tag: str = "latest",
    docker: bool = False,
    diff_ids: list[str] | None = None,
    platform: Platform | None = None,
) -> Reference:
    """Store an image, and return its reference by digest."""
    blobs = []
    for layer in layers:
        digest, size = registry.upload_blob(REPOSITORY, [layer.blob])
        blobs.append(Descriptor(layer.media_type, digest, size))
    config = build_config(
        platform=platform or Platform.here(),
        diff_ids=diff_ids or [digest_of(layer.plain) for layer in layers],
        history=[History(f"COPY layer{n} /") for n in range(1, len(layers) + 1)],
    )
    digest, size = registry.upload_blob(REPOSITORY, [config])
    raw = build_manifest(Descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, digest, size), blobs)
    media_type = OCI_MANIFEST
    if docker:
        media_type = DOCKER_MANIFEST
        raw = raw.replace(OCI_MANIFEST.encode(), media_type.encode())
    found = registry.put_manifest(REPOSITORY, tag, raw, media_type)
    return Reference(registry.address, REPOSITORY, digest=found)


def read(registry: Registry, reference: Reference, folder: Path, **options: Any) -> Contents:
    return contents.read(registry, reference, folder=folder, feedback=QuietFeedback(), **options)


STATUS = "var/lib/dpkg/status"


def stanzas(*packages: str) -> bytes:
    found = (package.split() for package in packages)
    return "\n".join(f"Package: {name}\nVersion: {version}\n" for name, version in found).encode()


LAYERED = (
    Layer({"etc/": None, "etc/os-release": b"ID=debian\n", "big": b"b" * 50_000, "kept": b"k"}),
    Layer({"app/": None, "app/a": b"a" * 300, "app/link": "=> app/a", STATUS: stanzas("a 1")}),
    Layer({"big": b"small now", "app/.wh.a": b"", STATUS: stanzas("a 1", "b 2")}),
    Layer(),
)


def test_an_image_is_read_as_a_container_sees_it(made: Counting, tmp_path: Path) -> None:
    feedback = QuietFeedback()
    reference = put(made, *LAYERED)
    found = contents.read(made, reference, folder=tmp_path / "layers", feedback=feedback)
    (bars,) = feedback.shown
    assert [(key, bar.finished) for key, bar in bars.bars.items()] == [
        (f"layer {number}", True) for number in (1, 2, 3, 4)
    ]
    rows = found.layers
    assert rows["number"].tolist() == [1, 2, 3, 4]
    assert rows["instruction"].tolist() == [f"COPY layer{number} /" for number in (1, 2, 3, 4)]
    assert rows["digest"].tolist() == [layer.digest for layer in found.image.manifest.layers]
    assert rows["download_bytes"].tolist() == [len(layer.blob) for layer in LAYERED]
    assert rows["unpacked_bytes"].tolist() == [50_011, 300 + 22, 9 + 45, 0]
    assert rows["files"].tolist() == [3, 3, 2, 0]
    assert rows["wasted_bytes"].tolist() == [50_000, 22, 0, 0]
    files: Any = found.files.set_index("path")
    assert files.loc["/app/link", ["type", "bytes", "layer"]].tolist() == ["hardlink", 300, 2]
    assert "/app/a" not in files.index
    assert files.loc["/big", ["bytes", "layer", "change"]].tolist() == [9, 3, "changed"]
    assert found.packages[["name", "layer"]].values.tolist() == [["a", 2], ["b", 3]]
    assert found.os_release == {"ID": "debian"}
    assert found.unpacked_bytes == found.visible_bytes + found.wasted_bytes == 50_387
    assert found.visible_bytes == files["bytes"].sum()
    assert found.download_bytes == rows["download_bytes"].sum()
    assert found.notes == ()


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize(
    ("compression", "media_type"),
    [
        ("gzip", OCI_LAYER),
        ("gzip", DOCKER_LAYER),
        ("none", "application/vnd.oci.image.layer.v1.tar"),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        # The bytes tell, not what the manifest calls them: engines read these as well.
        ("none", OCI_LAYER),
        ("gzip", "application/vnd.oci.image.layer.v1.tar"),
    ],
)
def test_each_kind_of_layer(
    made: Counting, tmp_path: Path, compression: str, media_type: str, docker: bool
) -> None:
    layer = Layer({"hello": b"world"}, compression=compression, media_type=media_type)
    found = read(made, put(made, layer, docker=docker), tmp_path)
    assert found.files["path"].tolist() == ["/hello"]
    assert found.layers["download_bytes"].tolist() == [len(layer.blob)]


def test_a_foreign_layer_is_left_out_with_a_note(made: Counting, tmp_path: Path) -> None:
    # The registry takes no manifest that says where else a layer is to be had; it may have it.
    foreign = Layer({"windows": b"1"}, media_type=FOREIGN_LAYER)
    reference = put(made, foreign, Layer({"mine": b"2"}))
    found = read(made, reference, tmp_path)
    assert found.files["path"].tolist() == ["/mine"]
    assert found.layers["unpacked_bytes"].tolist() == [0, 1]
    assert found.notes == ("layer 1 is a foreign one, which registries don't have: left out",)


@pytest.fixture(scope="module")
def index(own: RegistryServer) -> Reference:
    """An index of two platforms, each with an attestation beside it, as BuildKit makes them."""
    registry = own.registry()
    entries = []
    for architecture in ("amd64", "arm64"):
        platform = Platform("linux", architecture)
        one = put(registry, Layer({architecture: b"1"}), platform=platform)
        attestation = put(
            registry, Layer({"in-toto": b"{}"}), platform=Platform("unknown", "unknown")
        )
        for reference, of in ((one, architecture), (attestation, "unknown")):
            raw, _ = registry.manifest_bytes(REPOSITORY, reference.digest or "")
            system = "linux" if of == architecture else "unknown"
            entries.append(
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": reference.digest,
                    "size": len(raw),
                    "platform": {"os": system, "architecture": of},
                }
            )
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    digest = registry.put_manifest(REPOSITORY, "index", raw, OCI_INDEX)
    return Reference(registry.address, REPOSITORY, digest=digest)


def test_an_index_is_read_for_a_platform_and_its_attestations_are_not(
    made: Counting, tmp_path: Path, index: Reference
) -> None:
    for architecture in ("amd64", "arm64"):
        found = read(made, index, tmp_path, platform=Platform("linux", architecture))
        assert found.files["path"].tolist() == [f"/{architecture}"]
    with pytest.raises(NotInRegistry, match=r"offers linux/amd64, linux/arm64\."):
        read(made, index, tmp_path, platform=Platform("linux", "s390x"))


def test_what_is_kept_is_not_fetched_again(made: Counting, tmp_path: Path) -> None:
    first = read(made, put(made, *LAYERED), tmp_path)
    layers = [layer.digest for layer in first.image.manifest.layers]
    made.opened.clear()
    again = read(made, put(made, *LAYERED), tmp_path)
    assert made.opened == [first.image.manifest.config.digest]
    assert again.files.equals(first.files) and again.packages.equals(first.packages)
    more = read(made, put(made, *LAYERED, Layer({"new": b"1"})), tmp_path)
    new = more.image.manifest.layers[-1].digest
    assert [digest for digest in made.opened if digest in {*layers, new}] == [new]
    assert more.layers["number"].tolist() == [1, 2, 3, 4, 5]


def test_a_layer_that_occurs_twice_is_fetched_once(made: Counting, tmp_path: Path) -> None:
    found = read(made, put(made, LAYERED[0], LAYERED[0], Layer(), Layer()), tmp_path)
    assert len(made.opened) == 3  # with the config
    assert found.layers["wasted_bytes"].tolist() == [50_011, 0, 0, 0]
    assert found.visible_bytes == 50_011
    assert found.download_bytes == len(LAYERED[0].blob) + len(Layer().blob)


def test_a_damaged_file_of_the_cache_is_noticed_and_read_again(
    made: Counting, tmp_path: Path
) -> None:
    reference = put(made, *LAYERED)
    first = read(made, reference, tmp_path)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == len(LAYERED)
    for number, file in enumerate(files):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        damaged = [b"", content[:-7], content, b"{}"]
        file.write_bytes(bytes(damaged[number]))
    made.opened.clear()
    again = read(made, reference, tmp_path)
    assert len(made.opened) == 1 + len(LAYERED)
    assert again.files.equals(first.files)
    made.opened.clear()
    read(made, reference, tmp_path)
    assert len(made.opened) == 1


SMALL = Layer({"file": b"1" * 2000})


@pytest.mark.parametrize(
    ("layer", "cause"),
    [
        (Layer(archive=b"this is no tar archive" * 100), "it is not a tar archive"),
        (Layer(archive=b"PK\3\4" + bytes(2000), compression="none"), "it is not a tar archive"),
        (Layer(archive=SMALL.plain[:1500]), "it is cut off in '/file'"),
        (Layer(archive=SMALL.plain[:700]), "it is cut off in '/file'"),
        (
            Layer(
                archive=SMALL.plain[:124]
                + b"\x80"
                + (10**15).to_bytes(11, "big")
                + SMALL.plain[136:]
            ),
            "it is not a tar archive (the checksum",
        ),
    ],
)
def test_a_layer_that_is_no_whole_archive(
    made: Counting, tmp_path: Path, layer: Layer, cause: str
) -> None:
    reference = put(made, LAYERED[0], layer)
    with pytest.raises(DamagedContent) as caught:
        read(made, reference, tmp_path)
    assert f"reading layer 2 of '{reference}' ('sha256:" in str(caught.value)
    assert cause in str(caught.value)


def test_diff_ids_are_verified_also_for_kept_layers(made: Counting, tmp_path: Path) -> None:
    wrong = put(made, SMALL, diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(DamagedContent, match=r"the image's config promises sha256:0000"):
        read(made, wrong, tmp_path)
    assert not any(file.is_file() for file in tmp_path.rglob("*"))
    read(made, put(made, SMALL), tmp_path)
    with pytest.raises(DamagedContent, match=r"the image's config promises sha256:0000"):
        read(made, wrong, tmp_path)


@pytest.mark.parametrize("diff_ids", [["sha256:" + "0" * 64] * 2, ["md5:nothing"]])
def test_a_config_that_does_not_fit(made: Counting, tmp_path: Path, diff_ids: list[str]) -> None:
    with pytest.raises(DamagedContent, match=r"diff IDs for 1 layers"):
        read(made, put(made, SMALL, diff_ids=diff_ids), tmp_path)


@pytest.mark.parametrize(
    ("how", "error"),
    [("truncated", "bytes instead of"), ("flipped", "do not match the digest")],
)
def test_a_blob_that_was_damaged_in_the_registry(
    own: RegistryServer, made: Counting, tmp_path: Path, how: str, error: str
) -> None:
    layer = Layer({"random": os.urandom(300_000), how: b""})
    reference = put(made, layer)
    digest = digest_of(layer.blob).removeprefix("sha256:")
    path = f"/var/lib/registry/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    own.storage(
        {
            "truncated": ["truncate", "-s", "100", path],
            "flipped": ["sh", "-c", f"printf labapp | dd of={path} bs=1 seek=90000 conv=notrunc"],
        }[how]
    )
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(DamagedContent, match=error):
            read(made, reference, tmp_path)


def names(made: Counting, reference: Reference, folder: Path) -> list[str]:
    table = contents.packages_of(made, reference, folder=folder)
    return table["name"].tolist()


LOWEST = Layer({"filler": os.urandom(100_000), STATUS: stanzas("old 1")})


@pytest.mark.parametrize(
    ("layers", "found", "read_layers"),
    [
        ([LOWEST], ["old"], 1),
        ([LOWEST, Layer({STATUS: stanzas("new 1")})], ["new"], 1),
        ([LOWEST, Layer({STATUS: stanzas("new 1")}), Layer({"app": b"1"})], ["new"], 2),
        ([LOWEST, Layer({"var/lib/.wh.dpkg": b""})], [], 2),
        ([LOWEST, Layer({"var/lib/dpkg/.wh..wh..opq": b""})], [], 2),
        ([LOWEST, Layer({"var/lib/dpkg/.wh.status": b""}), Layer({"x": b""})], [], 3),
        ([Layer({"lib/apk/db/installed": b"P:musl\nV:1\n"}), Layer({"x": b""})], ["musl"], 2),
        (
            [
                Layer({f"{STATUS}.d/one": stanzas("one 1"), f"{STATUS}.d/two": stanzas("two 1")}),
                Layer({f"{STATUS}.d/.wh.two": b"", f"{STATUS}.d/three": stanzas("three 1")}),
            ],
            ["one", "three"],
            2,
        ),
        ([Layer({"app": b"1"})], [], 1),
    ],
)
def test_packages_alone_are_read_from_the_top_down(
    made: Counting, tmp_path: Path, layers: list[Layer], found: list[str], read_layers: int
) -> None:
    reference = put(made, *layers)
    assert names(made, reference, tmp_path) == found
    assert len(made.opened) == 1 + read_layers
    whole = read(made, reference, tmp_path)
    assert whole.packages["name"].tolist() == found
    made.opened.clear()
    assert names(made, reference, tmp_path) == found
    assert len(made.opened) == 1
    table = contents.packages_of(made, reference, folder=tmp_path)
    assert table.equals(whole.packages.drop(columns="layer"))


# What the peers say of the same images.

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("variant", ["full", "slim"])
def test_syft_finds_the_same_packages(inside: dict[str, Contents], variant: str) -> None:
    found = inside[variant]
    environ = os.environ | {
        "SYFT_REGISTRY_INSECURE_USE_HTTP": "true",
        "SYFT_CHECK_FOR_APP_UPDATE": "false",
    }
    source = f"registry:{str(found.image.pinned).replace('localhost', '127.0.0.1')}"
    command = [str(BIN / "syft"), "-q", "-o", "json", source]
    output = subprocess.run(command, check=True, capture_output=True, env=environ).stdout
    layers = dict(zip(found.image.config.diff_ids, found.layers["number"], strict=True))
    theirs = set()
    where: dict[str, set[int]] = {}
    for artifact in json.loads(output)["artifacts"]:
        source_package = artifact.get("metadata", {}).get("source", "") or artifact["name"]
        if artifact["type"] == "python":
            source_package = artifact["name"]
            where[artifact["name"]] = {layers[each["layerID"]] for each in artifact["locations"]}
        theirs.add((artifact["type"], artifact["name"], artifact["version"], source_package))
    packages = found.packages.copy()
    # Syft tells Python's names in the form that indexes compare them by; the lab, as written.
    is_python = packages["kind"] == "python"
    for column in ("name", "source"):
        same = packages[column].str.lower().str.replace("_", "-")
        packages[column] = packages[column].mask(is_python, same)
    ours = packages[["kind", "name", "version", "source"]]
    assert set(ours.itertuples(index=False, name=None)) == theirs
    assert len(theirs) > 100
    # Of Debian's packages Syft tells the layer of the newest database, not the package's own.
    python = packages[is_python]
    assert {name: {layer} for name, layer in python[["name", "layer"]].values} == where


def dive(archive: Path, report: Path) -> dict[str, Any]:
    command = [str(BIN / "dive"), "--json", str(report), f"docker-archive://{archive}"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(report.read_bytes())  # type: ignore[no-any-return]


def docker_archive(registry: Registry, image: RegistryImage, path: Path) -> Path:
    """Write an image as ``docker save`` does, which is what dive reads."""
    layers = []
    with tarfile.open(path, "w") as written:

        def add(name: str, content: Path | bytes) -> None:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                written.addfile(info, io.BytesIO(content))
            else:
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    written.addfile(info, file)

        for number, layer in enumerate(image.manifest.layers):
            plain = path.with_suffix(".layer")
            inflater = zlib.decompressobj(31)
            with plain.open("wb") as file:
                for chunk in registry.open_blob(image.reference.repository, layer.digest):
                    file.write(inflater.decompress(chunk))
            layers.append(f"{number}/layer.tar")
            add(layers[-1], plain)
            plain.unlink()
        add("config.json", image.config.raw)
        manifest = [{"Config": "config.json", "RepoTags": ["made:1"], "Layers": layers}]
        add("manifest.json", json.dumps(manifest).encode())
    return path


def by_dives_rule(found: Contents) -> int:
    """The bytes that dive calls inefficient: every copy of a path that two layers have.

    The lab counts only what can't be reached any more. dive counts the visible copy as well, and
    leaves out what goes with a deleted or replaced folder, as it goes by the folder's path alone.
    """
    changes = found.changes
    total = 0
    for _, rows in changes.groupby("path"):
        if len(rows) > 1:
            total += int(rows["bytes"].sum())
    return total


DIVED = {
    "replaced and deleted": (
        *LAYERED[:2],
        replace(LAYERED[2], files={**LAYERED[2].files, "kept": b"again"}),
    ),
    "a folder deleted": (
        Layer({"a/": None, "a/b/": None, "a/b/one": b"1" * 100, "a/two": b"2" * 20, "c": b"3"}),
        Layer({"a/": None, "a/.wh.b": b""}),
    ),
    "an opaque folder": (
        Layer({"a/": None, "a/one": b"1" * 100, "a/two": b"2" * 20, "c": b"3"}),
        Layer({"a/": None, "a/.wh..wh..opq": b"", "a/one": b"new"}),
    ),
}


def check_with_dive(registry: Registry, found: Contents, folder: Path) -> None:
    archive = docker_archive(registry, found.image, folder / "image.tar")
    said = dive(archive, folder / "said.json")
    archive.unlink()
    sizes = [layer["sizeBytes"] for layer in said["layer"]]
    assert sizes == found.layers["unpacked_bytes"].tolist()
    assert said["image"]["sizeBytes"] == found.unpacked_bytes
    assert said["image"]["inefficientBytes"] == by_dives_rule(found)


@pytest.mark.parametrize("name", DIVED)
def test_dive_counts_the_same_bytes_of_layers_on_each_other(
    made: Counting, tmp_path: Path, name: str
) -> None:
    found = read(made, put(made, *DIVED[name]), tmp_path / "layers")
    check_with_dive(made, found, tmp_path)
    assert found.wasted_bytes > 0


@pytest.mark.parametrize("variant", ["full", "slim"])
def test_dive_counts_the_same_bytes_of_the_application(
    registry: Registry, inside: dict[str, Contents], tmp_path: Path, variant: str
) -> None:
    check_with_dive(registry, inside[variant], tmp_path)
