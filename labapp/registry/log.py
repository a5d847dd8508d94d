"""The registry's own request log, as rows with the meaning of each request in words.

Source: OCI Distribution Specification 1.1, "Endpoints", and the JSON log of CNCF Distribution.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from labapp.errors import LabError, printable
from labapp.machine.ports import wait_until
from labapp.reference import is_digest
from labapp.registry.server import RegistryServer

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = "time", "client", "method", "meaning", "digest", "path", "status", "bytes", "milliseconds"
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

_MOVES = {
    "finish the upload": "sent",
    "take this blob over": "mounted",
    "give me this blob": "fetched",
}

_LINES = 200
"""How much of the log is looked at, from its end, before more is: all of it may be long to read."""


@dataclass
class Wire:
    """What was said to the registry while it was listened to: a row a request, in order."""

    rows: pd.DataFrame


@contextlib.contextmanager
def listening(server: RegistryServer) -> Iterator[Wire]:
    """Keep what is said to the registry inside the ``with`` block; the lab's own words not.

    The rows have ``time`` (UTC), ``client``, ``method``, ``meaning`` in plain words, ``digest``
    (the first eight digits of what it is about, where the request tells), ``path`` without its
    query, ``status``, ``bytes`` (of the answer's body, or of the blob that a request brings;
    missing where the registry no longer tells) and ``milliseconds``.
    """
    with hearing(server) as wire:
        yield wire
    rows = wire.rows
    is_end = (rows["meaning"] == "finish the upload") & (rows["status"] == 201)
    for end in rows[is_end].itertuples():
        # Only this request says which digest the bytes have; the log tells the answer's length.
        upload = rows["path"] == end.path
        rows.loc[list(upload), "digest"] = str(end.digest)
        rows.loc[list(upload), "bytes"] = 0
        carrier = [*rows.index[upload & (rows["method"] == "PATCH")], end.Index][0]
        rows.loc[carrier, "bytes"] = None
        repository = str(end.path).removeprefix("/v2/").partition("/blobs/uploads/")[0]
        with contextlib.suppress(LabError):  # the registry is down; its log can be read
            size = server.registry().blob_size(repository, str(end.digest))
            rows.loc[carrier, "bytes"] = size
    rows["digest"] = rows["digest"].str.split(":").str[-1].str[:8]


@contextlib.contextmanager
def hearing(server: RegistryServer) -> Iterator[Wire]:
    """Keep what is said as :func:`listening` does, with whole digests, and bytes as logged.

    In the log, it stands between two questions of the lab's own: the engine's clock may be another,
    and it may write late. RegistryUnreachable if the registry does not run.
    """
    registry = server.registry()

    def marked() -> bytes:
        mark = secrets.token_hex(16)
        registry.ping(mark)
        return f'{mark}"'.encode()  # as it stands in JSON; other lines are written apart

    wire, first, last, log, lines = Wire(parse_log(b"")), marked(), b"", b"", _LINES
    yield wire
    with contextlib.suppress(LabError):  # it was stopped
        last = marked()

    def is_whole() -> bool:
        nonlocal log, lines
        log = server.logs(tail=lines)
        is_short = first not in log and log.count(b"\n") >= lines
        lines *= 4 if is_short else 1
        return last in log and not is_short

    wait_until(is_whole, seconds=3, every=0.003)
    rows = parse_log(log.rpartition(first)[2])
    wire.rows = rows[rows["client"] != "lab"].reset_index(drop=True)


def moved(rows: pd.DataFrame, repository: str) -> dict[str, str]:
    """Return which blobs were ``sent``, ``mounted`` or ``fetched`` there, by their digests."""
    # 202 is for a blob that can't be taken over, and has to be sent.
    good = rows["status"].isin((200, 201, 206, 307))
    rows = rows[good & rows["path"].str.startswith(f"/v2/{repository}/blobs/")]
    return {
        str(row.digest): outcome
        for row in rows.itertuples()
        for meaning, outcome in _MOVES.items()
        if str(row.meaning).startswith(meaning)
    }


def parse_log(log: bytes) -> pd.DataFrame:
    """Read the requests from a log of CNCF Distribution, in the order in which they came.

    The columns are those of :func:`listening`, with whole digests; ``client`` is ``docker``,
    ``lab``, ``podman``, ``curl`` …
    """
    import pandas as pd  # slow, and a registry that is only started needs none

    rows = []
    for line in log.splitlines():
        if b'"http.response.status"' in line:
            with contextlib.suppress(ValueError):  # a line cut off, where the log was turned over
                rows.append(_row(json.loads(line)))
    types = {"time": "datetime64[us, UTC]", "bytes": "Int64"}
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)
    return table.sort_values("time", kind="stable", ignore_index=True)


def _row(line: dict[str, Any]) -> dict[str, object]:
    import pandas as pd

    method, uri = line["http.request.method"], printable(line["http.request.uri"])
    path, _, query = uri.partition("?")
    named, asked = path.rpartition("/")[2], parse_qs(query)
    told = [named] if is_digest(named) else asked.get("digest") or asked.get("mount") or [""]
    agent = printable(line.get("http.request.useragent", ""))
    product = agent.partition("/")[0].partition(" ")[0].lower()
    duration = pd.Timedelta(line["http.response.duration"])
    return {
        # The line is written at the end; the order of a conversation is that of the questions.
        "time": pd.Timestamp(line["time"]) - duration,
        "client": _CLIENTS.get(product, product or "unknown"),
        "method": method,
        "meaning": _meaning(method, uri),
        "digest": told[0],
        "path": path,
        "status": line["http.response.status"],
        "bytes": line["http.response.written"] if method != "HEAD" else 0,
        "milliseconds": duration.total_seconds() * 1000,
    }


def _meaning(method: str, uri: str) -> str:
    for pattern, words in _MEANINGS.items():
        asked = uri if "?" in pattern else uri.partition("?")[0]
        if found := re.fullmatch(pattern, f"{method} {unquote(asked)}"):
            return found.expand(words)
    return "a request outside the protocol"
