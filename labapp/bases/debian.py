"""Root file systems made from Debian's packages, packed into image layers as they come.

``mmdebstrap`` makes the root and writes it as a tar; the tar is hashed and compressed on its way to
where the layer is stored. Nothing of it is kept on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path

from isal import isal_zlib

from labapp.bases.debian_recipes import EPOCH, SUITE, Recipe
from labapp.errors import BaseError
from labapp.feedback import Bars, Feedback
from labapp.system import apt_packages, processes
from labapp.system.privileges import as_root, run_as_root

TOOLS = ("mmdebstrap", "debian-archive-keyring")
MIRROR_VARIABLE = "LABAPP_DEBIAN_MIRROR"

_GZIP_LEVEL = 1  # the next two take 1.5 and 2.5 times as long, for 1 and 3 % of the size
_CHUNK_BYTES = 1024 * 1024
_GZIP_WINDOW = 31  # of zlib: with a gzip header, in which isal writes no time


def why_not(platform: str) -> str | None:
    """Return why roots can't be made on this machine, or None when they can.

    Args:
        platform: what the engine's containers run on, as in ``linux/amd64``.
    """
    if reason := apt_packages.why_not():
        return reason
    with contextlib.suppress(OSError):
        answer = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=False
        )
        here = {"armhf": "arm", "i386": "386", "ppc64el": "ppc64le"}.get(
            answer.stdout.strip(), answer.stdout.strip()
        )
        if here != platform.split("/")[1]:
            return f"this machine is {here}, and the engine's containers are {platform}."
    return None


def install_tools(*, feedback: Feedback) -> None:
    """Install what makes roots, if it is missing.

    Raises:
        EngineError: apt failed.
    """
    if apt_packages.missing(TOOLS):
        apt_packages.refresh(feedback=feedback)
        apt_packages.install(TOOLS, feedback=feedback)


def clear(folder: Path) -> None:
    """Remove what roots that were cut off left in their folder."""
    if folder.exists() and any(folder.iterdir()):
        processes.unmount([folder])
        run_as_root(["rm", "-rf", "--one-file-system", str(folder)])


class Root:
    """A root in the making; iterate over it once for the chunks of its tar."""

    def __init__(self, recipe: Recipe, *, folder: Path, bars: Bars) -> None:
        """Prepare to make a root; nothing is started yet.

        Args:
            recipe: what is to be in it.
            folder: where it is put together before it is packed; it needs the root's size.
            bars: shows progress under the recipe's name.
        """
        self.recipe = recipe
        self._folder = folder
        self._bars = bars
        self._log: deque[str] = deque(maxlen=200)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def __iter__(self) -> Generator[bytes]:
        """Run mmdebstrap and yield its tar.

        Raises:
            BaseError: it failed; the message has the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        mirror = os.environ.get(MIRROR_VARIABLE)
        command = [
            "env",
            f"TMPDIR={self._folder}",
            f"SOURCE_DATE_EPOCH={EPOCH}",
            "LC_ALL=C.UTF-8",
            "mmdebstrap",
            "--verbose",
            "--format=tar",
            "--skip=output/dev",
            *self.recipe.options,
            f"--include={','.join(self.recipe.packages)}",
            SUITE,
            "-",
            *([mirror] if mirror else []),
        ]
        with subprocess.Popen(
            as_root(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own, to end it as a whole
        ) as self._process:
            watcher = threading.Thread(target=self._watch, daemon=True)
            watcher.start()
            try:
                if self._is_stopped:
                    self.stop()
                assert self._process.stdout is not None
                while chunk := self._process.stdout.read(_CHUNK_BYTES):
                    yield chunk
            except BaseException:
                self.stop()
                raise
            status = self._process.wait()
            watcher.join()
        # A tar that was cut off must not look like a whole one.
        if status != 0:
            raise self._failure(status)

    def stop(self) -> None:
        """End mmdebstrap and what it runs; by force if that takes long."""
        self._is_stopped = True
        process = self._process
        for signal, seconds in (("TERM", 10.0), ("KILL", 10.0)):
            if process is not None and process.poll() is None:
                # The whole group: mmdebstrap alone would wait for its dpkg to end.
                run_as_root(["kill", f"-{signal}", "--", f"-{process.pid}"])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)

    def _watch(self) -> None:
        """Read mmdebstrap's words; they move the bar, and explain a failure."""
        assert self._process is not None and self._process.stderr is not None
        steps_a_package = 1 if "--variant=extract" in self.recipe.options else 3
        transactions = 1 if steps_a_package == 1 else 2
        packages = done = 0
        for raw in self._process.stderr:
            line = raw.decode("utf-8", "replace").strip()
            self._log.append(line)
            if match := re.search(r"(\d+) newly installed", line):
                packages += int(match[1])
                transactions -= 1
            elif packages and (match := re.match(r"(Get:|Unpacking |Setting up )(\S+).*", line)):
                done += 1
                total = packages * steps_a_package
                note = {"Get:": "fetching"}.get(match[1], line.partition("(")[0].rstrip(" .")[:40])
                self._bars.update(self.recipe.name, done, None if transactions else total, note)

    def _failure(self, status: int) -> BaseError:
        said = [line for line in self._log if not line.startswith(("Get:", "Selecting", "(Read"))]
        text = "\n".join(said)
        cause, step = f"mmdebstrap ended with {status}", "Mend what its last lines tell of"
        for pattern, known, next_step in _CAUSES:
            if re.search(pattern, text):
                cause, step = known, next_step
                break
        tail = "\n  ".join(said[-5:])
        return BaseError(
            f"making '{self.recipe.name}' from Debian packages: {cause}. {step}, then try again. "
            f"The log ends:\n  {tail}"
        )


_CAUSES = (
    (r"No space left on device", "the disk is full", "Free some disk space"),
    (
        r"Temporary failure resolving|Could not resolve",
        "the Debian mirror's name is not known here: no network, or no name server",
        "Connect to the network",
    ),
    (
        r"Could not connect|Connection refused|Network is unreachable|Connection timed out|"
        r"Unable to connect",
        "the Debian mirror can't be reached",
        f"Connect to the network, or name another mirror in {MIRROR_VARIABLE}",
    ),
    (
        r"NO_PUBKEY|is not signed|public key is not available|no-key",
        "the keys of Debian on this machine are too old for this release",
        "Bring 'debian-archive-keyring' up to date",
    ),
)


class Layer:
    """A tar packed into a layer as it passes by; iterate over it once for the gzipped chunks."""

    def __init__(self, tar: Iterable[bytes]) -> None:
        self._tar = tar
        self._hasher = hashlib.sha256()

    @property
    def diff_id(self) -> str:
        """The digest of the tar before compression; known at the end (OCI config.md)."""
        return f"sha256:{self._hasher.hexdigest()}"

    def __iter__(self) -> Generator[bytes]:
        packer = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
        for chunk in self._tar:
            self._hasher.update(chunk)
            yield packer.compress(chunk)
        yield packer.flush()
