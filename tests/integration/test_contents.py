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
from assembly import build_config, build_manifest

from labapp import feedback as ambient
from labapp.errors import DamagedContent, NotInRegistry
from labapp.feedback import QuietFeedback
from labapp.inside import image
from labapp.inside.image import Contents
from labapp.machine.engine import Engine, tar_of
from labapp.reference import Reference
from labapp.registry.client import Registry, RegistryImage
from labapp.registry.manifests import (
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
        own.start(image=str(state.read("registry")["image"]))
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
    with ambient.using(QuietFeedback()):
        return image.read(registry, reference, folder=folder, **options)


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
    reference = put(made, *LAYERED)
    with ambient.using(QuietFeedback()) as told:
        found = image.read(made, reference, folder=tmp_path / "layers")
    assert isinstance(told, QuietFeedback)
    (bars,) = told.shown
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
def test_each_kind_of_layer(made: Counting, tmp_path: Path, docker: bool) -> None:
    plain = "application/vnd.oci.image.layer.v1.tar"
    # The bytes tell, not what the manifest calls them: engines read these as well.
    kinds = [
        ("gzip", OCI_LAYER),
        ("gzip", DOCKER_LAYER),
        ("none", plain),
        ("zstd", f"{plain}+zstd"),
    ]
    kinds += [("none", OCI_LAYER), ("gzip", plain)]
    layers = [
        Layer({f"{number}": b"1"}, compression=compression, media_type=media_type)
        for number, (compression, media_type) in enumerate(kinds)
    ]
    # The registry takes no manifest that says where else a foreign layer is to be had.
    layers.append(Layer({"windows": b"1"}, media_type=FOREIGN_LAYER))
    found = read(made, put(made, *layers, docker=docker), tmp_path)
    assert found.files["path"].tolist() == [f"/{number}" for number in range(6)]
    assert found.layers["download_bytes"].tolist() == [len(layer.blob) for layer in layers]
    assert ["layer 7" in note for note in found.notes] == [True]


def test_an_index_is_read_for_a_platform_and_its_attestations_are_not(
    made: Counting, tmp_path: Path
) -> None:
    entries = []
    for architecture, system in (("amd64", "linux"), ("unknown", "unknown"), ("arm64", "linux")):
        platform = Platform(system, architecture)
        one = put(made, Layer({architecture: b"1"}), platform=platform)
        raw, _ = made.manifest_bytes(REPOSITORY, one.digest or "")
        described = {"mediaType": OCI_MANIFEST, "digest": one.digest, "size": len(raw)}
        entries.append(described | {"platform": {"os": system, "architecture": architecture}})
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    digest = made.put_manifest(REPOSITORY, "index", raw, OCI_INDEX)
    index = Reference(made.address, REPOSITORY, digest=digest)
    for architecture in ("amd64", "arm64"):
        found = read(made, index, tmp_path, platform=Platform("linux", architecture))
        assert found.files["path"].tolist() == [f"/{architecture}"]
    with pytest.raises(NotInRegistry, match="linux/amd64, linux/arm64"):
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
    for file, damage in zip(files, (b"", b"{}", b"x" * 500), strict=False):
        file.write_bytes(damage)
    for fetched in (3, 0):
        made.opened.clear()
        assert read(made, reference, tmp_path).files.equals(first.files)
        assert len(made.opened) == 1 + fetched


SMALL = Layer({"file": b"1" * 2000})


def test_a_layer_that_is_no_whole_archive(made: Counting, tmp_path: Path) -> None:
    reference = put(made, LAYERED[0], Layer(archive=SMALL.plain[:1500]))
    with pytest.raises(DamagedContent) as caught:
        read(made, reference, tmp_path)
    assert f"layer 2 of '{reference}' ('sha256:" in str(caught.value)
    assert "'/file'" in str(caught.value)


def test_diff_ids_are_verified_also_for_kept_layers(made: Counting, tmp_path: Path) -> None:
    wrong = put(made, SMALL, diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(DamagedContent, match="sha256:0000"):
        read(made, wrong, tmp_path)
    assert not any(file.is_file() for file in tmp_path.rglob("*"))
    read(made, put(made, SMALL), tmp_path)
    with pytest.raises(DamagedContent, match="sha256:0000"):
        read(made, wrong, tmp_path)
    for diff_ids in (["sha256:" + "0" * 64] * 2, ["md5:nothing"]):
        with pytest.raises(DamagedContent, match="for 1 layers"):
            read(made, put(made, SMALL, diff_ids=diff_ids), tmp_path)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_blob_that_was_damaged_in_the_registry(
    own: RegistryServer, made: Counting, tmp_path: Path, how: str
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
        with pytest.raises(DamagedContent, match=digest):
            read(made, reference, tmp_path)


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
    files = {
        f"{number}/layer.tar": zlib.decompress(
            b"".join(registry.open_blob(image.reference.repository, layer.digest)), 31
        )
        for number, layer in enumerate(image.manifest.layers)
    }
    manifest = [{"Config": "config.json", "RepoTags": ["made:1"], "Layers": list(files)}]
    files |= {"config.json": image.config.raw, "manifest.json": json.dumps(manifest).encode()}
    path.write_bytes(tar_of(files))
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


def test_dive_counts_the_same_bytes_of_the_application(
    registry: Registry, inside: dict[str, Contents], tmp_path: Path
) -> None:
    check_with_dive(registry, inside["slim"], tmp_path)
