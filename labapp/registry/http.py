"""One registry's HTTP door: bounded answers, and every failure as an error that says what to do.

Source: OCI Distribution Specification 1.1, "Error Codes".
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from labapp.errors import RegistryError, RegistryUnreachable
from labapp.manifests.fields import FieldError, Fields
from labapp.registry.addresses import is_local, url_of
from labapp.registry.answers import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    Answer,
    not_a_registry,
    refusal,
    unreachable,
)
from labapp.registry.credentials import Credentials, docker_credentials
from labapp.registry.logins import Logins, Signature

MEBIBYTE = 1024 * 1024

ANSWER_LIMIT = 4 * MEBIBYTE
"""The largest answer that is held in memory, in bytes; registries bound manifests the same."""

USER_AGENT = f"labapp/{importlib.metadata.version('labapp')}"
"""How the lab names itself to a registry, so that its own requests can be told from docker's."""


class RegistryHTTP:
    """The connections to one registry; several threads may use them at once."""

    def __init__(
        self,
        address: str,
        *,
        secure: bool | None = None,
        credentials: Callable[[str], Credentials | None] = docker_credentials,
        certificates: Path | None = None,
    ) -> None:
        """Prepare the connections; nothing is sent yet.

        Args:
            address: host and port, as in ``localhost:41233``; ``docker.io`` is Docker Hub.
            secure: whether to speak HTTPS; by default except on this machine, as docker does.
            credentials: who the learner is at an address, asked for when the registry asks.
            certificates: a file of the authorities to trust, for a registry's own TLS.
        """
        self.address = address
        self.url = url_of(address, secure=secure)
        self._logins = Logins(address, self.url, credentials=credentials, certificates=certificates)
        self._session = requests.Session()
        # A proxy must not be asked for an address of this machine.
        self._session.trust_env = not is_local(self.url)
        self._session.verify = str(certificates) if certificates else True
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        expected: Iterable[int] = (200,),
        missing: str = "the registry does not have it",
        headers: Mapping[str, str] | None = None,
        data: bytes | Iterable[bytes] | None = None,
    ) -> Iterator[requests.Response]:
        """Send a request and hand out the answer with its body unread.

        Args:
            method: such as ``GET``.
            path: from ``/v2/`` on, or a whole address that the registry gave.
            doing: what is being done, with its input in quotes, to begin an error with.
            expected: the statuses that are no error.
            missing: what status 404 means here.
            headers: further headers.
            data: the body to send; an iterable is sent in chunks as it comes.

        Raises:
            RegistryUnreachable: no connection, or it broke.
            NotInRegistry: status 404.
            RegistryError: another status, or the answer is not a registry's.
        """
        response = self._send(method, urljoin(self.url, path), doing, headers, data)
        with response:
            if response.status_code not in expected:
                with self.translated(doing):
                    body = response.raw.read(64 * 1024) or b""
                answer = Answer(response.status_code, response.headers, body)
                raise refusal(
                    doing, self.address, answer, missing=missing, login=self._logins.advice
                )
            yield response

    def _send(
        self,
        method: str,
        url: str,
        doing: str,
        headers: Mapping[str, str] | None,
        data: bytes | Iterable[bytes] | None,
    ) -> requests.Response:
        """Send a request, and once more with a login if the registry asks for one."""
        sent = self._logins.signature(method, url)
        response = self._send_once(method, url, doing, headers, data, sent)
        # A body that came piece by piece is gone, and can't be sent again.
        if response.status_code != 401 or not (data is None or isinstance(data, bytes)):
            return response
        try:
            renewed = self._logins.renew(method, url, response, sent=sent, doing=doing)
        except RegistryError:
            response.close()
            raise
        if not renewed:
            return response
        response.close()
        sent = self._logins.signature(method, url)
        return self._send_once(method, url, doing, headers, data, sent)

    def _send_once(
        self,
        method: str,
        url: str,
        doing: str,
        headers: Mapping[str, str] | None,
        data: bytes | Iterable[bytes] | None,
        signature: Signature,
    ) -> requests.Response:
        with self.translated(doing):
            return self._session.request(
                method,
                url,
                headers=headers,
                data=data,
                auth=signature,
                # Else a bundle that the environment names would take the place of this one.
                verify=self._session.verify,
                stream=True,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=method in ("GET", "HEAD"),
            )

    def ask(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        expected: Iterable[int] = (200,),
        missing: str = "the registry does not have it",
        headers: Mapping[str, str] | None = None,
        data: bytes | Iterable[bytes] | None = None,
        limit: int = ANSWER_LIMIT,
    ) -> Answer:
        """Send a request and return the whole answer; see :meth:`open`.

        Args:
            limit: the largest body that is read, in bytes.

        Raises:
            RegistryError: besides what ``open`` raises, the body is larger than that.
        """
        with self.open(
            method,
            path,
            doing=doing,
            expected=expected,
            missing=missing,
            headers=headers,
            data=data,
        ) as response:
            body = bytearray()
            with self.translated(doing):
                # Only the read after the last one notices that the connection broke.
                while chunk := response.raw.read(limit + 1 - len(body)):
                    body += chunk
            if len(body) > limit:
                raise RegistryError(
                    f"{doing}: the answer is longer than {limit // MEBIBYTE} MiB, which no honest "
                    "one is. Check what is stored there."
                )
            return Answer(response.status_code, response.headers, bytes(body))

    def pages(self, path: str, field: str, *, doing: str, missing: str = "") -> Iterator[str]:
        """Yield a list of texts that the registry serves page by page (``Link`` headers).

        Args:
            path: of the first page.
            field: the name of the list in each page.
            doing: as in :meth:`open`.
            missing: as in :meth:`open`.
        """
        seen: set[str] = set()
        while path not in seen:
            seen.add(path)
            answer = self.ask("GET", path, doing=doing, missing=missing)
            try:
                yield from Fields.read(answer.body).texts(field) or ()
            except FieldError as error:
                raise not_a_registry(doing, self.address, f"its answer: {error}") from error
            links = requests.utils.parse_header_links(answer.headers.get("Link", ""))
            following = [link["url"] for link in links if link.get("rel") == "next"]
            if not following:
                return
            target = urlsplit(urljoin(self.url + path, following[0]))
            path = f"{target.path}?{target.query}"  # never to another host
        raise RegistryError(f"{doing}: the registry's pages go in a circle. Start it again.")

    @contextlib.contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turn a failure of the connection within the block into RegistryUnreachable."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise RegistryUnreachable(f"{doing}: {unreachable(error, self.address)}") from error
