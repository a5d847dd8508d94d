"""The lab's registry for real: what happens to it, what it holds, and what is damaged in it."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from made_images import put_image

from labapp.errors import NotInRegistry, RegistryError, RegistryUnreachable
from labapp.feedback import QuietFeedback
from labapp.machine.engine import Engine
from labapp.machine.ports import wait_until
from labapp.reference import Reference
from labapp.registry.client import Registry
from labapp.registry.log import listening, parse_log
from labapp.registry.manifests import digest_of
from labapp.registry.server import CONFIG, CONFIG_INSIDE, STORAGE, RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State


def labelled(engine: Engine, server: RegistryServer, role: str) -> list[str]:
    """The names of the containers of a registry's lab that have a role."""
    lab_id = server.name.rpartition("-")[2]
    filters = {"label": [f"{LABEL}={lab_id}", f"{ROLE_LABEL}={role}"]}
    return [found.name or "" for found in engine.client.containers.list(all=True, filters=filters)]


def here(own: RegistryServer, name: str) -> Reference:
    return Reference.parse(f"{own.address}/{name}")


# --- start, whatever happened before


def test_what_it_makes_is_labelled_for_this_machine_and_left_alone(
    own: RegistryServer, engine: Engine
) -> None:
    assert labelled(engine, own, "registry") == [own.name]
    volume = engine.client.volumes.get(own.name)
    assert volume.attrs["Labels"][LABEL] == own.name.rpartition("-")[2]
    before = engine.client.containers.get(own.name).attrs
    ports = before["HostConfig"]["PortBindings"]
    assert [bound["HostIp"] for bound in ports["5000/tcp"]] == ["127.0.0.1"]
    assert own.start().address == own.address
    after = engine.client.containers.get(own.name).attrs
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]


@pytest.mark.parametrize("accident", ["kill", "pause", "remove", "cut off"])
def test_it_comes_back_with_its_content_at_its_address(
    own: RegistryServer, engine: Engine, accident: str
) -> None:
    digest = put_image(own.registry(), "shop/back")
    address, container = own.address, engine.client.containers.get(own.name)
    if accident in ("kill", "pause"):
        getattr(container, accident)()
    else:
        container.remove(force=True)
    if accident == "cut off":  # a start, before the configuration was in
        engine.client.containers.create(own.image, name=own.name, labels=container.labels)
    with pytest.raises(RegistryUnreachable, match=address):
        own.registry()
    registry = own.start()
    assert (registry.address, registry.resolve("shop/back", "1")) == (address, digest)


def test_a_port_that_was_taken_while_it_was_stopped(
    own: RegistryServer, told: QuietFeedback
) -> None:
    digest, old = put_image(own.registry(), "shop/moved"), own.address
    own.stop()
    assert told.commands == [f"docker stop {own.name}"]
    assert b"labapp/" in own.logs()
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2]))):
        registry = own.start()
    assert (registry.address != old, registry.resolve("shop/moved", "1")) == (True, digest)
    assert any(old[-5:] in text and registry.address in text for text in told.lines)
    own.stop()
    assert own.start().address == registry.address  # the new port is kept from now on


def test_a_changed_configuration_takes_effect_and_a_wrong_one_is_told_with_the_log(
    own: RegistryServer,
) -> None:
    digest = put_image(own.registry(), "shop/kept")
    config = CONFIG.read_bytes().replace(b"enabled: true", b"enabled: false", 1)
    registry = own.start(files={CONFIG_INSIDE: config})
    assert registry.resolve("shop/kept", "1") == digest
    with pytest.raises(RegistryError, match="unsupported"):
        registry.delete_manifest("shop/kept", digest)
    with pytest.raises(
        RegistryError, match=f"no storage configuration(?s:.*)docker logs {own.name}"
    ):
        own.start(files={CONFIG_INSIDE: b"version: 0.1\nstorage: {}\n"})


def test_a_registry_that_was_never_started(tmp_path: Path, engine: Engine) -> None:
    never = RegistryServer(engine=engine, state=State.open(tmp_path))
    assert not never.is_running()
    assert never.logs() == b""
    for ask in (lambda: never.address, never.registry, lambda: never.storage(["ls"]), never.start):
        with pytest.raises(RegistryUnreachable, match=never.name):
            ask()
    never.remove()


def test_two_starts_at_once(tmp_path: Path, engine: Engine, server: RegistryServer) -> None:
    new = RegistryServer(engine=engine, state=State.open(tmp_path))
    try:
        with ThreadPoolExecutor(2) as threads:
            starts = [threads.submit(new.start, image=server.image) for _ in range(2)]
        assert [start.result().address for start in starts] == [new.address] * 2
        new.registry().ping()
        assert labelled(engine, new, "registry") == [new.name]
    finally:
        new.remove()


def test_what_runs_over_its_files_is_gone_and_in_the_end_all_of_it(
    own: RegistryServer, engine: Engine
) -> None:
    assert "registry" in own.storage(["ls", "/var/lib"])
    for argv, fact in ((["sh", "-c", "echo no good; exit 3"], "no good"), (["no-such"], "no-such")):
        with pytest.raises(RegistryError, match=fact):
            own.storage(argv)
    assert labelled(engine, own, "oneshot") == []
    for _ in range(2):
        own.remove()
        assert labelled(engine, own, "registry") == []
        assert own.name not in [volume.name for volume in engine.client.volumes.list()]


# --- what it holds


def test_a_copy_has_the_digest_of_its_source_and_sends_what_is_missing(
    own: RegistryServer, registry: Registry
) -> None:
    def sent(since: datetime, last: str) -> list[str]:
        """What it took since then, once the log has the last: it may be written late."""

        def told() -> list[str]:
            heard = parse_log(own.logs())
            said = heard[heard["time"] >= since]["meaning"]
            return list(said[said.str.startswith(("take this blob", "start", "store"))])

        wait_until(lambda: told()[-1:] == [last], seconds=3)
        return told()

    digest, target, told = put_image(registry, "test/source"), own.registry(), []
    source = registry.image(f"{registry.address}/test/source:1")
    began, to = datetime.now(UTC), here(own, "copied/tiny:1")
    copied = target.copy(registry, source, to=to, progress=lambda *now: told.append(now))
    registry.delete_manifest("test/source", digest)
    with pytest.raises(NotInRegistry):
        registry.resolve("test/source", digest)
    assert copied == digest == target.digest(to)
    image = target.image(to)
    assert image.manifest.raw == source.manifest.raw
    assert target.damaged_blobs(to.repository, image.manifest, contents=True) == []
    total = sum(blob.size for blob in image.manifest.blobs)
    assert (told, told[-1]) == (sorted(told), (total, total))
    stored = "store the manifest under tag"
    assert sent(began, f"{stored} 1") == ["start an upload", "start an upload", f"{stored} 1"]

    began = datetime.now(UTC)
    assert target.copy(registry, source, to=to.with_tag("again")) == digest
    assert target.copy(target, image, to=here(own, "beside/tiny:2")) == digest
    mounts = ["take this blob over from copied/tiny"] * 2
    assert sent(began, f"{stored} 2") == [f"{stored} again", *mounts, f"{stored} 2"]


# --- the request log


def test_what_is_said_to_it_is_told_request_by_request(own: RegistryServer) -> None:
    registry, blob, base = own.registry(), digest_of(b"told"), f"http://{own.address}"
    curl = requests.Session()
    curl.trust_env, curl.headers["User-Agent"] = False, "curl/8"

    def upload(*, patched: bool = False) -> None:
        place = curl.post(f"{base}/v2/shop/told/blobs/uploads/").headers["Location"]
        typed = {"Content-Type": "application/octet-stream"}
        if patched:
            place = curl.patch(base + place, data=b"told", headers=typed).headers["Location"]
        data = b"" if patched else b"told"
        curl.put(f"{base}{place}&digest={blob}", data=data, headers=typed)

    with listening(own) as wire:
        put_image(registry, "shop/told")  # the lab's own words are left out
        upload()
        upload(patched=True)
        curl.get(f"{base}/v2/shop/told/manifests/none")
    rows = wire.rows
    assert rows["time"].is_monotonic_increasing
    assert rows[["client", "meaning", "status", "digest"]].to_numpy().tolist() == [
        ["curl", "start an upload", 202, ""],
        ["curl", "finish the upload", 201, blob[7:15]],
        ["curl", "start an upload", 202, ""],
        ["curl", "take these bytes", 202, blob[7:15]],
        ["curl", "finish the upload", 201, blob[7:15]],
        ["curl", "give me the manifest of tag none", 404, ""],
    ]
    assert list(rows["bytes"])[:5] == [0, 4, 0, 4, 0], "with the request that brings them"
    # More than is read of the log at first.
    with listening(own) as wire:
        for _ in range(300):
            curl.get(f"{base}/v2/")
    assert list(wire.rows["path"]) == ["/v2/"] * 300
    with listening(own) as wire:
        upload()
        own.stop()
    assert list(wire.rows["bytes"].isna()) == [False, True]


def test_a_full_disk_is_named_and_the_next_try_works(
    request: pytest.FixtureRequest, tmp_path: Path, engine: Engine, server: RegistryServer
) -> None:
    small = RegistryServer(engine=engine, state=State.open(tmp_path))
    request.addfinalizer(lambda: small.remove())
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=8m"}
    engine.client.volumes.create(small.name, driver_opts=options)
    registry = small.start(image=server.image)
    filler, blob = f"{STORAGE}/filler", os.urandom(4_000_000)
    # In the end no upload begins at all.
    for filling in ("dd if=/dev/zero of={} bs=1M count=5", "dd if=/dev/zero of={} bs=4k; true"):
        small.storage(["sh", "-c", filling.format(filler)])
        registry.ping()  # it answers all the same
        with pytest.raises(RegistryError, match="disk"):
            registry.upload_blob("shop/full", [blob])
        small.storage(["rm", filler])
    digest, _ = registry.upload_blob("shop/full", [blob])
    assert registry.read_blob("shop/full", digest) == blob
