"""New manifests and image configs, written from their parts in OCI form.

The same parts always give the same bytes, and so the same digest.

Source: OCI Image Specification 1.1 (manifest.md, config.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from labapp.manifests import OCI_MANIFEST, Descriptor, History, Platform


def build_manifest(
    config: Descriptor,
    layers: Iterable[Descriptor],
    *,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an OCI manifest, for an image of one config and layers, lowest first."""
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _written_descriptor(config),
        "layers": [_written_descriptor(layer) for layer in layers],
    }
    return _json(manifest | ({"annotations": dict(annotations)} if annotations else {}))


def build_config(
    *,
    platform: Platform,
    diff_ids: Sequence[str],
    history: Sequence[History] = (),
    created: datetime | None = None,
    env: Sequence[str] = (),
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    user: str = "",
    working_dir: str = "",
    exposed_ports: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of an OCI image config.

    Args:
        platform: what the image runs on.
        diff_ids: the digests of the layers before compression, lowest first.
        history: the steps that made the image, oldest first.
        created: the moment to record; none by default, as it changes the digest each time.
        env: the environment as ``NAME=value``.
        entrypoint: the program that always runs.
        cmd: its default arguments.
        user: the user that runs it; root where empty.
        working_dir: the folder that it runs in.
        exposed_ports: the ports it listens on, as in ``8000/tcp``.
        labels: labels to record in the image.
    """
    run = {
        "Env": list(env),
        "Entrypoint": list(entrypoint),
        "Cmd": list(cmd),
        "User": user,
        "WorkingDir": working_dir,
        "ExposedPorts": {port: {} for port in exposed_ports},
        "Labels": dict(labels or {}),
    }
    config = {
        "architecture": platform.architecture,
        "os": platform.os,
        "variant": platform.variant,
        "created": _written_time(created),
        "config": _without_empty(run),
        "history": [_written_history(step) for step in history],
    }
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    return _json(_without_empty(config) | {"rootfs": rootfs})


def _written_descriptor(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    } | ({"annotations": dict(descriptor.annotations)} if descriptor.annotations else {})


def _written_history(step: History) -> dict[str, Any]:
    return _without_empty(
        {
            "created": _written_time(step.created),
            "created_by": step.created_by,
            "comment": step.comment,
            "empty_layer": step.empty_layer,
        }
    )


def _written_time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
