"""The registry's log: lines as CNCF Distribution writes them, and what is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from labapp.registry.log import COLUMNS, moved, parse_log

DIGEST = "sha256:" + "ab" * 32
UPLOAD = "/v2/shop/web/blobs/uploads/b0f31722-dd59-4467-9629-ee5a29160a9b"
DOCKER = (
    "docker/20.10.24+dfsg1 go/go1.19.8 kernel/6.18 os/linux arch/amd64 "
    "UpstreamClient(Docker-Client/28.2.2 \\(linux\\))"
)


def line(**changes: Any) -> bytes:
    """A line of the log, as CNCF Distribution 2.8 writes it for an answered request."""
    fields = {
        "go.version": "go1.24.4",
        "http.request.host": "localhost:41000",
        "http.request.method": "GET",
        "http.request.uri": "/v2/",
        "http.request.useragent": DOCKER,
        "http.response.duration": "1.5ms",
        "http.response.status": 200,
        "http.response.written": 2,
        "time": "2026-11-23T06:12:20.060316855Z",
    }
    for name in fields:
        fields[name] = changes.get(name.rpartition(".")[2], fields[name])
    return json.dumps(fields).encode() + b"\n"


def only(**changes: Any) -> Any:
    (request,) = parse_log(line(**changes)).itertuples()
    return request


def test_requests_come_in_the_order_of_their_beginnings_without_other_lines() -> None:
    log = (
        b'{"level":"info","msg":"listening on [::]:5000","time":"2026-11-23T06:12:18Z"}\n'
        b'172.31.250.1 - - [23/Nov/2026:06:12:20 +0000] "GET /v2/ HTTP/1.1" 200 2 "" "curl/7"\n'
        + line(uri="/v2/late")
        + line(uri="/v2/early", duration="2s")
        + b'{"http.response.status": 200, "cut off\n'
        + line()[:-30]
    )
    early, late = parse_log(log).itertuples()
    assert (early.path, late.path) == ("/v2/early", "/v2/late")
    assert late.time == datetime(2026, 11, 23, 6, 12, 20, 58816, tzinfo=UTC)
    assert (late.client, late.status, late.bytes) == ("docker", 200, 2)
    assert list(parse_log(b"").columns) == list(COLUMNS)


@pytest.mark.parametrize(
    ("method", "uri", "meaning"),
    [
        ("GET", "/v2/", "are you a registry?"),
        ("GET", "/v2/shop/web/tags/list", "which tags has shop/web?"),
        ("HEAD", "/v2/shop/web/manifests/1.0", "which digest has the tag 1.0?"),
        ("GET", "/v2/shop/web/manifests/1.0", "give me the manifest of tag 1.0"),
        ("PUT", "/v2/shop/web/manifests/1.0", "store the manifest under tag 1.0"),
        ("GET", f"/v2/shop/web/manifests/{DIGEST}", "give me this manifest"),
        ("HEAD", f"/v2/shop/web/blobs/{DIGEST}", "do you have this blob?"),
        ("POST", "/v2/shop/web/blobs/uploads/", "start an upload"),
        (
            "POST",
            f"/v2/shop/web/blobs/uploads/?mount={DIGEST}&from=shop%2Fold",
            "take this blob over from shop/old",
        ),
        ("PATCH", f"{UPLOAD}?_state=abc", "take these bytes"),
        ("PUT", f"{UPLOAD}?_state=abc&digest={DIGEST}", "finish the upload"),
        ("GET", "/v2/tags/blobs/manifests/tags/list", "which tags has tags/blobs/manifests?"),
        ("GET", "/v2/a/manifests/\x1b[2J", "give me the manifest of tag \ufffd[2J"),
        ("GET", "/v2/a/manifests/{tag}", "give me the manifest of tag {tag}"),
        ("BREW", "/v2/", "a request outside the protocol"),
    ],
)
def test_the_meaning_of_a_request(method: str, uri: str, meaning: str) -> None:
    assert only(method=method, uri=uri).meaning == meaning


MOUNT = "/v2/shop/web/blobs/uploads/?from=base%2Fpython&mount="


@pytest.mark.parametrize(
    ("method", "uri", "status", "outcome"),
    [
        ("PUT", f"{UPLOAD}?_state=a&digest=sha256%3A{'ab' * 32}", 201, "sent"),
        ("PUT", f"{UPLOAD}?_state=a&digest={DIGEST}", 400, None),
        ("POST", f"{MOUNT}{DIGEST}", 201, "mounted"),
        ("POST", f"{MOUNT}{DIGEST}", 202, None),  # it is to be sent
        ("GET", f"/v2/shop/web/blobs/{DIGEST}", 200, "fetched"),
        ("GET", f"/v2/shop/web/blobs/{DIGEST}", 206, "fetched"),  # the rest of it
        ("GET", f"/v2/shop/web/blobs/{DIGEST}", 404, None),
        ("HEAD", f"/v2/shop/web/blobs/{DIGEST}", 200, None),
        ("GET", f"/v2/shop/web/manifests/{DIGEST}", 200, None),
        # Somebody else's, at the same time.
        ("GET", f"/v2/shop/web/two/blobs/{DIGEST}", 200, None),
        ("GET", f"/v2/my/shop/web/blobs/{DIGEST}", 200, None),
    ],
)
def test_what_moved_a_blob(method: str, uri: str, status: int, outcome: str | None) -> None:
    rows = parse_log(line(method=method, uri=uri, status=status))
    assert moved(rows, "shop/web") == ({DIGEST: outcome} if outcome else {})
    assert moved(parse_log(b""), "shop/web") == {}
