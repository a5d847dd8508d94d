"""Bundles: saved here, loaded into another lab, and refused where they are not whole."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labapp import bundles, contents, images, vulnerabilities
from labapp.bases import wheels
from labapp.bench import Bench
from labapp.errors import BaseError, DamagedContent, LabError
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, State


@pytest.fixture(scope="module")
def bundle(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, feedback: QuietFeedback
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("bundle") / "lab.tar"
    bundles.save(bench, path, feedback=feedback)
    yield path
    path.unlink()  # half a gigabyte, which pytest would keep


def test_a_bundle_is_all_that_an_offline_machine_needs(
    bundle: Path,
    bench: Bench,
    another_lab: Callable[[], State],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    feedback: QuietFeedback,
) -> None:
    monkeypatch.setenv("LABAPP_BASES", "hub")
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")
    application = tmp_path / "app"
    shutil.copytree(bench.application, application, ignore=shutil.ignore_patterns("wheels"))
    state = another_lab()

    loaded = bundles.load(state, bundle, wheel_folder=application / "wheels", feedback=feedback)

    server = RegistryServer(engine=bench.engine, state=state)
    bases = {base.name: base for base in loaded}
    assert set(bases) == {base.name for base in bench.bases}
    for base in bench.bases:
        there = server.registry().image(bases[base.name].reference)
        here = bench.registry.image(base.reference)
        assert there.manifest.layers == here.manifest.layers
        assert there.config.labels[LABEL] == state.lab_id
        assert bases[base.name].source == base.source
    assert wheels.is_complete(application / "wheels", platform=bench.engine.platform)

    known_here, known_there = (
        vulnerabilities.known(
            contents.read(
                bench.registry,
                bench.base("python:3.13-slim"),
                folder=bench.state.path("cache", "layers"),
                feedback=feedback,
            ),
            folder=each.path("cache", "vulnerabilities"),
            source=source,
            feedback=feedback,
        )
        for each, source in ((bench.state, "debian"), (state, "snapshot"))
    )
    assert known_there.date == known_here.date
    assert known_there.since_release == known_here.since_release
    assert known_there.notes == ()

    tag = f"{server.address}/shop/web:offline"
    builds.build(
        bench.engine,
        application,
        tag=tag,
        dockerfile=bench.repository / "dockerfiles" / "multistage.Dockerfile",
        args={
            "BUILD_BASE": str(bases["python:3.13"].reference),
            "BASE": str(bases["python:3.13-slim"].reference),
            "PIP_NO_INDEX": "1",
        },
        labels=state.labels,
        feedback=feedback,
    )
    running = images.run(bench.engine, tag, labels=state.labels, feedback=feedback)
    assert '"name":"shop"' in running.get("/")
    running.stop()

    # A second time, over a layer that was damaged meanwhile.
    layer = server.registry().image(bases["python:3.13-slim"].reference).manifest.layers[0]
    value = layer.digest.removeprefix("sha256:")
    path = f"/var/lib/registry/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    server.storage(["truncate", "-s", "5", path])
    again = bundles.load(state, bundle, wheel_folder=application / "wheels", feedback=feedback)
    assert again == loaded
    assert server.registry().blob_size("base/python", layer.digest) == layer.size


def _cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def _alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def _replace(path: Path) -> None:
    path.unlink()
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, arcname="notes.txt")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (_cut_off, "cut off|not a whole tar"),
        (_alter, "does not match its digest"),
        (_replace, "does not belong"),
    ],
)
def test_a_bundle_that_is_not_whole_changes_nothing(
    bundle: Path,
    bench: Bench,
    another_lab: Callable[[], State],
    tmp_path: Path,
    feedback: QuietFeedback,
    spoil: Callable[[Path], None],
    cause: str,
) -> None:
    copy = tmp_path / "copy.tar"
    shutil.copyfile(bundle, copy)
    spoil(copy)
    state = another_lab()
    with pytest.raises(DamagedContent, match=cause):
        bundles.load(state, copy, wheel_folder=tmp_path / "wheels", feedback=feedback)
    copy.unlink()
    assert not (tmp_path / "wheels").exists()
    assert state.read("bases") == {} == state.read("registry")
    assert (
        bench.engine.client.containers.list(all=True, filters={"label": f"{LABEL}={state.lab_id}"})
        == []
    )


def test_a_layout_of_other_images_is_refused(
    bench: Bench, another_lab: Callable[[], State], tmp_path: Path, feedback: QuietFeedback
) -> None:
    """An image layout that is whole, and holds no Python."""
    registry_only = tuple(base for base in bench.bases if base.name == "registry")
    other = tmp_path / "other.tar"
    bundles.save(replace(bench, bases=registry_only), other, feedback=feedback)
    with pytest.raises(DamagedContent, match=r"has no 'python:3\.13'"):
        bundles.load(another_lab(), other, feedback=feedback)


def test_without_the_mirror_a_bundle_goes_without_fixes_and_says_so(
    bench: Bench,
    another_lab: Callable[[], State],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    slim_only = tuple(base for base in bench.bases if base.name == "python:3.13-slim")
    # Of another lab, whose cache is empty.
    alone = replace(bench, bases=slim_only, state=another_lab())
    feedback = QuietFeedback()
    path = tmp_path / "lab.tar"
    bundles.save(alone, path, feedback=feedback)
    assert feedback.lines[0].startswith("The bundle goes without known vulnerabilities.")
    assert "can't be reached" in feedback.lines[0]
    with tarfile.open(path) as tar:
        assert bundles.FIXES not in tar.getnames()
    path.unlink()


def test_damaged_fixes_in_a_bundle_change_nothing(
    bundle: Path, another_lab: Callable[[], State], tmp_path: Path, feedback: QuietFeedback
) -> None:
    copy = tmp_path / "copy.tar"
    shutil.copyfile(bundle, copy)
    with tarfile.open(copy) as tar:
        member = tar.getmember(bundles.FIXES)
    with copy.open("r+b") as file:
        file.seek(member.offset_data + member.size // 2)
        file.write(b"damaged!")
    state = another_lab()
    with pytest.raises(DamagedContent, match=r"snapshot\.json\.gz' is damaged"):
        bundles.load(state, copy, wheel_folder=tmp_path / "wheels", feedback=feedback)
    copy.unlink()
    assert not (tmp_path / "wheels").exists()
    assert state.read("bases") == {} == state.read("registry")


def test_saving_replaces_a_file_only_when_it_is_complete(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feedback: QuietFeedback
) -> None:
    path = tmp_path / "lab.tar"
    path.write_bytes(b"the old one")
    monkeypatch.setattr(wheels, "packed", lambda folder: _raise(OSError(28, "No space left")))
    with pytest.raises(BaseError, match="No space left"):
        bundles.save(bench, path, feedback=feedback)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_folder_that_does_not_exist(
    bench: Bench, tmp_path: Path, feedback: QuietFeedback
) -> None:
    with pytest.raises(LabError, match="No such file"):
        bundles.save(bench, tmp_path / "none" / "lab.tar", feedback=feedback)


def _raise(error: Exception) -> dict[str, bytes]:
    raise error
