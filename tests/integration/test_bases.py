"""Base images on a real engine: what they hold, and each source they come from; bundles."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from made_images import make_wheels, put, put_index, wants
from registries import Reply, Seen, serving, stored_at

from labapp import bundle as bundles
from labapp.bench import Bench
from labapp.bundle import Bundle
from labapp.errors import BaseError
from labapp.feedback import QuietFeedback
from labapp.inside import image, known
from labapp.journey import bases as base_images
from labapp.journey import build, debian, run, transfer, wheels
from labapp.journey.bases import FULL, NAMES, REGISTRY, SLIM, Base
from labapp.machine.engine import Engine
from labapp.machine.ports import wait_until
from labapp.registry.client import Registry
from labapp.registry.manifests import Platform
from labapp.registry.server import RegistryServer
from labapp.state import REPOSITORY, State

FAR = "linux/s390x"


@dataclass
class Lab:
    """One more lab on the engine."""

    engine: Engine
    state: State
    server: RegistryServer

    def prepare(self, source: str) -> dict[str, Base]:
        found = base_images.prepare(self.engine, self.server, self.state, source=source)
        return {base.name: base for base in found}


@pytest.fixture
def lab(engine: Engine, another_lab: Callable[[], State], monkeypatch: pytest.MonkeyPatch) -> Lab:
    state = another_lab()
    monkeypatch.delenv("LABAPP_BASES", raising=False)
    monkeypatch.delenv("LABAPP_MIRROR", raising=False)
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")  # nobody listens there
    return Lab(engine, state, RegistryServer(engine=engine, state=state))


# From a mirror: the session's registry


def test_a_mirror_gives_all_of_it_byte_for_byte(
    lab: Lab, bench: Bench, told: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", f"http://{bench.registry.address}")
    found = lab.prepare("auto")
    copies = lab.server.registry()
    for original in bench.bases:
        base = found[original.name]
        assert base.reference == replace(original.reference, registry=copies.address)
        assert copies.image(base.reference).digest == original.digest
        if original.source == "debian-packages":
            assert base.source == original.source, "the mirror does not hide the origin"

    # Everything below breaks this copy, and has the mirror mend it.
    small = found[REGISTRY]
    layer = copies.image(small.reference).manifest.layers[0]

    def spoil(*command: str, digest: str = layer.digest) -> None:
        lab.server.storage([*command, stored_at(digest)])

    def is_mended() -> bool:
        again = lab.prepare("mirror")
        return again == found and copies.blob_size("base/registry", layer.digest) == layer.size

    for damage in (["truncate", "-s", "1000"], ["rm"]):
        spoil(*damage)
        assert is_mended()
    assert sum(REGISTRY in line and layer.digest in line for line in told.lines) == 2
    spoil("cp", "/dev/null", digest=small.digest)
    assert is_mended(), "a damaged manifest"
    lab.state.write("bases", {})
    spoil("truncate", "-s", "1000")
    assert is_mended(), "what is damaged is found without a record"
    copies.delete_manifest("base/registry", small.digest)
    assert is_mended(), "what was deleted is copied again"

    lab.engine.client.api.remove_container(lab.server.name, force=True)
    transfer.remove(lab.engine, base_images.engine_name(lab.state))
    again = lab.prepare("mirror")
    assert [base.digest for base in again.values()] == [base.digest for base in found.values()]


# From Docker Hub: a registry on this machine stands in for it


@pytest.fixture
def hub(own: RegistryServer, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with small images, in indexes, under the names of Docker Hub."""
    standing_in, registry = own.registry(), bench.registry
    monkeypatch.setenv("LABAPP_HUB", f"{standing_in.address}/library")
    image = registry.image(bench.bases[0].reference)
    raw, kind = image.manifest.raw, image.manifest.media_type
    for name in ("registry:3", FULL, SLIM):
        repository, _, tag = f"library/{name}".partition(":")
        standing_in.copy(registry, image, to=f"{standing_in.address}/{repository}:{tag}")
        mine, far = (Platform.parse(each) for each in (bench.engine.platform, FAR))
        # The same image, and a manifest of different bytes.
        other = json.dumps(json.loads(raw) | {"annotations": {name: mine.architecture}}).encode()
        digest = standing_in.put_manifest(repository, "own", other, kind)
        entry = {"mediaType": kind, "digest": digest, "size": len(other)}
        entry["platform"] = {"os": mine.os, "architecture": mine.architecture}
        platform = {"os": far.os, "architecture": far.architecture}
        entries = [put(standing_in, repository, "far", [{"a": "far"}], platform=platform), entry]
        put_index(standing_in, repository, tag, entries)
    return standing_in


def names_on_engine(engine: Engine, address: str) -> list[str]:
    """Return the names on the engine that begin with an address: those of other labs do not."""
    found = engine.client.api.images()
    return [name for one in found for name in one["RepoTags"] or () if name.startswith(address)]


def test_bases_have_the_digests_that_docker_hub_shows_for_this_platform(
    lab: Lab, hub: Registry, engine: Engine
) -> None:
    found = lab.prepare("hub")
    here = engine.platform.split("/")[1]
    for name, public in ((REGISTRY, "registry:3"), (FULL, FULL), (SLIM, SLIM)):
        raw = lab.server.registry().image(found[name].reference).manifest.raw
        assert json.loads(raw)["annotations"] == {public: here}
    assert names_on_engine(engine, hub.address) == [], "the engine had nothing to do with it"


def test_the_engine_pulls_what_only_the_engine_reaches(
    lab: Lab, hub: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Seen) -> Reply:
        """Send the engine on to the hub; to the lab, say that it asks too often."""
        if request.headers["User-Agent"].startswith("labapp/"):
            return Reply(429)
        return Reply(307, headers={"Location": f"http://{hub.address}{request.path}"})

    with serving(answer) as door:
        monkeypatch.setenv("LABAPP_HUB", f"{door.address}/library")
        found = lab.prepare("hub")
    registry = lab.server.registry()
    for name in NAMES:
        manifest = registry.image(found[name].reference).manifest
        assert not registry.damaged_blobs(found[name].reference.repository, manifest)
    assert names_on_engine(lab.engine, door.address) == [], "no public name is left"


def test_each_source_that_fails_is_told_with_its_cause(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_MIRROR", "localhost:9")
    monkeypatch.setenv("LABAPP_HUB", "localhost:8/library")
    monkeypatch.setenv("LABAPP_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(BaseError) as caught:
        lab.prepare("auto")
    for cause in ("localhost:9", "localhost:8", "mmdebstrap"):
        assert cause in str(caught.value)
    assert lab.state.read("bases") == {}
    roots = lab.state.path("roots")
    assert not roots.exists() or not any(roots.iterdir())


# From Debian packages


@pytest.mark.own_engine
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_ended_leaves_nothing_of_a_root(
    tmp_path: Path, end: signal.Signals
) -> None:
    script = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from labapp.journey.debian import making\n"
        "from labapp.registry.manifests import Platform\n"
        "with making(['registry'], Platform.here(), Path(sys.argv[1])) as roots:\n"
        "    b''.join(roots['registry'])\n"
    )
    folder = tmp_path / "roots"
    command = [sys.executable, "-c", script, str(folder)]
    client = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: folder.exists() and any(folder.iterdir()), seconds=30)
    client.send_signal(end)
    client.wait(timeout=30)

    def has_ended() -> bool:
        """Tell whether no process has something in its environment about the folder."""
        settings = (each.info["environ"] or {} for each in psutil.process_iter(["environ"]))
        return all(each.get("TMPDIR") != str(folder) for each in settings)

    assert wait_until(has_ended, seconds=60)
    debian.clear(folder)
    assert not folder.exists() or not any(folder.iterdir())


# From a bundle


def test_a_bundle_is_all_that_an_offline_machine_needs(
    bench: Bench, another_lab: Callable[[], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPP_BASES", "hub")
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")
    application = tmp_path / "app"
    shutil.copytree(bench.application, application, ignore=shutil.ignore_patterns("wheels"))
    state, bundle = another_lab(), tmp_path / "lab.zip"
    bundles.save(bench, bundle)

    loaded = bundles.load(state, bundle, wheel_folder=application / "wheels")

    server = RegistryServer(engine=bench.engine, state=state)
    bases = {base.name: base for base in loaded}
    for base in bench.bases:
        there = server.registry().image(bases[base.name].reference)
        assert there.digest == base.digest == bases[base.name].digest
        assert bases[base.name].source in (base.source, bundle.name)
    assert wheels.is_complete(application / "wheels", platform=bench.engine.platform)

    layers = bench.state.path("cache", "layers")
    inside = image.read(bench.registry, bench.registry.image(bench.base(SLIM)), folder=layers)
    known_here, known_there = (
        known.known(inside, folder=each.path("cache", "vulnerabilities"), source=source)
        for each, source in ((bench.state, "debian"), (state, "snapshot"))
    )
    assert known_there.date == known_here.date
    assert known_there.since_release == known_here.since_release
    assert known_there.notes == ()

    tag = f"{server.address}/shop/web:offline"
    dockerfile = REPOSITORY / "dockerfiles" / "multistage.Dockerfile"
    arguments = replace(bench, bases=loaded).build_arguments(dockerfile)
    build.build(bench.engine, application, tag=tag, dockerfile=dockerfile, args=arguments)
    running = run.run(bench.engine, tag)
    assert '"name":"shop"' in running.get("/")
    running.stop()

    # A second time, over a layer that was damaged meanwhile.
    layer = server.registry().image(bases[SLIM].reference).manifest.layers[0]
    server.storage(["truncate", "-s", "5", stored_at(layer.digest)])
    assert bundles.load(state, bundle, wheel_folder=application / "wheels") == loaded
    assert server.registry().blob_size("base/python", layer.digest) == layer.size
    bundle.unlink()  # half a gigabyte, which pytest would keep


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
    # Of another lab, whose cache is empty.
    bundles.save(replace(bench, bases=slim, state=another_lab()), tmp_path / "lab.zip")
    assert bundles.FIXES not in Bundle(tmp_path / "lab.zip").files()
    assert len(told.lines) == 2, "one line on what it lacks, one on what was saved"
    (tmp_path / "lab.zip").unlink()


def test_a_bundle_for_another_platform_too(
    bench: Bench,
    hub: Registry,
    another_lab: Callable[[], State],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its images come from a registry with indexes, and its wheels from where pip looks."""
    application, wheel_folder = tmp_path / "app", tmp_path / "app" / "wheels"
    application.mkdir()
    wants(application, "teapot==1.0\n", "teapot==1.0")
    make_wheels(tmp_path, "teapot-1.0-py3-none-any.whl")
    monkeypatch.setattr(Bench, "application", application)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("LABAPP_BASES", "auto")
    monkeypatch.setenv("LABAPP_DEBIAN_MIRROR", "http://127.0.0.1:9/debian")
    wheels.fetch(wheel_folder, platform=bench.engine.platform)
    mine, far = (Platform.parse(each) for each in (bench.engine.platform, FAR))
    # The small one under all names.
    small = tuple(replace(bench.bases[0], name=name) for name in NAMES)
    both, other = tmp_path / "both.zip", tmp_path / "far.zip"
    bundles.save(replace(bench, bases=small, state=another_lab()), both, platforms=[mine, far])
    bundles.save(replace(bench, bases=small, state=another_lab()), other, platforms=[far])

    places = [base_images.at(Bundle.address, name) for name in NAMES]
    held = [[each.config.platform for each in Bundle(both).images(place)] for place in places]
    assert held == [[mine, far]] * len(NAMES)
    loaded = bundles.load(another_lab(), both, wheel_folder=wheel_folder)
    assert {base.digest for base in loaded} == {bench.bases[0].digest}
    assert wheels.is_complete(wheel_folder, platform=bench.engine.platform)

    state = another_lab()
    with pytest.raises(BaseError) as caught:
        bundles.load(state, other, wheel_folder=wheel_folder)
    assert FAR in str(caught.value) and bench.engine.platform in str(caught.value)
    assert state.read("bases") == {}

    # This lab's own registry as the only source: it has one platform.
    monkeypatch.setenv("LABAPP_HUB", "localhost:9/library")
    monkeypatch.setenv("LABAPP_MIRROR", f"http://{bench.registry.address}")
    with pytest.raises(BaseError, match=f"for {bench.engine.platform} alone"):
        bundles.save(bench, other, platforms=[far])
