"""A mirror in front of the registry, honest or not: :mod:`middleman` in a container of this lab."""

from __future__ import annotations

from pathlib import Path

from labapp.attacks import middleman
from labapp.attacks.forging import Forged
from labapp.attacks.journal import Change, Journal, own_container
from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.journey.bases import SLIM
from labapp.journey.run import wait_until_ready
from labapp.registry.server import PORT_INSIDE
from labapp.state import ROLE_LABEL


def place(bench: Bench, attack: str, forged: Forged | None) -> str:
    """Start a mirror and return its address; without a forged image to hand out, it is honest."""
    doing = f"starting the mirror '{name(bench)}'"
    if own_container(bench, name(bench)):
        raise AttackError(f"{doing}: one runs already. Undo the attacks first.")
    network, upstream = _inside(bench)
    environment, data = {"UPSTREAM": upstream}, {}
    if forged is not None:
        data = {"repository": forged.repository, "after": forged.manifest.digest}
        environment |= {"REPOSITORY": forged.repository, "INSTEAD": forged.manifest.digest}
    Journal(bench.state).note(Change(attack, "container", name(bench), data))
    if forged is not None:
        forged.upload(bench.registry, forged.manifest.digest)
    program = Path(middleman.__file__).read_text(encoding="utf-8")
    with bench.engine.doing(doing, AttackError):
        container = bench.engine.client.containers.run(
            str(bench.base(SLIM)),
            ["python3", "-u", "-c", program],
            name=name(bench),
            environment=environment,
            network=network,
            ports={f"{middleman.PORT}/tcp": ("127.0.0.1", 0)},
            labels={**bench.engine.labels, ROLE_LABEL: "attack"},
            detach=True,
        )
        url = wait_until_ready(container, middleman.PORT, "/v2/", doing=doing) or ""
    return url.replace("http://127.0.0.1", "localhost")


def log(bench: Bench) -> str:
    """Return what the mirror has logged; empty when there is none."""
    container = own_container(bench, name(bench))
    if container is None:
        return ""
    with bench.engine.doing(f"reading the log of '{name(bench)}'", AttackError):
        return container.logs().decode("utf-8", "replace")


def name(bench: Bench) -> str:
    """Return the name of the mirror's container."""
    return f"labapp-mirror-{bench.state.lab_id}"


def _inside(bench: Bench) -> tuple[str, str]:
    """Return a network of the registry's container, and its host and port there."""
    doing = f"looking for the registry's container '{bench.server.name}'"
    with bench.engine.doing(doing, AttackError):
        attributes = bench.engine.client.api.inspect_container(bench.server.name)
    for network, settings in (attributes["NetworkSettings"].get("Networks") or {}).items():
        if address := settings.get("IPAddress"):
            return network, f"{address}:{PORT_INSIDE.partition('/')[0]}"
    raise AttackError(
        f"{doing}: it has no address that another container reaches, as with rootless Podman. "
        "This one attack needs an engine whose containers share a network, such as Docker."
    )
