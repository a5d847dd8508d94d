"""The registry's own request log, as rows with the meaning of each request in words.

Source: OCI Distribution Specification 1.1, "Endpoints", and the JSON log of CNCF Distribution.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from labapp.errors import LabError
from labapp.reference import is_digest
from labapp.registry.server import RegistryServer
from labapp.registry.strangers import printable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "time": "datetime64[us, UTC]",
    "client": "object",
    "method": "object",
    "meaning": "object",
    "digest": "object",
    "path": "object",
    "status": "int64",
    "bytes": "Int64",
    "milliseconds": "float64",
}

_DURATION = re.compile(r"([0-9.]+)(h|ms|m|s|µs|us|ns)")
_MILLISECONDS = {"h": 3.6e6, "m": 6e4, "s": 1e3, "ms": 1.0, "µs": 1e-3, "us": 1e-3, "ns": 1e-6}
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<rest>.*)")
_CLIENTS = {
    "docker": "docker",
    "labapp": "lab",
    "containerd": "docker",
    "buildkit": "docker build",
    "containers": "podman",
    "mozilla": "browser",
}

_MEANINGS = {
    ("GET", "/v2/"): "are you a registry?",
    ("GET", "/v2/_catalog"): "which repositories do you have?",
    ("GET", "tags"): "which tags has {name}?",
    ("HEAD", "tag"): "which digest has the tag {tag}?",
    ("GET", "tag"): "give me the manifest of tag {tag}",
    ("PUT", "tag"): "store the manifest under tag {tag}",
    ("DELETE", "tag"): "delete the tag {tag}",
    ("HEAD", "digest"): "do you have this manifest?",
    ("GET", "digest"): "give me this manifest",
    ("PUT", "digest"): "store this manifest",
    ("DELETE", "digest"): "delete this manifest",
    ("HEAD", "blobs"): "do you have this blob?",
    ("GET", "blobs"): "give me this blob",
    ("DELETE", "blobs"): "delete this blob",
    ("POST", "start"): "start an upload",
    ("POST", "mount"): "take this blob over from {source}",
    ("GET", "upload"): "how far is the upload?",
    ("PATCH", "upload"): "take these bytes",
    ("PUT", "upload"): "finish the upload",
    ("DELETE", "upload"): "cancel the upload",
    ("GET", "referrers"): "what refers to this manifest?",
}


@dataclass(frozen=True)
class Request:
    """One request to the registry; ``client`` is ``docker``, ``lab``, ``podman``, ``curl`` …"""

    time: datetime
    client: str
    method: str
    uri: str
    status: int
    response_bytes: int
    milliseconds: float

    @property
    def path(self) -> str:
        """The path without the query, which in an upload is a long token."""
        return self.uri.partition("?")[0]

    @property
    def meaning(self) -> str:
        """What the request says, in plain words."""
        name, what, rest = self._about()
        source = self._query("from")
        if what == "manifests":
            what = "digest" if ":" in rest else "tag"
        elif what == "blobs" and rest.startswith("uploads"):
            what = "upload" if rest.strip("/") != "uploads" else "mount" if source else "start"
        words = _MEANINGS.get((self.method, what), "a request outside the protocol")
        return words.format(tag=rest, name=name, source=source)

    @property
    def digest(self) -> str:
        """The digest that the request names; empty when it names none."""
        named = self.path.rpartition("/")[2]
        return named if is_digest(named) else self._query("digest")

    @property
    def uploaded(self) -> tuple[str, str] | None:
        """The repository and the digest of the blob whose upload this request finished."""
        name, what, _ = self._about()
        digest = self._query("digest")
        whole = self.method == "PUT" and self.status == 201 and is_digest(digest)
        return (name, digest) if whole and what == "blobs" else None

    def _about(self) -> tuple[str, str, str]:
        """The repository, what of it, and which one; what is about no repository has no name."""
        found = _PATH.fullmatch(self.path)
        return (found["name"], found["kind"], found["rest"]) if found else ("", self.path, "")

    def _query(self, name: str) -> str:
        return parse_qs(self.uri.partition("?")[2]).get(name, [""])[0]


@dataclass
class Wire:
    """What was said to the registry while it was listened to: a row a request, in order."""

    rows: pd.DataFrame


@contextlib.contextmanager
def listening(server: RegistryServer) -> Iterator[Wire]:
    """Keep what is said to the registry inside the ``with`` block; the lab's own words not.

    The rows have ``time`` (UTC), ``client``, ``method``, ``meaning`` in plain words, ``digest``
    (the first eight digits of what it is about, where the request tells), ``path`` without its
    query, ``status``, ``bytes`` (of the answer's body, or of the blob for a finished upload;
    missing where the registry no longer tells) and ``milliseconds``.
    """
    began = datetime.now(UTC)
    wire = Wire(_table([]))
    yield wire
    wire.rows = _table(_rows(server, began))


def _rows(server: RegistryServer, began: datetime) -> Iterator[tuple[object, ...]]:
    heard = parse_log(server.logs(since=began))
    found = [one for one in heard if one.time >= began and one.client != "lab"]
    sizes = _upload_sizes(found, server)
    # Only the request that finishes an upload says which digest its bytes have.
    finished = {one.path: one.digest for one in found if one.uploaded}
    for one in found:
        digest = one.digest or finished.get(one.path, "")
        size = sizes.get(one.uploaded) if one.uploaded else one.response_bytes
        yield (
            *(one.time, one.client, one.method, one.meaning, digest.rpartition(":")[2][:8]),
            *(one.path, one.status, size, one.milliseconds),
        )


def parse_log(log: bytes) -> list[Request]:
    """Read the requests from a log of CNCF Distribution, in the order in which they came."""
    found = []
    for line in log.splitlines():
        if b'"http.response.status"' in line:
            with contextlib.suppress(ValueError):  # a line cut off, where the log was turned over
                found.append(_request(json.loads(line)))
    return sorted(found, key=lambda request: request.time)


def _request(line: dict[str, Any]) -> Request:
    method, duration = line["http.request.method"], line["http.response.duration"]
    parts = _DURATION.findall(duration)
    milliseconds = sum(float(number) * _MILLISECONDS[unit] for number, unit in parts)
    agent = printable(line.get("http.request.useragent", ""))
    product = agent.partition("/")[0].partition(" ")[0].lower()
    # The line is written at the end; the order of a conversation is that of the questions.
    end = datetime.fromisoformat(line["time"])
    return Request(
        time=end - timedelta(milliseconds=milliseconds),
        client=_CLIENTS.get(product, product or "unknown"),
        method=method,
        uri=printable(line["http.request.uri"]),
        status=line["http.response.status"],
        response_bytes=line["http.response.written"] if method != "HEAD" else 0,
        milliseconds=milliseconds,
    )


def _upload_sizes(
    found: Iterable[Request], server: RegistryServer
) -> dict[tuple[str, str] | None, int | None]:
    """Return the lengths of uploaded blobs, which the log does not tell, as they are stored."""
    wanted = {request.uploaded for request in found if request.uploaded}
    try:
        registry = server.registry() if wanted else None
        return {blob: registry.blob_size(*blob) for blob in wanted} if registry else {}
    except LabError:
        return {}  # the registry is down: the log can be read all the same


def _table(rows: Iterable[tuple[object, ...]]) -> pd.DataFrame:
    import pandas as pd  # slow, and a registry that is only started needs none

    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
