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
    """Return the path to ask the registry for when somebody asks the mirror for a path.

    Args:
        path: that was asked for.
        repository: whose manifests are not what they should be; empty on an honest mirror.
        instead: the digest of the manifest that is handed out for them.
    """
    found = _MANIFEST.fullmatch(path)
    if found and instead and found["repository"] == repository:
        return f"/v2/{repository}/manifests/{instead}"
    return path


class Middleman(BaseHTTPRequestHandler):
    """One connection to the mirror."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with what the registry answers, or with what it did not."""
        settings = os.environ
        path = asked_for(self.path, settings.get("REPOSITORY", ""), settings.get("INSTEAD", ""))
        connection = http.client.HTTPConnection(settings["UPSTREAM"], timeout=60)
        try:
            # Host must stay: the registry builds the addresses in its answers from it.
            # Docker sends a line for each kind of manifest that it accepts. With only the last of
            # them, the registry would convert the manifest to an older kind, with another digest.
            headers = {
                name: ", ".join(self.headers.get_all(name, ()))
                for name in self.headers
                if name != "Connection"
            }
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
                print(
                    f"{FORGED} {self.command} {self.path} answered with {path}\n",
                    end="",
                    flush=True,
                )
        except OSError as error:
            print(f"the registry does not answer: {error}\n", end="", flush=True)
            self.close_connection = True
        finally:
            connection.close()

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Hang up on what is no HTTP: docker tries TLS first, and then does without."""
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Log a request to the standard output, where ``docker logs`` finds it."""
        print(f"{self.client_address[0]} {format % args}\n", end="", flush=True)


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Middleman).serve_forever()
