"""Registries for tests: small ones that answer whatever a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Seen:
    """A request that a server got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@dataclass
class Reply:
    """What to answer; a header of several lines is sent several times."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # break the connection after that many bytes of the body
    chunks: Iterable[bytes] | None = None  # a body in chunks, as long as somebody reads it


@dataclass
class Server:
    """Where a server is, what it says, and what it was asked."""

    address: str
    answer: Reply | Callable[[Seen], Reply]
    seen: list[Seen] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[Seen], Reply] | Reply, *, pause: float = 0.0) -> Iterator[Server]:
    """Serve one reply, or what a function says; ``pause`` seconds before each MiB of a body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # else each answer waits 40 ms for an acknowledgement

        def respond(self) -> None:
            left, body = int(self.headers.get("Content-Length", 0)), b""
            while len(body) < left:
                time.sleep(pause)
                body += self.rfile.read(min(left - len(body), 1024 * 1024))
            seen = Seen(self.command, self.path, dict(self.headers), body)
            served.seen.append(seen)
            answer = served.answer
            reply = answer if isinstance(answer, Reply) else answer(seen)
            self.send_response(reply.status)
            length = {"Content-Length": str(len(reply.body))}
            if reply.chunks is not None:
                length = {"Transfer-Encoding": "chunked"}
            for name, value in {**length, **reply.headers}.items():
                for line in value.split("\n"):
                    self.send_header(name, line)
            self.end_headers()
            if reply.chunks is not None:
                with contextlib.suppress(OSError):
                    for chunk in reply.chunks:
                        self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
            elif self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut_after])
            if reply.cut_after is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if pause:  # else the system takes most of a body at once
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    served = Server(f"localhost:{server.server_address[1]}", answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def typed(body: bytes, media_type: str, **headers: str) -> Reply:
    return Reply(body=body, headers={"Content-Type": media_type, **headers})


def told(content: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def error(status: int, code: str, message: str = "", detail: object = None) -> Reply:
    return told({"errors": [{"code": code, "message": message, "detail": detail}]}, status)


def sent_on(place: str) -> Reply:
    return Reply(307, b"", {"Location": place})


def stored_at(digest: str) -> str:
    """Where a registry's container keeps the bytes of a blob or a manifest."""
    from labapp.registry.server import CONTENT  # and with it the SDK, which unit tests do without

    return f"{CONTENT}/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"
