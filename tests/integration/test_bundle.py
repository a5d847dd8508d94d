"""Bundles: saved here, loaded into another lab, and refused where they are not whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp import bundle as bundles
from labapp import feedback
from labapp.bench import Bench
from labapp.bundle import Bundle
from labapp.feedback import QuietFeedback
from labapp.inside import image, known
from labapp.journey import build, run, wheels
from labapp.journey.bases import FULL, SLIM
from labapp.registry.server import RegistryServer
from labapp.state import State


@pytest.fixture(autouse=True, scope="module")
def told() -> Iterator[QuietFeedback]:
    quiet = QuietFeedback()
    with feedback.using(quiet):
        yield quiet


@pytest.fixture(scope="module")
def bundle(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bundle") / "lab.tar"
    bundles.save(bench, path)
    yield path
    path.unlink()  # half a gigabyte, which pytest would keep


def test_a_bundle_is_all_that_an_offline_machine_needs(
    bundle: Path,
    bench: Bench,
    another_lab: Callable[[], State],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABAPP_BASES", "hub")
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")
    application = tmp_path / "app"
    shutil.copytree(bench.application, application, ignore=shutil.ignore_patterns("wheels"))
    state = another_lab()

    loaded = bundles.load(state, bundle, wheel_folder=application / "wheels")

    server = RegistryServer(engine=bench.engine, state=state)
    bases = {base.name: base for base in loaded}
    assert set(bases) == {base.name for base in bench.bases}
    for base in bench.bases:
        there = server.registry().image(bases[base.name].reference)
        assert there.manifest.raw == bench.registry.image(base.reference).manifest.raw
        assert there.digest == base.digest == bases[base.name].digest
        assert bases[base.name].source in (base.source, bundle.name)
    assert wheels.is_complete(application / "wheels", platform=bench.engine.platform)

    known_here, known_there = (
        known.known(
            image.read(
                bench.registry,
                bench.base(SLIM),
                folder=bench.state.path("cache", "layers"),
            ),
            folder=each.path("cache", "vulnerabilities"),
            source=source,
        )
        for each, source in ((bench.state, "debian"), (state, "snapshot"))
    )
    assert known_there.date == known_here.date
    assert known_there.since_release == known_here.since_release
    assert known_there.notes == ()

    tag = f"{server.address}/shop/web:offline"
    build.build(
        bench.engine,
        application,
        tag=tag,
        dockerfile=bench.repository / "dockerfiles" / "multistage.Dockerfile",
        args={
            "BUILD_BASE": str(bases[FULL].reference),
            "BASE": str(bases[SLIM].reference),
            "PIP_NO_INDEX": "1",
        },
    )
    running = run.run(bench.engine, tag)
    assert '"name":"shop"' in running.get("/")
    running.stop()

    # A second time, over a layer that was damaged meanwhile.
    layer = server.registry().image(bases[SLIM].reference).manifest.layers[0]
    value = layer.digest.removeprefix("sha256:")
    path = f"/var/lib/registry/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    server.storage(["truncate", "-s", "5", path])
    assert bundles.load(state, bundle, wheel_folder=application / "wheels") == loaded
    assert server.registry().blob_size("base/python", layer.digest) == layer.size


def test_without_the_mirror_a_bundle_goes_without_fixes_and_says_so(
    bench: Bench,
    another_lab: Callable[[], State],
    tmp_path: Path,
    told: QuietFeedback,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    slim = tuple(base for base in bench.bases if base.name == SLIM)
    told.lines.clear()
    # Of another lab, whose cache is empty.
    bundles.save(replace(bench, bases=slim, state=another_lab()), tmp_path / "lab.tar")
    assert bundles.FIXES not in Bundle(tmp_path / "lab.tar").files()
    assert len(told.lines) == 2, "one line on what it lacks, one on what was saved"
    (tmp_path / "lab.tar").unlink()
