"""What the peers say of the same images: Syft of their packages, dive of their bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from made_images import Files, Memory, put, read

from labapp.inside.image import Contents
from labapp.machine.engine import tar_of
from labapp.registry.client import Registry, RegistryImage

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
    return int(changes["bytes"][changes["path"].duplicated(keep=False)].sum())


DIVED: list[Files] = [
    # Files replaced and deleted.
    {"etc/": b"", "big": b"b" * 50_000, "kept": b"k"},
    {"app/": b"", "app/a": b"a" * 300, "app/link": "=> app/a"},
    {"big": b"small now", "app/.wh.a": b"", "kept": b"again"},
    # A folder deleted.
    {"a/": b"", "a/b/": b"", "a/b/one": b"1" * 100, "a/two": b"2" * 20, "c": b"3"},
    {"a/": b"", "a/.wh.b": b""},
    # A folder made opaque.
    {"o/": b"", "o/one": b"1" * 100, "o/two": b"2" * 20},
    {"o/": b"", "o/.wh..wh..opq": b"", "o/one": b"new"},
]


def check_with_dive(registry: Registry, found: Contents, folder: Path) -> None:
    archive = docker_archive(registry, found.image, folder / "image.tar")
    report = folder / "said.json"
    command = [str(BIN / "dive"), "--json", str(report), f"docker-archive://{archive}"]
    subprocess.run(command, check=True, capture_output=True)
    said = json.loads(report.read_bytes())
    sizes = [layer["sizeBytes"] for layer in said["layer"]]
    assert sizes == found.layers["unpacked_bytes"].tolist()
    assert said["image"]["sizeBytes"] == found.unpacked_bytes
    assert said["image"]["inefficientBytes"] == by_dives_rule(found)


def test_dive_counts_the_same_bytes_of_layers_on_each_other(tmp_path: Path) -> None:
    registry = Memory()
    put(registry, "shop/web", "1", DIVED)
    found = read(registry, tmp_path / "layers")
    check_with_dive(registry, found, tmp_path)
    assert found.wasted_bytes > 0


def test_dive_counts_the_same_bytes_of_the_application(
    registry: Registry, inside: dict[str, Contents], tmp_path: Path
) -> None:
    check_with_dive(registry, inside["slim"], tmp_path)
