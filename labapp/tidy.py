"""What of the disk no work needs any more: shown with its sizes, then freed.

Kept is what a tag names, what a kept index names, and each digest that something of the learner's
names: a receipt, a file in ``work``, a cell of a chapter, a container.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import docker.errors

from labapp import feedback
from labapp.errors import LabError
from labapp.feedback import amount
from labapp.journey import transfer
from labapp.journey.bases import engine_name
from labapp.machine import engine as engines
from labapp.machine import own_engine
from labapp.machine.engine import Engine
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State

OLD_SECONDS = 30 * 24 * 3600
"""When a layer was read so long ago, what was read of it goes; it can be read again."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Heap(NamedTuple):
    """Things that can go: what, how many bytes, and what removes them and returns the bytes."""

    what: str
    size: int
    free: Callable[[], int]


def plan(state: State, notebooks: Path) -> list[Heap]:
    """Return what can go, in the order in which to free it; nothing is removed yet.

    EngineNotFound if nobody can tell what is on the engine.
    """
    engine = engines.find(state)
    with engine.doing("looking for what can go"):
        # Last what needs a container to be freed: on a full disk, none can be made.
        keep = named(state, notebooks) | _in_containers(engine)
        records = _unused_records(engine, state)
        what = f"{len(records)} records of the build cache; the next builds take longer"
        cache = Heap(what, sum(records.values()), partial(_prune, engine, state))
        found = [_images(engine, state, keep), cache, _old_layers(state)]
    return [heap for heap in (*found, *_registries(engine, state, keep)) if heap.size]


def named(state: State, notebooks: Path) -> set[str]:
    """Return the digests in the lab's own files, in the learner's, and in the chapters' cells."""
    sealed = ["delivery", *(f"attacks/{each.stem}" for each in state.folder.glob("attacks/*.json"))]
    found = set(_DIGEST.findall(str([state.unseal(name) for name in sealed])))
    for file in (*state.folder.glob("*.json"), *notebooks.rglob("*")):
        if file.is_file() and (file.suffix == ".ipynb" or file.stat().st_size < 1e6):
            text = file.read_text(encoding="utf-8", errors="ignore")
            # What a cell printed is not what it asks for.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            found.update(_DIGEST.findall(text))
    return found


def taken(state: State) -> str:
    """Return what the lab takes, in words: the files of its registry, and its own."""
    # An engine of the lab's own has too many files to be counted quickly.
    mine = (top for top in state.folder.iterdir() if not top.name.startswith("engine"))
    files = (file for top in mine for file in (top, *top.rglob("*")) if file.is_file())
    told = f"{amount(sum(each.stat().st_size for each in files))} in the state folder"
    with contextlib.suppress(LabError):
        used = RegistryServer(engine=engines.find(state), state=state).used_bytes()
        told += f", {amount(used)} in the registry" if used else ""
    return told


def _in_containers(engine: Engine) -> set[str]:
    containers, images = engine.client.api.containers(all=True), engine.client.api.images()
    used = {each["ImageID"] for each in containers}
    digests = [each.get("RepoDigests") for each in images if each["Id"] in used]
    return {*_DIGEST.findall(json.dumps([containers, digests]))}


def _images(engine: Engine, state: State, keep: Collection[str]) -> Heap:
    """Return this lab's images without a tag; for classic builders, these are the cache as well."""
    api, starts = engine.client.api, (engine_name(state), _address(state))
    own, going = engine.host == own_engine.host(state), dict[str, int]()
    for image in api.df()["Images"] or ():
        names = {*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())}
        tags = {name for name in names if "@" not in name and "<none>" not in name}
        kept = {image["Id"], *_DIGEST.findall(" ".join(names))} & {*keep}
        mine = own or (image.get("Labels") or {}).get(LABEL) == state.lab_id
        if not tags and not kept and (mine or any(name.startswith(starts) for name in names)):
            going[image["Id"]] = image["Size"] - max(image.get("SharedSize") or 0, 0)

    def free() -> int:
        freed = 0
        for each, size in going.items():
            with contextlib.suppress(docker.errors.APIError):  # One has been built on it since.
                api.remove_image(each)
                freed += size
        # Records that these images had shared are of no use to anybody now.
        return freed + _prune(engine, state)

    what = f"{len(going)} images without a tag on the engine (at least)"
    return Heap(what, sum(going.values()), free)


def _prune(engine: Engine, state: State) -> int:
    return transfer.prune(engine, [*_unused_records(engine, state)])


def _unused_records(engine: Engine, state: State) -> dict[str, int]:
    """Return what BuildKit keeps of builds on this lab's base images: bytes by ID, oldest first.

    There are no labels in it. A record tells the address that an image came from, and what it was
    built on.
    """
    own, mine = engine.host == own_engine.host(state), set[str]()
    records = transfer.build_cache(engine)
    for key, record in records.items():
        came_from_here = own or _address(state) in record.get("Description", "")
        if came_from_here or {*record["Parents"]} & mine:
            mine.add(key)
    free = {key for key, each in records.items() if not each["Shared"] and not each["InUse"]}
    return {key: each["Size"] for key, each in records.items() if key in mine & free}


def _address(state: State) -> str:
    return f"localhost:{state.read('registry').get('port')}/"


def _registries(engine: Engine, state: State, keep: Collection[str]) -> Iterator[Heap]:
    servers = []
    if state.read("registry"):
        servers.append(RegistryServer(engine=engine, state=state))
    if state.read("private"):
        from labapp.private.registry import PrivateRegistry  # cryptography takes a while

        servers.append(PrivateRegistry(engine=engine, state=state).server)
    for server in servers:
        try:
            blobs = server.garbage(keep).blobs
        except LabError as error:  # The rest can go all the same.
            feedback.say(str(error))
            continue
        what = f"{len(blobs)} blobs and cut-off uploads in '{server.name}' that no image needs"
        yield Heap(what, sum(blobs.values()), partial(server.collect_garbage, keep))


def _old_layers(state: State) -> Heap:
    from labapp.inside.inspection import CACHE
    from labapp.inside.layers import FORMAT

    oldest = time.time() - OLD_SECONDS
    files = {file: file.stat() for file in (state.folder / CACHE / "layers").glob("*/*")}
    old = {
        file: stat.st_size
        for file, stat in files.items()
        if file.parent.name != f"v{FORMAT}" or stat.st_mtime < oldest
    }

    def free() -> int:
        for file in old:
            file.unlink(missing_ok=True)
        return sum(old.values())

    return Heap(f"{len(old)} layers that 'inspect' read long ago", sum(old.values()), free)
