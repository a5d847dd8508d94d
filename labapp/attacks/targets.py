"""What an attack may touch: this lab's own registry, containers and files, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

import docker.errors

from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.addresses import is_loopback, same_address
from labapp.state import LABEL

BASES = "base/"
"""The repositories that all chapters build on; an attack works on a copy."""


def own_tag(
    bench: Bench, target: Reference | str, *, registry: Registry | None = None
) -> Reference:
    """Return a reference to a tag in a registry of this lab.

    Args:
        bench: which lab.
        target: the reference.
        registry: another registry of this lab, such as the one with accounts.

    Raises:
        InvalidReference: it is no reference.
        AttackError: it is in another registry, or in the lab's own base images, or has no tag.
    """
    where = registry or bench.registry
    reference = Reference.parse(target) if isinstance(target, str) else target
    doing = f"attacking '{reference}'"
    if not same_address(reference.registry, where.address):
        raise AttackError(
            f"{doing}: it is in the registry '{reference.registry}'. The lab attacks its own one "
            f"only: name an image as '{where.address}/team/web:1'."
        )
    if registry is not None and not is_served(bench, registry.address):
        raise AttackError(
            f"{doing}: no container of this lab serves '{registry.address}'. The lab attacks its "
            f"own registries only; its open one is '{bench.registry.address}'."
        )
    if reference.repository.startswith(BASES):
        raise AttackError(
            f"{doing}: all chapters build on the images in '{BASES}…'. Attack a copy instead: "
            "the attack 'base' makes 'team/base:1'."
        )
    if reference.tag is None or reference.digest is not None:
        raise AttackError(
            f"{doing}: an attack moves or watches a tag. Name one, as in "
            f"'{where.address}/team/web:1'."
        )
    return reference


def own_path(bench: Bench, path: Path) -> Path:
    """Return a path inside the chapter's work folder, with links followed.

    Raises:
        AttackError: it leads elsewhere.
    """
    work, whole = bench.work.resolve(), path.resolve()
    if not whole.is_relative_to(work) or whole == work:
        raise AttackError(
            f"attacking '{path}': it is not in this chapter's folder '{work}'. Make a copy there "
            "first: 'lab.application()'."
        )
    return whole


def service_name(bench: Bench) -> str:
    """Return the name of the container that a delivery script starts."""
    return f"labapp-live-{bench.state.lab_id}"


def own_container(bench: Bench, name: str) -> bool:
    """Tell whether a container of that name is there, and this lab's.

    Raises:
        AttackError: it is there, and somebody else's.
    """
    with bench.engine.doing(f"looking for the container '{name}'", AttackError):
        with contextlib.suppress(docker.errors.NotFound):
            container = bench.engine.client.containers.get(name)
            # A delivery script need not label what it starts; the name is this lab's all the same.
            mine = container.labels.get(LABEL) == bench.state.lab_id
            if not mine and name != service_name(bench):
                raise AttackError(
                    f"attacking the container '{name}': this lab did not start it. Rename it, or "
                    f"remove it with 'docker rm -f {name}' if it is yours."
                )
            return True
        return False


def is_served(bench: Bench, address: str) -> bool:
    """Tell whether a container of this lab, running or not, is for an address."""
    host, _, port = address.rpartition(":")
    label: dict[str, str | list[str] | bool] = {"label": f"{LABEL}={bench.state.lab_id}"}
    with bench.engine.doing("looking for this lab's registries", AttackError):
        containers = bench.engine.client.containers.list(
            all=True, filters=label, ignore_removed=True
        )
    bindings = [each.attrs["HostConfig"].get("PortBindings") or {} for each in containers]
    places = [place for ports in bindings for bound in ports.values() for place in bound or ()]
    return any(
        place.get("HostPort") == port and place.get("HostIp") in _addresses(host)
        for place in places
    )


def _addresses(host: str) -> set[str]:
    host = host.strip("[]")
    return {host, "127.0.0.1", "::1"} if is_loopback(host) else {host}
