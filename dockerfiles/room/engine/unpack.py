"""Unpack a bundle's images: as files of a registry's storage, and the registry's own as an archive.

Source: the paths are those of CNCF Distribution 2 and 3, registry/storage/paths.go; the archive is
that of ``docker save``.
"""

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

bundle, target = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
content = target / "registry" / "docker" / "registry" / "v2"


def write(path: Path, data: bytes) -> None:
    """Write a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def link(path: Path, digest: str) -> None:
    """Write down that something is here, by its digest."""
    write(path / "link", digest.encode())


def store(digest: str, data: bytes) -> None:
    """Write a blob, once its digest is found right."""
    kind, _, value = digest.partition(":")
    if hashlib.sha256(data).hexdigest() != value:
        sys.exit(f"unpacking the bundle: '{digest}' is damaged. Save the bundle again.")
    write(content / "blobs" / kind / value[:2] / value / "data", data)


record = {}
for name in bundle.namelist():
    if not name.startswith("images/localhost/base/"):
        continue
    raw = bundle.read(name)
    digest, manifest = f"sha256:{hashlib.sha256(raw).hexdigest()}", json.loads(raw)
    if "layers" not in manifest:
        sys.exit(f"unpacking the bundle: '{name}' is for several platforms; save it for one.")
    repository, _, tag = name.removeprefix("images/localhost/").partition(":")
    place, blobs = content / "repositories" / repository, [manifest["config"], *manifest["layers"]]
    store(digest, raw)
    for blob in blobs:
        store(blob["digest"], bundle.read(f"blobs/{blob['digest']}"))
        link(place / "_layers" / blob["digest"].replace(":", "/"), blob["digest"])
    link(place / "_manifests" / "revisions" / digest.replace(":", "/"), digest)
    link(place / "_manifests" / "tags" / tag / "current", digest)
    link(place / "_manifests" / "tags" / tag / "index" / digest.replace(":", "/"), digest)
    config = json.loads(bundle.read(f"blobs/{manifest['config']['digest']}"))
    labels = config.get("config", {}).get("Labels") or {}
    public = "registry" if repository == "base/registry" else f"{repository[5:]}:{tag}"
    record[public] = {"digest": digest, "source": labels.get("labapp.base.source", "bundle")}
    if public == "registry":
        config_name, *layers = (blob["digest"].partition(":")[2] for blob in blobs)
        listing = [{"Config": config_name, "RepoTags": ["labapp/registry:room"], "Layers": layers}]
        with tarfile.open(target / "registry.tar", "w") as archive:
            files = {"manifest.json": json.dumps(listing).encode()}
            files |= {
                d.partition(":")[2]: bundle.read(f"blobs/{d}") for d in (b["digest"] for b in blobs)
            }
            for file, data in files.items():
                entry = tarfile.TarInfo(file)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
write(target / "bases.json", json.dumps(record, indent=2).encode())
