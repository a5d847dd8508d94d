"""Recipes of the base images that are made from Debian packages.

The lists are plain files in ``dockerfiles/bases``, to be read and changed there.
"""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labapp.manifests import History, Platform
from labapp.manifests.assembly import build_config

SUITE = "trixie"
FOLDER = Path(__file__).parents[2] / "dockerfiles" / "bases"
"""The folder with the package lists and the settings of apt and dpkg."""

EPOCH = 1754697600
"""Debian 13's release, in seconds since 1970.

Later file times become this one, so that the same packages make the same bytes, and so the same
digest, on every machine.
"""

# Engines put their own over the first two; this machine's have no place in an image.
_TIDY = (
    'rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/var/cache/apt/"*.bin;'
    ' chmod 644 "$1/etc/apt/apt.conf.d/90-as-in-public-images"'
)

_NOT_IN_REGISTRY = re.compile(
    r"\./(dev|run|var/cache|var/lib/(apt|dpkg)|usr/share/(lintian|man))/.+"
    r"|\./usr/share/doc/.+(?<!/copyright)$"
    r"|\./etc/(resolv\.conf|hostname)$"
)


@dataclass(frozen=True)
class Recipe:
    """How a root is made.

    Attributes:
        packages: the names of the packages that it must have.
        options: further options of mmdebstrap.
        environment: of the image that has this root.
        entrypoint: of that image.
        command: of that image.
    """

    name: str
    packages: tuple[str, ...]
    options: tuple[str, ...]
    environment: tuple[str, ...] = (
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def config(self, *, diff_id: str, platform: Platform, labels: Mapping[str, str]) -> bytes:
        """Return the config of the image whose only layer this root is."""
        made = f"made from Debian packages by mmdebstrap: {' '.join(self.packages)}"
        return build_config(
            platform=platform,
            diff_ids=[diff_id],
            history=[History(created_by=f"base image {self.name}", comment=made)],
            env=self.environment,
            entrypoint=self.entrypoint,
            cmd=self.command,
            labels=labels,
        )


def recipe(name: str) -> Recipe:
    """Return the recipe of a base image.

    Args:
        name: ``python:3.13``, ``python:3.13-slim`` or ``registry``.
    """
    if name == "registry":
        return Recipe(
            name,
            _listed("registry.packages"),
            ("--variant=extract",),
            entrypoint=("/usr/bin/docker-registry",),
            command=("serve", "/etc/docker/registry/config.yml"),
        )
    settings_file = shlex.quote(str(FOLDER / "apt.conf"))
    kind = "slim" if name.endswith("-slim") else "full"
    settings = ["dpkg.conf"] + ["slim.dpkg.conf"] * (kind == "slim")
    options = (
        "--variant=apt",
        # One by one: mmdebstrap heeds them for the essential packages only outside of a file.
        *(f"--dpkgopt={line}" for file in settings for line in _listed(file)),
        "--dpkgopt=force-unsafe-io",
        # Only at the end: mmdebstrap itself needs the packages that this has apt throw away.
        f"--customize-hook=upload {settings_file} /etc/apt/apt.conf.d/90-as-in-public-images",
        f"--customize-hook={_TIDY}",
    )
    return Recipe(name, _listed(f"{kind}.packages"), options, command=("python3",))


def tidy_registry(tar: bytes) -> bytes:
    """Return the registry's root without what it doesn't need, and with busybox's programs linked.

    The root was unpacked, not installed, so no program could run in it to do this.
    """
    result = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as old,
        tarfile.open(fileobj=result, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        there = set()
        for member in old:
            if not _NOT_IN_REGISTRY.match(member.name):
                member.mode &= ~0o6000  # no set-uid programs
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
                there.add(member.name)
        for applet in _listed("registry.applets"):
            link = tarfile.TarInfo(f"./usr/bin/{applet}")
            if link.name not in there:
                link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "busybox", EPOCH
                new.addfile(link)
    return result.getvalue()


def _listed(file: str) -> tuple[str, ...]:
    """Return the lines of a list, without its comments."""
    text = (FOLDER / file).read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)
