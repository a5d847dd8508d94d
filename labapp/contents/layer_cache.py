"""Read layers on disk, one file a digest: a layer never changes, so a file is good for ever.

A file is a checksum and what it covers: a numpy archive of the packed columns, and JSON for the
rest. It holds no file's content, and of a secret only where it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from labapp.contents.layers import Layer, Secret
from labapp.errors import StateError

FORMAT = 1
"""To be raised with each change of what is read from a layer or of how it is written."""

_COLUMNS = ("kinds", "bytes", "modes", "uids", "gids", "owners")
_CHECKSUM_BYTES = 32


def load(folder: Path, digest: str) -> Layer | None:
    """Return a layer that was saved before; None if there is none, or its file is damaged.

    Args:
        folder: of the cache.
        digest: of the layer's blob.
    """
    path = _path(folder, digest)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    payload = memoryview(content)[_CHECKSUM_BYTES:]
    if hashlib.sha256(payload).digest() == content[:_CHECKSUM_BYTES]:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
            return _unpacked(io.BytesIO(payload))
    with contextlib.suppress(OSError):
        path.unlink()  # so that it's written anew
    return None


def save(folder: Path, digest: str, layer: Layer) -> None:
    """Write a layer: all of it, or, after a crash, none of it.

    Raises:
        StateError: the file can't be written, say because the disk is full.
    """
    path = _path(folder, digest)
    held = io.BytesIO()
    text = np.frombuffer("\0".join(layer.paths).encode(), np.uint8)
    rest = np.frombuffer(json.dumps(_rest(layer), separators=(",", ":")).encode(), np.uint8)
    columns = {name: getattr(layer, name) for name in _COLUMNS}
    np.savez(held, paths=text, rest=rest, **columns)
    payload = held.getbuffer()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix="draft-", delete=False) as draft:
            try:
                draft.write(hashlib.sha256(payload).digest())
                draft.write(payload)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
        Path(draft.name).replace(path)
    except OSError as error:
        raise StateError(
            f"writing '{path}': {error.strerror or error}. Free some disk space and try again."
        ) from error


def _path(folder: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return folder / f"v{FORMAT}" / f"{algorithm}-{value}"


def _rest(layer: Layer) -> dict[str, Any]:
    return {
        "diff_id": layer.diff_id,
        "targets": list(layer.targets.items()),
        "removed": layer.removed,
        "claims": layer.claims,
        "elsewhere": list(layer.elsewhere.items()),
        "databases": layer.databases,
        "texts": layer.texts,
        "secrets": [asdict(secret) for secret in layer.secrets],
        "notes": layer.notes,
    }


def _unpacked(held: io.BytesIO) -> Layer:
    with np.load(held, allow_pickle=False) as found:
        rest = json.loads(found["rest"].tobytes())
        text = found["paths"].tobytes().decode()
        return Layer(
            paths=text.split("\0") if text else [],
            diff_id=rest["diff_id"],
            targets={number: target for number, target in rest["targets"]},
            removed=[(path, inside) for path, inside in rest["removed"]],
            claims=[(document, package) for document, package in rest["claims"]],
            elsewhere={number: paths for number, paths in rest["elsewhere"]},
            databases=rest["databases"],
            texts=rest["texts"],
            secrets=[Secret(**secret) for secret in rest["secrets"]],
            notes=rest["notes"],
            **{name: found[name] for name in _COLUMNS},
        )
