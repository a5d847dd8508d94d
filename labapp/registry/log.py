"""The registry's own request log, as rows with the meaning of each request in words.

Source: OCI Distribution Specification 1.1, "Endpoints", and the JSON log of CNCF Distribution.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from labapp.errors import LabError
from labapp.reference import is_digest
from labapp.registry.http import printable
from labapp.registry.server import RegistryServer

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
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/[^/]+")
_CLIENTS = {
    "docker": "docker",
    "labapp": "lab",
    "containerd": "docker",
    "buildkit": "docker build",
    "containers": "podman",
    "mozilla": "browser",
}

_MEANINGS = {
    r"GET /v2/": "are you a registry?",
    r"GET /v2/_catalog": "which repositories do you have?",
    r"GET /v2/(.+)/tags/list": r"which tags has \1?",
    r"HEAD /v2/.+/manifests/\w+:\w+": "do you have this manifest?",
    r"GET /v2/.+/manifests/\w+:\w+": "give me this manifest",
    r"PUT /v2/.+/manifests/\w+:\w+": "store this manifest",
    r"DELETE /v2/.+/manifests/\w+:\w+": "delete this manifest",
    r"HEAD /v2/.+/manifests/(.+)": r"which digest has the tag \1?",
    r"GET /v2/.+/manifests/(.+)": r"give me the manifest of tag \1",
    r"PUT /v2/.+/manifests/(.+)": r"store the manifest under tag \1",
    r"DELETE /v2/.+/manifests/(.+)": r"delete the tag \1",
    r"POST /v2/.+/blobs/uploads/.*[?&]from=([^&]+).*": r"take this blob over from \1",
    r"POST /v2/.+/blobs/uploads/": "start an upload",
    r"GET /v2/.+/blobs/uploads/.+": "how far is the upload?",
    r"PATCH /v2/.+/blobs/uploads/.+": "take these bytes",
    r"PUT /v2/.+/blobs/uploads/.+": "finish the upload",
    r"DELETE /v2/.+/blobs/uploads/.+": "cancel the upload",
    r"HEAD /v2/.+/blobs/.+": "do you have this blob?",
    r"GET /v2/.+/blobs/.+": "give me this blob",
    r"DELETE /v2/.+/blobs/.+": "delete this blob",
    r"GET /v2/.+/referrers/.+": "what refers to this manifest?",
}
"""What a request says; a query is looked at only where one is written here."""


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
        for pattern, words in _MEANINGS.items():
            uri = self.uri if "?" in pattern else self.path
            if found := re.fullmatch(pattern, f"{self.method} {unquote(uri)}"):
                return found.expand(words)
        return "a request outside the protocol"

    @property
    def digest(self) -> str:
        """The digest that the request names; empty when it names none."""
        named = self.path.rpartition("/")[2]
        query = parse_qs(self.uri.partition("?")[2])
        return named if is_digest(named) else query.get("digest", [""])[0]

    @property
    def uploaded_to(self) -> str:
        """The repository, if the request finished the upload of the blob that it names."""
        found = _UPLOAD.fullmatch(self.path)
        whole = self.method == "PUT" and self.status == 201 and is_digest(self.digest)
        return found[1] if found and whole else ""


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
    import pandas as pd  # slow, and a registry that is only started needs none

    began = datetime.now(UTC)
    wire = Wire(pd.DataFrame(columns=list(COLUMNS)))
    yield wire
    wire.rows = pd.DataFrame(_rows(server, began), columns=list(COLUMNS)).astype(COLUMNS)


def _rows(server: RegistryServer, began: datetime) -> Iterator[tuple[object, ...]]:
    heard = parse_log(server.logs(since=began))
    found = [one for one in heard if one.time >= began and one.client != "lab"]
    # Only the request that finishes an upload says which digest its bytes have.
    finished = {one.path: one.digest for one in found if one.uploaded_to}
    for one in found:
        size: int | None = one.response_bytes
        if one.uploaded_to:  # the log tells the answer's length only
            size = None
            with contextlib.suppress(LabError):  # the registry is down; its log can be read
                size = server.registry().blob_size(one.uploaded_to, one.digest)
        digest = (one.digest or finished.get(one.path, "")).rpartition(":")[2][:8]
        said = (one.time, one.client, one.method, one.meaning, digest, one.path, one.status)
        yield (*said, size, one.milliseconds)


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
