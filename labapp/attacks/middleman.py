"""A mirror between a server and the registry, which may answer with another image's manifest.

It is copied into a container and runs there; it needs the standard library only. Its settings come
by the environment: UPSTREAM (the registry's host and port), and, for a dishonest one, REPOSITORY
and INSTEAD (the digest of the manifest to answer with).
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 5000
"""Where it listens, inside its container."""

PASSED_ON = ("Content-Type", "Content-Length", "Docker-Content-Digest", "Location", "Link", "Etag")

FORGED = "FORGED"
"""With this word begins the line that it logs when it answers with something else."""

_MANIFEST = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<identifier>[^/?]+)")


def asked_for(path: str, repository: str, instead: str) -> str:
    """Return the path to ask the registry for: of one repository, one and the same manifest."""
    found = _MANIFEST.fullmatch(path)
    if found and instead and found["repository"] == repository:
        return f"/v2/{repository}/manifests/{instead}"
    return path


def log(line: str) -> None:
    """Write a line in one piece to the standard output, where ``docker logs`` finds it."""
    print(f"{line}\n", end="", flush=True)


class Middleman(BaseHTTPRequestHandler):
    """One connection to the mirror."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with what the registry answers, or with what it did not."""
        repository, instead = os.environ.get("REPOSITORY", ""), os.environ.get("INSTEAD", "")
        path = asked_for(self.path, repository, instead)
        connection = http.client.HTTPConnection(os.environ["UPSTREAM"], timeout=60)
        try:
            # Host must stay: the registry builds the addresses in its answers from it.
            # Docker sends a line for each kind of manifest that it accepts. With only the last of
            # them, the registry would convert the manifest to an older kind, with another digest.
            names = [name for name in self.headers if name != "Connection"]
            headers = {name: ", ".join(self.headers.get_all(name, ())) for name in names}
            connection.request(self.command, path, headers=headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name in PASSED_ON:
                if value := answer.getheader(name):
                    self.send_header(name, value)
            if not answer.getheader("Content-Length"):
                self.close_connection = True
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile, 1024 * 1024)
            if path != self.path:
                log(f"{FORGED} {self.command} {self.path} answered with {path}")
        except OSError as error:
            log(f"the registry does not answer: {error}")
            self.close_connection = True
        finally:
            connection.close()

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in HTTP what is none: engines try TLS first; with containerd, they need that."""
        self.wfile.write(b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log a request."""
        log(f"{self.client_address[0]} {format % args}")


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Middleman).serve_forever()
