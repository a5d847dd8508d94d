"""A mirror in front of the registry, honest or not: :mod:`middleman` in a container of this lab."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from pathlib import Path

import docker.errors

from labapp.attacks import middleman, targets
from labapp.attacks.forging import Forged
from labapp.attacks.journal import Change, Journal
from labapp.bench import Bench
from labapp.errors import AttackError, LabError
from labapp.images.running import published_url
from labapp.registry import Registry
from labapp.state import ROLE_LABEL

START_SECONDS = 20.0

_INSIDE = "/middleman.py"


def place(bench: Bench, attack: str, forged: Forged | None) -> str:
    """Start a mirror and return its address.

    Args:
        bench: which lab.
        attack: the attack's id.
        forged: the image that it hands out instead of those of the same repository; None for an
            honest mirror.

    Raises:
        AttackError: one runs already, or it can't be started.
    """
    doing = f"starting the mirror '{name(bench)}'"
    if targets.own_container(bench, name(bench)):
        raise AttackError(f"{doing}: one runs already. Undo the attacks first.")
    network, upstream = _inside(bench)
    environment = {"UPSTREAM": upstream}
    data = {}
    if forged is not None:
        data = {"repository": forged.repository, "after": forged.manifest.digest}
        environment |= {"REPOSITORY": forged.repository, "INSTEAD": forged.manifest.digest}
    Journal(bench.state).note(Change(attack, "container", name(bench), data))
    if forged is not None:
        forged.upload(bench.registry, forged.manifest.digest)
    base = bench.base("python:3.13-slim")
    with bench.engine.doing(doing, AttackError):
        try:
            bench.engine.client.images.get(str(base))
        except docker.errors.ImageNotFound:
            bench.engine.client.api.pull(base.name, tag=base.identifier)
        container = bench.engine.client.containers.create(
            str(base),
            command=["python3", "-u", _INSIDE],
            name=name(bench),
            environment=environment,
            network=network,
            ports={f"{middleman.PORT}/tcp": ("127.0.0.1", 0)},
            labels={**bench.state.labels, ROLE_LABEL: "attack"},
        )
        container.put_archive("/", _script())
        container.start()
        container.reload()
        url = published_url(container, middleman.PORT) or ""
    address = url.removeprefix("http://").replace("127.0.0.1", "localhost")
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(LabError):
            Registry(address).ping()
            return address
        time.sleep(0.05)
    raise AttackError(
        f"{doing}: it does not answer at '{address}'. 'docker logs {name(bench)}' may say why; "
        "undo the attacks, then try again."
    )


def log(bench: Bench) -> str:
    """Return what the mirror has logged; empty when there is none."""
    with bench.engine.doing(f"reading the log of '{name(bench)}'", AttackError):
        try:
            container = bench.engine.client.containers.get(name(bench))
        except docker.errors.NotFound:
            return ""
        return container.logs().decode("utf-8", "replace")


def name(bench: Bench) -> str:
    """Return the name of the mirror's container."""
    return f"labapp-mirror-{bench.state.lab_id}"


def _inside(bench: Bench) -> tuple[str, str]:
    """Return a network of the registry's container, and its host and port there."""
    doing = f"looking for the registry's container '{bench.server.name}'"
    with bench.engine.doing(doing, AttackError):
        attributes = bench.engine.client.api.inspect_container(bench.server.name)
    connected = attributes["NetworkSettings"]
    port = next(iter(connected.get("Ports") or {}), "5000/tcp").partition("/")[0]
    for network, settings in (connected.get("Networks") or {}).items():
        if address := settings.get("IPAddress"):
            return network, f"{address}:{port}"
    raise AttackError(
        f"{doing}: it has no address that another container reaches, as with rootless Podman. "
        "This one attack needs an engine whose containers share a network, such as Docker."
    )


def _script() -> bytes:
    """Return a tar with the mirror's program, to be unpacked over ``/``."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(Path(middleman.__file__), _INSIDE.removeprefix("/"))
    return target.getvalue()
