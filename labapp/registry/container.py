"""A registry's container: the files that are put into it, and the port that leads to it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from docker.models.containers import Container

PORT_INSIDE = "5000/tcp"


def port_of(container: Container) -> int:
    """Return the port of this machine that leads to a registry's container; 0 if none does."""
    bindings = container.attrs["HostConfig"].get("PortBindings") or {}
    return next((int(bound["HostPort"] or 0) for bound in bindings.get(PORT_INSIDE) or ()), 0)


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return a tar with files, to be unpacked over ``/``; the same files make the same bytes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for path, content in files.items():
            inside = tarfile.TarInfo(path.removeprefix("/"))
            inside.size, inside.mode = len(content), 0o644
            tar.addfile(inside, io.BytesIO(content))
    return target.getvalue()
