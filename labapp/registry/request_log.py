"""The registry's own request log, as rows with the meaning of each request in words.

Source: OCI Distribution Specification 1.1, "Endpoints", and the JSON log of CNCF Distribution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import pandas as pd

from labapp.errors import LabError
from labapp.manifests import is_digest
from labapp.manifests.fields import FieldError, Fields
from labapp.registry.server import RegistryServer

COLUMNS = (
    "time",
    "client",
    "method",
    "meaning",
    "digest",
    "path",
    "status",
    "bytes",
    "milliseconds",
)

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


@dataclass(frozen=True)
class Request:
    """One request to the registry.

    Attributes:
        time: when it came, in UTC.
        client: who asked: ``docker``, ``lab``, ``podman``, ``curl`` …
        uri: the path and the query.
        response_bytes: length of the answer's body.
        milliseconds: how long the registry took.
    """

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
        return _meaning(self.method, self.uri)

    @property
    def digest(self) -> str:
        """The digest that the request names; empty when it names none."""
        named = self.path.rpartition("/")[2]
        return named if is_digest(named) else _query(self.uri, "digest")

    @property
    def uploaded(self) -> tuple[str, str] | None:
        """The repository and the digest of the blob whose upload this request finished."""
        found = _PATH.fullmatch(self.path)
        digest = _query(self.uri, "digest")
        if self.method != "PUT" or self.status != 201 or not found or not is_digest(digest):
            return None
        return (found["name"], digest) if found["kind"] == "blobs" else None


@dataclass
class Wire:
    """What was said to the registry while it was listened to.

    Attributes:
        rows: a row a request, in order; columns as :func:`requests_since` tells.
    """

    rows: pd.DataFrame = field(default_factory=pd.DataFrame)


@contextmanager
def listening(server: RegistryServer) -> Iterator[Wire]:
    """Keep what is said to the registry inside the ``with`` block; the lab's own words not."""
    began = datetime.now(UTC)
    wire = Wire()
    yield wire
    wire.rows = requests_since(server, began)


def requests_since(
    server: RegistryServer, since: datetime | None = None, *, include_lab: bool = False
) -> pd.DataFrame:
    """Return the requests that the registry has answered, in the order in which they came.

    Args:
        server: the lab's registry; its log lasts as long as its container.
        since: leave out what came before; with a time zone.
        include_lab: whether to keep the lab's own requests, which only look at things.

    Returns:
        A row for each request: ``time`` (UTC), ``client``, ``method``, ``meaning`` in plain words,
        ``digest`` (the first eight digits of what it is about, where the request tells), ``path``
        without its query, ``status``, ``bytes`` (of the answer's body, or of the blob for a
        finished upload; missing where the registry no longer tells), ``milliseconds``.
    """
    found = [
        request
        for request in parse_log(server.logs(since=since))
        if (since is None or request.time >= since) and (include_lab or request.client != "lab")
    ]
    found.sort(key=lambda request: request.time)
    sizes = _upload_sizes(found, server)
    # Only the request that finishes an upload says which digest its bytes have.
    finished = {request.path: request.digest for request in found if request.uploaded}
    rows = [
        (
            request.time,
            request.client,
            request.method,
            request.meaning,
            (request.digest or finished.get(request.path, "")).rpartition(":")[2][:8],
            request.path,
            request.status,
            sizes.get(request.uploaded) if request.uploaded else request.response_bytes,
            request.milliseconds,
        )
        for request in found
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(
        {
            "time": "datetime64[us, UTC]",
            "status": "int64",
            "bytes": "Int64",
            "milliseconds": "float64",
        }
    )


def parse_log(log: bytes) -> Iterator[Request]:
    """Yield the requests in a log; lines of any other kind are passed over.

    Args:
        log: what CNCF Distribution wrote with its ``json`` formatter.
    """
    for line in log.splitlines():
        if b'"http.response.status"' in line:
            try:
                request = _request(Fields.read(line))
            except FieldError:
                continue
            if request is not None:
                yield request


def _request(fields: Fields) -> Request | None:
    end = fields.time("time")
    method, uri = fields.text("http.request.method"), fields.text("http.request.uri")
    if end is None or not method or not uri:
        return None
    milliseconds = _duration(fields.text("http.response.duration"))
    try:
        # The line is written at the end; the order of a conversation is that of the questions.
        begin = end - timedelta(milliseconds=milliseconds)
    except OverflowError as error:
        raise FieldError("its time is before all times") from error
    return Request(
        time=begin,
        client=_client(fields.text("http.request.useragent")),
        method=method,
        uri=uri,
        status=fields.size("http.response.status"),
        response_bytes=fields.size("http.response.written") if method != "HEAD" else 0,
        milliseconds=milliseconds,
    )


def _duration(text: str) -> float:
    """Read a duration as Go prints it, as in ``1m2.5s`` or ``340.5µs``, in milliseconds."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise FieldError(f"its duration '{text}' is not one")
    try:
        return sum(float(number) * _MILLISECONDS[unit] for number, unit in parts)
    except ValueError as error:
        raise FieldError(f"its duration '{text}' is not one") from error


def _client(agent: str) -> str:
    product = agent.partition("/")[0].split(" ")[0].strip().lower()
    return _CLIENTS.get(product, product or "unknown")


def _query(uri: str, name: str) -> str:
    return parse_qs(uri.partition("?")[2]).get(name, [""])[0]


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


def _meaning(method: str, uri: str) -> str:
    path = uri.partition("?")[0]
    if path.rstrip("/") == "/v2":
        return _MEANINGS.get((method, "base"), _UNKNOWN)
    if path == "/v2/_catalog":
        return _MEANINGS.get((method, "catalog"), _UNKNOWN)
    found = _PATH.fullmatch(path)
    if not found:
        return _UNKNOWN
    what, rest, source = found["kind"], found["rest"], _query(uri, "from")
    if what == "manifests":
        what = "digest" if ":" in rest else "tag"
    elif what == "blobs" and rest.startswith("uploads"):
        what = "upload"
        if not rest.removeprefix("uploads").strip("/"):
            what = "mount" if source else "start"
    words = _MEANINGS.get((method, what), _UNKNOWN)
    return words.format(tag=rest, name=found["name"], source=source)


_UNKNOWN = "a request outside the protocol"
_MEANINGS = {
    ("GET", "base"): "are you a registry?",
    ("GET", "catalog"): "which repositories do you have?",
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
