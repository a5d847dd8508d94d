"""The lab's registry for real: it comes back whatever happened to it, and says what it holds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest

from labapp.engine import Engine
from labapp.errors import (
    EngineLost,
    InvalidReference,
    NotInRegistry,
    RegistryError,
    RegistryUnreachable,
)
from labapp.feedback import QuietFeedback
from labapp.manifests import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    digest_of,
)
from labapp.manifests.assembly import build_config, build_manifest
from labapp.registry import Registry
from labapp.registry import server as registry_server
from labapp.registry.request_log import COLUMNS, requests_since
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State
from labapp.system.ports import free_port


@pytest.fixture(scope="session")
def registry_image(server: RegistryServer, state: State) -> str:
    """The image that the shared registry runs, so that each test here can have its own."""
    assert server.is_running()
    return str(state.read("registry")["image"])


@pytest.fixture
def own(
    tmp_path: Path, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> Iterator[RegistryServer]:
    """A registry of this test alone, started."""
    own = RegistryServer(engine=engine, state=State.open(tmp_path / "state"))
    try:
        own.start(image=registry_image, feedback=feedback)
        yield own
    finally:
        own.remove(volume=True)


def put_image(registry: Registry, repository: str, tag: str, architecture: str = "amd64") -> str:
    """Store a small image over HTTP; return its manifest's digest."""
    layer, size = registry.upload_blob(repository, [b"a layer of ", tag.encode()])
    config = build_config(platform=Platform("linux", architecture), diff_ids=[layer])
    digest, length = registry.upload_blob(repository, [config])
    manifest = build_manifest(
        Descriptor(OCI_CONFIG, digest, length), [Descriptor(OCI_LAYER, layer, size)]
    )
    return registry.put_manifest(repository, tag, manifest, OCI_MANIFEST)


def labelled(engine: Engine, server: RegistryServer, role: str) -> list[str]:
    """The names of the containers of a registry's lab that have a role."""
    lab_id = server.name.rpartition("-")[2]
    filters = {"label": [f"{LABEL}={lab_id}", f"{ROLE_LABEL}={role}"]}
    return [found.name or "" for found in engine.client.containers.list(all=True, filters=filters)]


# --- start, whatever happened before


def test_everything_it_makes_is_labelled(own: RegistryServer, engine: Engine) -> None:
    assert labelled(engine, own, "registry") == [own.name]
    volume = engine.client.volumes.get(own.name)
    assert volume.attrs["Labels"][LABEL] == own.name.rpartition("-")[2]


def test_it_listens_on_this_machine_only(own: RegistryServer, engine: Engine) -> None:
    ports = engine.client.containers.get(own.name).attrs["HostConfig"]["PortBindings"]
    assert [bound["HostIp"] for bound in ports["5000/tcp"]] == ["127.0.0.1"]


def test_a_registry_that_runs_is_left_alone(
    own: RegistryServer, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> None:
    before = engine.client.containers.get(own.name).attrs["State"]["StartedAt"]
    assert own.start(image=registry_image, feedback=feedback).address == own.address
    assert engine.client.containers.get(own.name).attrs["State"]["StartedAt"] == before


@pytest.mark.parametrize("accident", ["stop", "kill", "pause", "remove", "replace"])
def test_it_comes_back_with_its_content_at_its_address(
    own: RegistryServer,
    engine: Engine,
    registry_image: str,
    feedback: QuietFeedback,
    accident: str,
) -> None:
    digest = put_image(own.registry(), "shop/web", "1")
    address = own.address
    container = engine.client.containers.get(own.name)
    if accident == "stop":
        own.stop(feedback=feedback)
    elif accident == "kill":
        container.kill()
    elif accident == "pause":
        container.pause()
    else:
        container.remove(force=True)
    if accident == "replace":  # as when a start was cut off before the configuration was in
        labels = container.labels
        engine.client.containers.create(registry_image, name=own.name, labels=labels)
    assert not own.is_running()
    with pytest.raises(RegistryUnreachable, match="python3 -m labapp start"):
        own.registry()
    registry = own.start(image=registry_image, feedback=feedback)
    assert registry.address == address
    assert registry.resolve("shop/web", "1") == digest


def test_stop_keeps_the_log(
    own: RegistryServer, registry_image: str, feedback: QuietFeedback
) -> None:
    own.registry().ping()
    own.stop(feedback=feedback)
    assert feedback.commands[-1] == f"docker stop {own.name}"
    assert "labapp/" in own.logs().decode()
    own.start(image=registry_image, feedback=feedback)
    assert own.logs().decode().count("listening on") == 2


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("removed", [True, False])
def test_a_port_that_was_taken_meanwhile(
    own: RegistryServer,
    registry_image: str,
    monkeypatch: pytest.MonkeyPatch,
    seen: bool,
    removed: bool,
) -> None:
    if not seen:  # as with an engine in a virtual machine: only its own refusal tells
        monkeypatch.setattr(registry_server, "is_listening", lambda port, **_: False)
    digest = put_image(own.registry(), "shop/web", "1")
    old = own.address
    feedback = QuietFeedback()
    own.stop(feedback=feedback)
    if removed:
        own.remove(volume=False)
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2]))):
        registry = own.start(image=registry_image, feedback=feedback)
    assert registry.address != old
    assert registry.resolve("shop/web", "1") == digest
    (told,) = [text for text in feedback.lines if "Another program has taken port" in text]
    assert old.rpartition(":")[2] in told
    assert registry.address in told
    # The new port is kept from now on.
    own.stop(feedback=feedback)
    assert own.start(image=registry_image, feedback=feedback).address == registry.address


def test_a_changed_configuration_takes_effect(
    own: RegistryServer,
    registry_image: str,
    feedback: QuietFeedback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = put_image(own.registry(), "shop/web", "1")
    changed = tmp_path / "config.yml"
    text = registry_server.CONFIG.read_text(encoding="utf-8")
    changed.write_text(text.replace("enabled: true", "enabled: false", 1), encoding="utf-8")
    monkeypatch.setattr(registry_server, "CONFIG", changed)
    registry = own.start(image=registry_image, feedback=feedback)
    assert registry.resolve("shop/web", "1") == digest
    with pytest.raises(RegistryError, match="unsupported"):
        registry.delete_manifest("shop/web", digest)


def test_a_configuration_that_is_wrong_is_told_with_the_log(
    own: RegistryServer,
    registry_image: str,
    feedback: QuietFeedback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = tmp_path / "config.yml"
    wrong.write_text("version: 0.1\nstorage: {}\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(registry_server, "CONFIG", wrong)
        with pytest.raises(RegistryError, match="Its log ends with") as caught:
            own.start(image=registry_image, feedback=feedback)
        assert "configuration" in str(caught.value)
        assert f"docker logs {own.name}" in str(caught.value)
    own.start(image=registry_image, feedback=feedback).ping()


def test_a_missing_image(own: RegistryServer, feedback: QuietFeedback) -> None:
    own.start(image="labapp/no-such-image:1", feedback=feedback).ping()  # none is needed
    own.remove(volume=False)
    with pytest.raises(RegistryError, match="no image 'labapp/no-such-image:1'"):
        own.start(image="labapp/no-such-image:1", feedback=feedback)


def test_a_registry_that_was_never_started(tmp_path: Path, engine: Engine) -> None:
    never = RegistryServer(engine=engine, state=State.open(tmp_path))
    assert not never.is_running()
    assert never.logs() == b""
    assert requests_since(never).empty
    for ask in (lambda: never.address, never.registry, lambda: never.storage(["ls"])):
        with pytest.raises(RegistryUnreachable, match="never been started"):
            ask()
    never.remove(volume=True)


def test_an_engine_that_is_lost(
    tmp_path: Path, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    lost = replace(engine, client=docker.DockerClient(base_url=address, version="1.41"))
    server = RegistryServer(engine=lost, state=State.open(tmp_path))
    with pytest.raises(EngineLost, match="python3 -m labapp start"):
        server.start(image=registry_image, feedback=feedback)


def test_two_starts_at_once(
    tmp_path: Path, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> None:
    state = State.open(tmp_path / "state")
    script = (
        "import sys; from labapp import engine, state, feedback;"
        "from labapp.registry import server as r;"
        "s = state.State.open();"
        "server = r.RegistryServer(engine=engine.find(s), state=s);"
        "print(server.start(image=sys.argv[1], feedback=feedback.QuietFeedback()).address)"
    )
    environment = engine.environment() | {"LABAPP_STATE": str(state.folder)}
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", script, registry_image],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    server = RegistryServer(engine=engine, state=state)
    try:
        ends = [start.communicate(timeout=120) for start in starts]
        assert [error for _, error in ends] == ["", ""]
        assert {out.strip() for out, _ in ends} == {server.address}
        server.registry().ping()
        assert labelled(engine, server, "registry") == [server.name]
    finally:
        server.remove(volume=True)


def test_remove_leaves_nothing(
    own: RegistryServer, engine: Engine, registry_image: str, feedback: QuietFeedback
) -> None:
    own.remove(volume=True)
    assert labelled(engine, own, "registry") == []
    names = [volume.name for volume in engine.client.volumes.list()]
    assert own.name not in names
    own.remove(volume=True)
    assert own.start(image=registry_image, feedback=feedback).repositories() == []


def test_the_one_shot_containers_are_gone_even_after_a_failure(
    own: RegistryServer, engine: Engine
) -> None:
    assert "registry" in own.storage(["ls", "/var/lib"])
    with pytest.raises(RegistryError, match=r"ended with 3: no good"):
        own.storage(["sh", "-c", "echo no good; exit 3"])
    with pytest.raises(RegistryError, match="no-such-program"):
        own.storage(["no-such-program"])
    assert labelled(engine, own, "oneshot") == []


# --- what it holds


def test_an_image_is_read_and_verified(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_image(registry, "shop/web", "1")
    put_image(registry, "shop/web", "2")
    assert registry.repositories() == ["shop/web"]
    assert registry.tags("shop/web") == ["1", "2"]
    image = registry.image(f"{own.address}/shop/web:1")
    assert image.digest == digest == registry.resolve("shop/web", "1")
    assert str(image.pinned) == f"{own.address}/shop/web@{digest}"
    assert registry.image(image.pinned).manifest == image.manifest
    assert image.config.platform == Platform("linux", "amd64")
    layer = image.manifest.layers[0]
    assert b"".join(registry.open_blob("shop/web", layer.digest)) == b"a layer of 1"
    assert registry.blob_size("shop/web", layer.digest) == 12
    assert registry.damaged_blobs("shop/web", image.manifest, contents=True) == []


def test_an_index_leads_to_the_image_for_a_platform(own: RegistryServer) -> None:
    registry = own.registry()
    entries = []
    for architecture in ("amd64", "arm64"):
        digest = put_image(registry, "shop/web", architecture, architecture)
        size = len(registry.manifest("shop/web", digest).raw)
        entries.append(
            {
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": size,
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    raw = json.dumps(content).encode()
    registry.put_manifest("shop/web", "both", raw, OCI_INDEX)
    name = f"{own.address}/shop/web:both"
    for entry in entries:
        architecture = entry["platform"]["architecture"]
        image = registry.image(name, platform=Platform("linux", architecture))
        assert image.manifest.digest == entry["digest"]
        assert image.config.platform.architecture == architecture
        assert image.digest == digest_of(raw)
    with pytest.raises(NotInRegistry, match="offers linux/amd64, linux/arm64"):
        registry.image(name, platform=Platform("linux", "s390x"))


def test_deleting_a_manifest_takes_its_tags(own: RegistryServer) -> None:
    registry = own.registry()
    digest = put_image(registry, "shop/web", "1")
    registry.delete_manifest("shop/web", digest)
    assert registry.tags("shop/web") == []
    with pytest.raises(NotInRegistry, match="the repository has no tag at all"):
        registry.resolve("shop/web", "1")
    with pytest.raises(NotInRegistry, match="no manifest with that digest"):
        registry.delete_manifest("shop/web", digest)


def test_a_manifest_whose_blob_is_missing_is_refused(own: RegistryServer) -> None:
    registry = own.registry()
    config = Descriptor(OCI_CONFIG, *registry.upload_blob("shop/web", [b"{}"]))
    manifest = build_manifest(config, [Descriptor(OCI_LAYER, "sha256:" + "1" * 64, 5)])
    with pytest.raises(RegistryError, match="blob unknown"):
        registry.put_manifest("shop/web", "1", manifest, OCI_MANIFEST)


def test_a_blob_is_taken_over_from_another_repository(own: RegistryServer) -> None:
    registry = own.registry()
    digest, size = registry.upload_blob("shop/web", [b"shared"])
    assert registry.blob_size("shop/copy", digest) is None
    assert registry.mount_blob("shop/copy", digest, "shop/web")
    assert registry.blob_size("shop/copy", digest) == size
    assert not registry.mount_blob("shop/copy", "sha256:" + "2" * 64, "shop/web")


def test_an_upload_larger_than_a_piece_and_an_empty_one(own: RegistryServer) -> None:
    registry = own.registry()
    piece = os.urandom(1_000_003)
    digest, size = registry.upload_blob("shop/web", (piece for _ in range(20)))
    assert (digest, size) == (digest_of(piece * 20), 20_000_060)
    assert registry.read_blob("shop/web", digest) == piece * 20
    assert registry.upload_blob("shop/web", []) == (digest_of(b""), 0)


# --- the request log


def test_a_push_is_told_request_by_request(own: RegistryServer) -> None:
    registry = own.registry()
    put_image(registry, "shop/web", "1")
    rows = requests_since(own, include_lab=True)
    assert tuple(rows.columns) == COLUMNS
    assert str(rows["time"].dt.tz) == "UTC"
    assert rows["time"].is_monotonic_increasing
    put = rows[rows["path"].str.startswith("/v2/shop/web/")]
    assert list(put["meaning"]) == [
        *["start an upload", "take these bytes", "finish the upload"] * 2,
        "store the manifest under tag 1",
    ]
    assert list(put["status"]) == [202, 202, 201, 202, 202, 201, 201]
    finished = put[put["meaning"] == "finish the upload"]
    image = registry.image(f"{own.address}/shop/web:1")
    assert list(finished["bytes"]) == [12, image.manifest.config.size]
    assert set(rows["client"]) == {"lab"}
    assert requests_since(own).empty


def test_the_log_begins_where_it_is_asked_to(own: RegistryServer) -> None:
    registry = own.registry()
    before = len(requests_since(own, include_lab=True))
    registry.ping()
    # The registry answers first, and writes its log then.
    while len(requests_since(own, include_lab=True)) == before:
        time.sleep(0.01)
    moment = datetime.now(UTC)
    registry.repositories()
    meanings = requests_since(own, moment, include_lab=True)["meaning"]
    assert list(meanings) == ["which repositories do you have?"]
    later = datetime.now(UTC) + timedelta(hours=1)
    assert requests_since(own, later, include_lab=True).empty


def test_the_log_is_read_while_the_registry_is_down(
    own: RegistryServer, feedback: QuietFeedback
) -> None:
    put_image(own.registry(), "shop/web", "1")
    own.stop(feedback=feedback)
    rows = requests_since(own, include_lab=True)
    assert rows.loc[rows["meaning"] == "finish the upload", "bytes"].isna().all()
    assert "store the manifest under tag 1" in set(rows["meaning"])


def test_what_is_no_digest_is_never_discarded(own: RegistryServer) -> None:
    with pytest.raises(InvalidReference, match="no digest"):
        own.discard_blobs(["sha256:../../.."])
