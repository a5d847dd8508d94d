"""What a tidy frees for real, and what must be there afterwards: registry, engine, build cache."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from made_images import put, put_image, put_index

from labapp import tidy
from labapp.bench import Bench, prepare
from labapp.errors import NotInRegistry, RegistryError
from labapp.feedback import QuietFeedback
from labapp.journey.build import build
from labapp.journey.transfer import push, remove
from labapp.machine.engine import Engine
from labapp.registry.client import Registry
from labapp.registry.manifests import OCI_MANIFEST, Manifest
from labapp.registry.server import RegistryServer
from labapp.state import State


@pytest.fixture
def own(tmp_path: Path, engine: Engine, server: RegistryServer) -> Iterator[RegistryServer]:
    """A registry of one test."""
    own = RegistryServer(engine=engine, state=State.open(tmp_path))
    own.start(image=server.image)
    yield own
    own.remove()


def is_whole(registry: Registry, repository: str, identifier: str) -> bool:
    found = registry.manifest(repository, identifier)
    if isinstance(found, Manifest):
        return registry.damaged_blobs(repository, found, contents=True) == []
    return all(is_whole(registry, repository, each.digest) for each in found.manifests)


def put_both(registry: Registry, repository: str) -> str:
    """Store an index whose two images have no tag; return its digest."""
    platforms = [{"os": "linux", "architecture": each} for each in ("amd64", "arm64")]
    images = [put(registry, repository, "", [b"both"], platform=each) for each in platforms]
    return put_index(registry, repository, "both", images)


@pytest.mark.parametrize("running", [True, False])
def test_what_nothing_names_is_freed_and_the_rest_is_whole(
    own: RegistryServer, running: bool
) -> None:
    registry = own.registry()
    assert own.collect_garbage(()) == 0
    # The tag moves from the first to the second, which share a layer.
    untagged = put_image(registry, "shop/web", "1", "amd64")
    tagged = put_image(registry, "shop/web", "1", "arm64")
    pinned = put_image(registry, "shop/pinned", "2", "amd64")
    gone = put_image(registry, "shop/gone", "3", "amd64")
    layer = registry.image(f"{own.address}/shop/gone:3").manifest.layers[0].digest
    put_image(registry, "shop/pinned", "2", "arm64")
    subject = {"mediaType": OCI_MANIFEST, "digest": tagged, "size": 1}
    signature = put(registry, "shop/web", "", [b"signed"], pack=bytes, subject=subject)["digest"]
    index, by_digest = put_both(registry, "shop/both"), put_both(registry, "shop/by-digest")
    registry.delete_manifest("shop/gone", gone)
    loose, size = registry.upload_blob("shop/web", [b"of no image"])
    put_image(registry, "shop/by-digest", "both", "s390x")
    if not running:
        own.stop()

    told = own.garbage({pinned, by_digest}).blobs
    assert {untagged, gone, layer, loose} <= told.keys()
    assert told[loose] == size
    assert own.collect_garbage({pinned, by_digest}) == sum(told.values())
    assert own.is_running() == running
    assert own.garbage({pinned, by_digest}).blobs == {}

    registry = own.start()
    for repository, identifier in (
        ("shop/web", "1"),
        ("shop/web", tagged),
        ("shop/web", signature),
        ("shop/pinned", pinned),
        ("shop/both", index),
        ("shop/by-digest", by_digest),
    ):
        assert is_whole(registry, repository, identifier)
    with pytest.raises(NotInRegistry):
        registry.manifest("shop/web", untagged)
    assert [registry.blob_size("shop/gone", each) for each in (gone, layer)] == [None, None]
    # What was freed can come back.
    assert put_image(registry, "shop/gone", "3", "amd64") == gone
    assert is_whole(registry, "shop/gone", "3")


def test_nothing_is_touched_while_somebody_pushes(own: RegistryServer) -> None:
    registry, address = own.registry(), f"http://{own.address}"
    loose, _ = registry.upload_blob("shop/web", [b"of no image yet"])
    with requests.Session() as curl:
        curl.trust_env = False
        place = curl.post(f"{address}/v2/shop/web/blobs/uploads/").headers["Location"]
        assert curl.patch(f"{address}{place}", data=b"half a la").status_code == 202
    with pytest.raises(RegistryError, match="pushes"):
        own.collect_garbage(())
    assert registry.blob_size("shop/web", loose) is not None


def test_a_start_leaves_the_build_cache_and_a_tidy_frees_it(
    bench: Bench, slim: str, tmp_path: Path, told: QuietFeedback
) -> None:
    repository = f"test/{uuid.uuid4().hex[:8]}"
    tag = f"{bench.registry.address}/{repository}:1"
    (tmp_path / "Dockerfile").write_text(f"FROM {slim}\nRUN echo {tag} > /one\nCOPY text /text\n")
    for heap in tidy.plan(bench.state, tmp_path):
        heap.free()
    # What containers of other tests still run from can't be freed, now or later.
    in_use = [heap.what for heap in tidy.plan(bench.state, tmp_path)]

    def cached(text: str) -> list[bool]:
        (tmp_path / "text").write_text(text)
        return [step.cached for step in build(bench.engine, tmp_path, tag=tag).steps[-2:]]

    try:
        assert [cached("first" * 99_999), cached("second")] == [[False] * 2, [True, False]]
        prepare(bench.state, clean=True)
        assert cached("first" * 99_999) == [True, True]
        assert cached("second") == [True, True]
        kept = push(bench.engine, bench.server, tag).digest

        before = bench.server.used_bytes()
        heaps = tidy.plan(bench.state, tmp_path)
        assert sum(heap.size for heap in heaps) >= 5 * 99_999
        assert sum(heap.free() for heap in heaps) >= 5 * 99_999
        assert [heap.what for heap in tidy.plan(bench.state, tmp_path)] == in_use
        assert bench.engine.image(tag) is not None
        # What BuildKit still knows of the steps before is its own affair.
        assert cached("first" * 99_999)[-1] is False
        assert is_whole(bench.registry, repository, kept)
        assert 0 < (bench.server.used_bytes() or 0) <= (before or 0)
        bench.registry.delete_manifest(repository, kept)
    finally:
        remove(bench.engine, tag)
