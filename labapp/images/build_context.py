"""The build context: the part of a folder that is sent to the builder, as a tar file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import IO

from docker.utils.build import exclude_paths

IGNORE = ".dockerignore"


def write_context(archive: IO[bytes], context: Path, dockerfile: Path) -> str:
    """Write a folder to a tar file, without what its ``.dockerignore`` leaves out.

    Args:
        archive: where to write.
        context: the folder.
        dockerfile: the Dockerfile, which may be outside of the folder.

    Returns:
        The Dockerfile's name inside the tar file.

    Raises:
        OSError: a file can't be read.
    """
    context, dockerfile = context.resolve(), dockerfile.resolve()
    ignore = context / IGNORE
    text = ignore.read_text(encoding="utf-8-sig") if ignore.is_file() else ""
    lines = map(str.strip, text.splitlines())
    patterns = [line for line in lines if line and not line.startswith("#")]
    inside = dockerfile.is_relative_to(context)
    # The name must not change from build to build: that would spoil the cache of a `COPY . .`.
    name = dockerfile.relative_to(context).as_posix() if inside else ".labapp.Dockerfile"
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(exclude_paths(str(context), patterns, name)):
            if inside or path != IGNORE:
                tar.add(context / path, path.replace("\\", "/"), recursive=False, filter=_as_root)
        if not inside:
            tar.add(dockerfile, name, filter=_as_root)
            # The engine reads this file too, and drops what nobody put into the folder.
            extra = f"{text or IGNORE}\n{name}\n".encode()
            member = tarfile.TarInfo(IGNORE)
            member.size = len(extra)
            tar.addfile(member, io.BytesIO(extra))
    return name


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Set the owner as the docker command line does, so that both share the build cache."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
