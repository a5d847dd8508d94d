"""A mirror between a server and the registry, which may answer with another image's manifest.

It is copied into a container and runs there; it needs the standard library only. Its settings come
by the environment: UPSTREAM (the registry's host and port), REPOSITORY and INSTEAD (the digest of
the manifest to answer with; empty for an honest mirror).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 5000
"""Where it listens, inside its container."""

PASSED_ON = ("Content-Type", "Content-Length", "Docker-Content-Digest", "Location", "Link", "Etag")

FORGED = "FORGED"
"""With this word begins the line that it logs when it answers with something else."""


class Middleman(BaseHTTPRequestHandler):
    """One connection to the mirror."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with what the registry answers, or, in one repository, with one manifest."""
        path, manifests = self.path, f"/v2/{os.environ['REPOSITORY']}/manifests/"
        if os.environ["INSTEAD"] and path.startswith(manifests):
            path = manifests + os.environ["INSTEAD"]
        upstream = http.client.HTTPConnection(os.environ["UPSTREAM"], timeout=60)
        with contextlib.closing(upstream):
            # Host must stay: the registry builds the addresses in its answers from it.
            # Docker sends a line for each kind of manifest that it accepts. With only the last of
            # them, the registry would convert the manifest to an older kind, with another digest.
            names = [name for name in self.headers if name != "Connection"]
            headers = {name: ", ".join(self.headers.get_all(name, ())) for name in names}
            upstream.request(self.command, path, headers=headers)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name in PASSED_ON:
                if value := answer.getheader(name):
                    self.send_header(name, value)
            if not answer.getheader("Content-Length"):
                self.close_connection = True
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile, 1024 * 1024)
            if path != self.path:
                # In one piece: other requests are logged at the same time.
                sys.stdout.write(f"{FORGED} {self.command} {self.path} answered with {path}\n")

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in HTTP what is none: engines try TLS first; with containerd, they need that."""
        self.wfile.write(b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n")
        self.close_connection = True


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Middleman).serve_forever()
