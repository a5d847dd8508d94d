"""The files of the lab's registry: what its HTTP door can't do is done in its volume.

Source: the paths are those of CNCF Distribution 2 and 3, registry/storage/paths.go.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence

import docker.errors

from labapp.engine import Engine
from labapp.errors import InvalidReference, RegistryError
from labapp.leftovers import OWNER_LABEL, owner
from labapp.manifests import is_digest
from labapp.state import ROLE_LABEL, State

STORAGE = "/var/lib/registry"
"""Where the registry has its files, in its container."""

CONTENT = f"{STORAGE}/docker/registry/v2"

# Removes the uploads none of whose files was written to in the last $2 minutes, and names them.
_PURGE = """
cd "$1" 2>/dev/null || exit 0
find . -type d -path "*/_uploads/*" -prune | while read -r upload; do
    [ -n "$(find "$upload" -type f -mmin "-$2" | head -n 1)" ] && continue
    rm -rf "$upload" && echo "${upload#./}"
done
"""


def no_image(doing: str, image: str) -> RegistryError:
    """Return the error for an engine that lacks the registry's image."""
    return RegistryError(
        f"{doing}: the engine has no image '{image}'. 'python3 -m labapp start' makes it."
    )


class RegistryStorage:
    """A registry's volume, worked on in short-lived containers of the registry's own image."""

    def __init__(self, engine: Engine, state: State, *, volume: str, image: str) -> None:
        self._engine = engine
        self._state = state
        self._volume = volume
        self._image = image

    def run(self, argv: Sequence[str]) -> str:
        """Run a command over the registry's files, which are in ``/var/lib/registry``.

        Args:
            argv: a program that busybox has, and its arguments.

        Returns:
            What it printed.

        Raises:
            RegistryError: it failed.
        """
        doing = f"working on the registry's files with '{shlex.join(argv)[:80]}'"
        with self._engine.doing(doing, RegistryError):
            try:
                container = self._engine.client.containers.create(
                    self._image,
                    entrypoint=[argv[0]],
                    command=list(argv[1:]),
                    labels={**self._state.labels, ROLE_LABEL: "oneshot", OWNER_LABEL: owner()},
                    volumes={self._volume: {"bind": STORAGE, "mode": "rw"}},
                    network_mode="none",
                )
            except docker.errors.ImageNotFound as error:
                raise no_image(doing, self._image) from error
            try:
                container.start()
                status = container.wait()["StatusCode"]
                printed = container.logs(stdout=True, stderr=status != 0).decode("utf-8", "replace")
            finally:
                container.remove(force=True, v=True)
        if status != 0:
            raise RegistryError(f"{doing}: it ended with {status}: {printed.strip()[-400:]}")
        return printed

    def purge_uploads(self, *, older_than: float = 0.0) -> list[str]:
        """Remove half uploads, which stay when a push is cut off.

        Args:
            older_than: how long nothing may have been written to an upload, in seconds; it
                counts in whole minutes.

        Returns:
            The path of each, from the registry's repositories on.
        """
        minutes = str(math.ceil(older_than / 60))
        repositories = f"{CONTENT}/repositories"
        return self.run(["sh", "-c", _PURGE, "purge", repositories, minutes]).splitlines()

    def discard_blobs(self, digests: Iterable[str]) -> None:
        """Remove the bytes of damaged blobs, so that the next push stores them anew.

        CNCF Distribution never writes over a blob that it has; that is why a push over a damaged
        one says "Layer already exists" and heals nothing.

        Raises:
            InvalidReference: one of them is not a digest.
        """
        paths = []
        for digest in digests:
            if not is_digest(digest):
                raise InvalidReference(
                    f"discarding the blob '{digest}': that is no digest. Copy all of it."
                )
            algorithm, _, value = digest.partition(":")
            paths.append(f"{CONTENT}/blobs/{algorithm}/{value[:2]}/{value}")
        if paths:
            self.run(["rm", "-rf", *paths])
