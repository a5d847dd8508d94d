"""Small JSON files, gzipped: what was read once and need not be read again."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

LIMIT_BYTES = 256 * 1024 * 1024
"""The longest content that is taken from a file, in bytes after unpacking."""


def read(path: Path) -> dict[str, Any] | None:
    """Return a file's content; None where there is none, or a damaged one.

    gzip's checksum tells that a file was altered or cut off.
    """
    try:
        return parse(path.read_bytes())
    except OSError:
        return None


def parse(data: bytes) -> dict[str, Any] | None:
    """Return what a file's bytes hold; None if they are damaged."""
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(LIMIT_BYTES + 1)
        content = json.loads(text) if len(text) <= LIMIT_BYTES else None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error):
        return None
    return content if isinstance(content, dict) else None


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file: all of it, or, after a crash, none of it.

    Raises:
        OSError: the file can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as draft:
        try:
            # Without a time in its header, equal content gives equal bytes.
            draft.write(gzip.compress(text, mtime=0))
        except BaseException:
            draft.close()
            Path(draft.name).unlink()
            raise
    Path(draft.name).chmod(0o644)
    Path(draft.name).replace(path)


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write a file that can be done without: a full disk costs time later, nothing else."""
    with contextlib.suppress(OSError):
        write(path, content)
