"""One registry's HTTP door: bounded answers, and every failure as an error that says what to do.

Source: OCI Distribution Specification 1.1, "Error Codes".
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from labapp.errors import NotInRegistry, RegistryError, RegistryUnreachable
from labapp.manifests.fields import FieldError, Fields

MEBIBYTE = 1024 * 1024

ANSWER_LIMIT = 4 * MEBIBYTE
"""The largest answer that is held in memory, in bytes; registries bound manifests the same."""

USER_AGENT = f"labapp/{importlib.metadata.version('labapp')}"
"""How the lab names itself to a registry, so that its own requests can be told from docker's."""

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0

_START = (
    "Is the registry running? 'python3 -m labapp status' tells, 'python3 -m labapp start' helps."
)
_FULL = re.compile(r'no space left|"Err":\s*(?:28|112|122)\b', re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a registry answered: status, headers (any case) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """The ``Content-Type`` without its parameters; empty where there is none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class RegistryHTTP:
    """The connections to one registry; several threads may use them at once."""

    def __init__(self, address: str, *, secure: bool | None = None) -> None:
        """Prepare the connections; nothing is sent yet.

        Args:
            address: host and port, as in ``localhost:41233``.
            secure: whether to speak HTTPS; by default except on this machine, as docker does.
        """
        self.address = address
        host = (urlsplit(f"//{address}").hostname or "").lower()
        local = is_loopback(host)
        scheme = "https" if (not local if secure is None else secure) else "http"
        # Windows spends two seconds on [::1] before it tries 127.0.0.1, where the registry is.
        reach = address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
        self.url = f"{scheme}://{reach}"
        self._session = requests.Session()
        # A proxy must not be asked for an address of this machine.
        self._session.trust_env = not local
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
        with self.translated(doing):
            response = self._session.request(
                method,
                urljoin(self.url, path),
                headers=headers,
                data=data,
                stream=True,
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                allow_redirects=method in ("GET", "HEAD"),
            )
        with response:
            if response.status_code not in expected:
                with self.translated(doing):
                    body = response.raw.read(64 * 1024) or b""
                answer = Answer(response.status_code, response.headers, body)
                raise _refusal(doing, self.address, answer, missing)
            yield response

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
            raise RegistryUnreachable(
                f"{doing}: {_broken(error, self.address)}. {_START}"
            ) from error


def is_loopback(host: str) -> bool:
    """Tell if a host name or address is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def same_address(one: str, other: str) -> bool:
    """Tell if two addresses lead to the same registry, for all names of this machine."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    local = is_loopback(host.strip("[]")) and is_loopback(other_host.strip("[]"))
    return one == other or (local and port == other_port)


def not_a_registry(doing: str, address: str, seen: str) -> RegistryError:
    """Return the error for an address where something answers that is not a registry."""
    return RegistryError(
        f"{doing}: what answers at '{address}' is not a registry ({seen}). Another program has "
        "that port; on macOS, AirPlay takes 5000. 'python3 -m labapp start' finds a free one."
    )


def _broken(error: BaseException, address: str) -> str:
    """Say in words why there is no connection, from the chain of causes."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        cause = cause if isinstance(cause, BaseException) else None
    for kinds, words in _CAUSES:
        if any(isinstance(cause, kinds) for cause in chain):
            return words.format(address=address)
    return f"the connection to '{address}' broke off"


_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((requests.exceptions.ProxyError,), "the proxy that is set here does not let '{address}' by"),
    ((requests.exceptions.SSLError,), "'{address}' does not speak HTTPS with a valid certificate"),
    ((urllib3.exceptions.NameResolutionError,), "the name in '{address}' is not known here"),
    ((ConnectionRefusedError,), "connection refused, nothing listens at '{address}'"),
    (
        (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError),
        f"'{{address}}' could not be reached within {CONNECT_SECONDS:.0f} s",
    ),
    (
        (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError),
        f"'{{address}}' has not answered for {ANSWER_SECONDS:.0f} s",
    ),
    ((requests.exceptions.InvalidURL,), "'{address}' is not an address"),
)


def _refusal(doing: str, address: str, answer: Answer, missing: str) -> RegistryError:
    """Return the error for an answer whose status was not expected."""
    status, said = answer.status, _said(answer.body)
    is_registry = bool(said) or "Docker-Distribution-Api-Version" in answer.headers
    text = answer.body.decode("utf-8", "replace")
    if status == 507 or (status >= 500 and _FULL.search(text)):
        return RegistryError(
            f"{doing}: the disk under the registry is full. Make room there, for example with "
            "'docker image prune', then try again."
        )
    if status == 429:
        return RegistryError(
            f"{doing}: '{address}' has had too many requests from this network. Wait, or use a "
            "mirror or a bundle."
        )
    if status >= 500:
        said = said or f"status {status}"
        return RegistryError(
            f"{doing}: the registry failed ({said}). 'python3 -m labapp doctor' seeks the cause."
        )
    if not is_registry and (status == 403 or answer.media_type == "text/html"):
        return not_a_registry(doing, address, f"status {status}")
    if status == 404:
        return NotInRegistry(f"{doing}: {missing}.")
    if status in (401, 403):
        return RegistryError(
            f"{doing}: '{address}' wants a login or does not allow it (status {status}). Take "
            "another registry; the lab's own needs no login."
        )
    return RegistryError(f"{doing}: the registry refuses it ({said or f'status {status}'}).")


def _said(body: bytes) -> str:
    """Return the registry's own words in an error's body; empty where there are none."""
    try:
        errors = Fields.read(body).objects("errors")
        return "; ".join(error.text("message") or error.text("code") for error in errors)
    except FieldError:
        return ""
