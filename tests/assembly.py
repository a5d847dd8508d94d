"""Manifests and image configs made from their parts, for tests that need an image of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from labapp.registry.manifests import OCI_MANIFEST, Descriptor, History, Platform, canonical_json


def build_manifest(config: Descriptor, layers: Iterable[Descriptor]) -> bytes:
    """Return the bytes of an OCI manifest, for an image of one config and layers, lowest first."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(config),
            "layers": [_descriptor(layer) for layer in layers],
        }
    )


def build_config(
    *, platform: Platform, diff_ids: Sequence[str], history: Sequence[History] = ()
) -> bytes:
    """Return the bytes of an OCI image config, whose layers the steps of the history made."""
    return canonical_json(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "config": {},
            "history": [{"created_by": step.created_by} for step in history],
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
