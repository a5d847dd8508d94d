"""Images made from Debian's packages by ``mmdebstrap``; the same packages give the same bytes.

The root comes as a tar, which is hashed and compressed on its way to where the layer is stored;
nothing of it is kept on disk. The package lists are files in ``dockerfiles/bases``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labapp import feedback
from labapp.errors import BaseError
from labapp.feedback import Bars
from labapp.machine import root
from labapp.machine.root import as_root, run_as_root
from labapp.registry import manifests
from labapp.registry.manifests import Manifest, Platform, canonical_json
from labapp.state import REPOSITORY, SOURCE_LABEL

SUITE, PYTHON = "trixie", "3.13"
"""The Debian of the images that are made here, and its Python, the one of the whole course."""

MIRROR_VARIABLE = "LABAPP_DEBIAN_MIRROR"
FOLDER = REPOSITORY / "dockerfiles" / "bases"

SOURCE = "debian-packages"
"""What the images that are made here say of their source."""

EPOCH = 1754697600
"""Debian 13's release, in seconds since 1970: later file times become this one, on any machine."""

# Engines put their own over the first two; this machine's have no place in an image.
_TIDY = (
    'rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/var/cache/apt/"*.bin;'
    ' chmod 644 "$1/etc/apt/apt.conf.d/90-as-in-public-images"'
)


@contextlib.contextmanager
def making(names: Iterable[str], platform: Platform, folder: Path) -> Iterator[dict[str, Root]]:
    """Start the roots of some images, and show their bars; they leave nothing in their folder."""
    reason = root.why_no_packages()
    if reason is None and not Platform.here().can_run(platform):
        reason = f"this machine is {Platform.here()}, and the engine's containers are {platform}."
    if reason:
        raise BaseError(f"making the images {', '.join(names)} from Debian packages: {reason}")
    root.install_packages(("mmdebstrap", "debian-archive-keyring"))
    roots: dict[str, Root] = {}
    title = "Making base images from Debian packages"
    with feedback.bars(title, unit="steps") as bars, contextlib.ExitStack() as ending:
        ending.callback(clear, folder)
        for name in names:
            roots[name] = Root(recipe(name), folder=folder, bars=bars)
            ending.callback(roots[name].stop)
        yield roots


def clear(folder: Path) -> None:
    """Remove what roots that were cut off left in their folder."""
    if folder.exists() and any(folder.iterdir()):
        root.unmount([folder])
        run_as_root(["rm", "-rf", "--one-file-system", str(folder)])


@dataclass(frozen=True)
class Recipe:
    """How a root is made: packages, and options of mmdebstrap; and what runs in its image."""

    name: str
    packages: tuple[str, ...]
    options: tuple[str, ...]
    runs: dict[str, Any]


def recipe(name: str) -> Recipe:
    """Return the recipe of ``registry``, or of a Python by its public name."""
    if name == "registry":
        tidy = shlex.quote(str(FOLDER / "registry.tidy.sh"))
        extract = ("--variant=extract", f'--extract-hook=sh {tidy} "$1"')
        serve = ["serve", "/etc/docker/registry/config.yml"]
        runs = {"Entrypoint": ["/usr/bin/docker-registry"], "Cmd": serve}
        return Recipe(name, lines_of(FOLDER / "registry.packages"), extract, runs)
    settings_file = shlex.quote(str(FOLDER / "apt.conf"))
    kind = "slim" if name.endswith("-slim") else "full"
    settings = ["dpkg.conf"] + ["slim.dpkg.conf"] * (kind == "slim")
    options = (
        "--variant=apt",
        # One by one: mmdebstrap heeds them for the essential packages only outside of a file.
        *(f"--dpkgopt={line}" for file in settings for line in lines_of(FOLDER / file)),
        "--dpkgopt=force-unsafe-io",
        # Only at the end: mmdebstrap itself needs the packages that this has apt throw away.
        f"--customize-hook=upload {settings_file} /etc/apt/apt.conf.d/90-as-in-public-images",
        f"--customize-hook={_TIDY}",
    )
    return Recipe(name, lines_of(FOLDER / f"{kind}.packages"), options, {"Cmd": ["python3"]})


class Root:
    """A root in the making; iterate over it once for the chunks of its tar."""

    def __init__(self, recipe: Recipe, *, folder: Path, bars: Bars) -> None:
        """Start mmdebstrap; what it has no room for in memory is in the folder."""
        self._recipe, self._bars = recipe, bars
        self._log: deque[str] = deque(maxlen=8)
        folder.mkdir(parents=True, exist_ok=True)
        mirror = os.environ.get(MIRROR_VARIABLE)
        command = [
            *("env", f"TMPDIR={folder}", f"SOURCE_DATE_EPOCH={EPOCH}", "LC_ALL=C.UTF-8"),
            *("mmdebstrap", "--verbose", "--format=tar", "--skip=output/dev"),
            *recipe.options,
            f"--include={','.join(recipe.packages)}",
            *(SUITE, "-"),
            *([mirror] if mirror else []),
        ]
        self._process = subprocess.Popen(
            as_root(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, to end it as a whole
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __iter__(self) -> Generator[bytes]:
        """Yield the tar as it comes; a failure has the end of mmdebstrap's log."""
        assert self._process.stdout is not None
        with self._process.stdout as tar:
            while chunk := tar.read(1024 * 1024):
                yield chunk
        status = self._process.wait()
        self._watcher.join()
        # A tar that was cut off must not look like a whole one.
        if status != 0:
            raise BaseError(
                f"making '{self._recipe.name}' from Debian packages: mmdebstrap ended with "
                f"{status}. Mend what its last lines tell of (a mirror that answers can be named "
                f"in {MIRROR_VARIABLE}), then try again:\n  " + "\n  ".join(self._log)
            )

    def stop(self) -> None:
        """End mmdebstrap and what it runs; by force if that takes long."""
        for signal in ("TERM", "KILL"):
            if self._process.poll() is None:
                # The whole group: mmdebstrap alone would wait for its dpkg to end.
                run_as_root(["kill", f"-{signal}", "--", f"-{self._process.pid}"])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)

    def _watch(self) -> None:
        """Read mmdebstrap's words; they move the bar, and explain a failure."""
        assert self._process.stderr is not None
        steps_a_package = 1 if "--variant=extract" in self._recipe.options else 3
        total = done = 0
        with self._process.stderr as words:
            for raw in words:
                line = raw.decode("utf-8", "replace").strip()
                self._log.append(line)
                if match := re.search(r"(\d+) newly installed", line):
                    total += int(match[1]) * steps_a_package
                elif line.startswith(("I: ", "Get:", "Unpacking ", "Setting up ")):
                    done += bool(total) and not line.startswith("I: ")
                    note = line.removeprefix("I: ")[:40]
                    self._bars.update(self._recipe.name, done, total or None, note)


def image(
    recipe: Recipe,
    tar: Iterable[bytes],
    store: Callable[[Iterable[bytes]], tuple[str, int]],
    platform: Platform,
) -> Manifest:
    """Store an image of one layer as its tar comes; ``store`` returns a blob's digest and size."""
    hasher = hashlib.sha256()

    def packed() -> Iterator[bytes]:
        from isal import isal_zlib

        # The next two levels take 1.5 and 2.5 times as long, for 1 and 3 % of the size; 31 asks for
        # a gzip header, in which isal writes no time.
        packer = isal_zlib.compressobj(1, wbits=31)
        for chunk in tar:
            hasher.update(chunk)
            yield packer.compress(chunk)
        yield packer.flush()

    layer, layer_size = store(packed())
    # Podman's build cache passes over a base whose history has no times.
    created = {"created": datetime.fromtimestamp(EPOCH, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    runs: dict[str, Any] = {
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Labels": {SOURCE_LABEL: SOURCE},
        **recipe.runs,
    }
    described = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": runs,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hasher.hexdigest()}"]},
        "history": [created | {"created_by": f"base image {recipe.name}"}],
        **created,
    }
    config, config_size = store([canonical_json(described)])
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "config": {"mediaType": manifests.OCI_CONFIG, "digest": config, "size": config_size},
        "layers": [{"mediaType": manifests.OCI_LAYER, "digest": layer, "size": layer_size}],
    }
    parsed = manifests.parse_manifest(canonical_json(manifest))
    assert isinstance(parsed, Manifest)
    return parsed


def lines_of(file: Path) -> tuple[str, ...]:
    """Return the lines of a list, without its comments."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(filter(None, (line.partition("#")[0].strip() for line in lines)))
