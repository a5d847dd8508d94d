"""What the engine makes of odd layers, and what the lab says is in them."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from pathlib import Path

import docker.errors
import pytest
from made_images import put
from odd_layers import BROKEN, HIDING, MANY, ONE, TAKEN_BY_SOME

from labapp.bench import Bench
from labapp.errors import DamagedContent
from labapp.inside import image
from labapp.registry.manifests import digest_of

Facts = tuple[object, ...]
"""Kind, mode, owner, group, and where a symbolic link leads."""

KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.LNKTYPE), "file"),
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE), "device"),
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo",
}
ITS_OWN = ("/dev/", "/proc/", "/sys/", "/run/", "/etc/", "/.dockerenv")
"""How the paths begin of what engines put into every container."""

LAYERS = {"archives": [data for data, (path, *_) in ONE if "x5c" not in path]}
LAYERS |= {name: layers for name, (layers, _) in MANY.items()} | TAKEN_BY_SOME | HIDING
LAYERS |= {f"broken {number}": [data] for number, (data, _) in enumerate(BROKEN[::5])}


def engine_sees(bench: Bench, reference: str) -> tuple[dict[str, Facts], int] | None:
    """What a container has, and the bytes of its files; None where the engine refuses the image."""
    client, found, total = bench.engine.client, dict[str, Facts](), 0
    try:
        client.images.pull(reference)
    except docker.errors.APIError:
        return None
    container = client.containers.create(reference, ["none"], labels=bench.state.labels)
    exported = b"".join(container.export())
    container.remove()
    client.images.remove(reference, force=True)
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        for each in archive:
            name = os.fsencode(each.name).decode("utf-8", "backslashreplace")
            target = each.linkname if each.issym() else ""
            facts = (KINDS[each.type], each.mode & 0o7777, each.uid, each.gid, target)
            if each.islnk():
                facts = found[posixpath.normpath(f"/{each.linkname}")]
            found[posixpath.normpath(f"/{name}")] = facts
            total += each.size if each.isreg() else 0
    return found, total


def lab_sees(bench: Bench, reference: str, folder: Path) -> tuple[dict[str, Facts], int] | None:
    try:
        contents = image.read(bench.registry, bench.registry.image(reference), folder=folder)
    except DamagedContent:
        return None
    files = contents.files.assign(type=contents.files["type"].replace("hardlink", "file"))
    files["target"] = files["target"].where(files["type"] == "symlink", "")
    rows = files[["path", "type", "mode", "uid", "gid", "target"]].itertuples(index=False)
    return {path: tuple(facts) for path, *facts in rows}, contents.visible_bytes


@pytest.mark.parametrize("name", LAYERS)
def test_a_container_sees_what_the_lab_says(name: str, bench: Bench, tmp_path: Path) -> None:
    repository = f"odd/{digest_of(name.encode())[7:19]}"
    made = put(bench.registry, repository, "1", LAYERS[name])
    reference = f"{bench.registry.address}/{repository}:1"
    theirs, ours = engine_sees(bench, reference), lab_sees(bench, reference, tmp_path)
    bench.registry.delete_manifest(repository, made["digest"])
    if "device" in name and bench.engine.rootless:
        return  # who is not root makes none
    if name in HIDING or name.startswith("broken"):
        assert ours is None and (theirs is None or name in HIDING)
    elif theirs is None:
        assert name in TAKEN_BY_SOME
    else:
        assert ours is not None
        (seen, weighs), (told, said) = theirs, ours
        # Folders that no layer has an entry for are none of the lab's rows.
        extra = {path for path, facts in seen.items() if facts[0] != "directory"} - told.keys()
        assert {path for path in extra if not path.startswith(ITS_OWN)} == set()
        if name not in TAKEN_BY_SOME:
            assert (told, said) == ({path: seen.get(path) for path in told}, weighs)
