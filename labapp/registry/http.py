"""One registry's HTTP door: bounded answers, and each failure in words that say what to do.

Source: OCI Distribution Specification 1.1, "Error Codes".
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import ipaddress
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from labapp.errors import LabError, NotInRegistry, RegistryError, RegistryUnreachable
from labapp.reference import DOCKER_HUB
from labapp.registry.strangers import FieldError, printable, read_json

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""How long a registry may be silent, and how long all of an answer may take, …"""

SLOWEST = 10_000
"""… and a second more for each of so many bytes: who drips is given up."""

CHUNK_BYTES = 256 * 1024
ANSWER_LIMIT = 4 * 1024 * 1024
"""The largest answer that is held in memory, in bytes; registries bound manifests the same."""

REDIRECTS = 5
LIST_PAGES = 200
LIST_LIMIT = 16 * 1024 * 1024
"""Bounds of a list of tags or repositories, in pages and bytes."""

USER_AGENT = f"labapp/{importlib.metadata.version('labapp')}"
"""How the lab names itself to a registry, so that its own requests can be told from docker's."""

_ERRORS = {"errors": [{"message": str, "code": str}]}
_FULL = re.compile(rb'no space left|"Err":\s*(?:28|112|122)\b', re.IGNORECASE)
# Control characters but tab and line feed, lone surrogates, and what turns the writing direction.
_REPOSITORY = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/")


def url_of(address: str, *, secure: bool | None = None) -> str:
    """Return the URL of a registry as references name it; HTTPS but on this machine, as docker."""
    host = (urlsplit(f"//{address}").hostname or "").lower()
    scheme = "https" if (not is_loopback(host) if secure is None else secure) else "http"
    if address == DOCKER_HUB:  # that host serves web pages; this one speaks for it
        return f"{scheme}://registry-1.docker.io"
    # Windows spends two seconds on [::1] before it tries 127.0.0.1, where the registry is.
    reach = address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
    return f"{scheme}://{reach}"


def is_loopback(host: str) -> bool:
    """Tell if a host name or address is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(url: str) -> bool:
    """Tell if a URL leads to this machine itself, by a loopback name or its own address."""
    host = (urlsplit(url).hostname or "").lower()
    if is_loopback(host):
        return True
    import psutil

    return any(host == one.address for found in psutil.net_if_addrs().values() for one in found)


def same_address(one: str, other: str) -> bool:
    """Tell if two addresses lead to the same registry, for all names of this machine."""
    return one == other or same_origin(url_of(one), url_of(other))


def same_origin(one: str, other: str) -> bool:
    """Tell if two URLs have the same scheme, host and port, so that one's secrets fit the other."""
    first, second = urlsplit(one), urlsplit(other)
    ports = [url.port or {"http": 80, "https": 443}.get(url.scheme) for url in (first, second)]
    hosts = [(url.hostname or "").lower() for url in (first, second)]
    same_host = hosts[0] == hosts[1] or all(map(is_loopback, hosts))
    return first.scheme == second.scheme and same_host and ports[0] == ports[1]


@dataclass
class Answer:
    """What a registry answered: status, headers (any case), and the body, read or on its way."""

    request: requests.PreparedRequest
    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    body: bytes = b""

    @property
    def media_type(self) -> str:
        """The ``Content-Type`` without its parameters; empty where there is none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def location(self) -> str:
        """Where an upload goes on; empty where the registry does not tell."""
        return self.headers.get("Location", "")

    @property
    def said(self) -> str:
        """The registry's own words in an error's body, else its status."""
        try:
            errors = read_json(self.body, _ERRORS).get("errors", [])
        except FieldError:
            errors = []
        words = "; ".join(error.get("message") or error.get("code", "") for error in errors)
        return words or f"status {self.status}"

    def read(self, limit: int) -> bytes:
        """Take the rest of the body, at most a byte more than the limit."""
        held = bytearray(self.body)
        for chunk in self.chunks:
            held += chunk
            if len(held) > limit:
                break
        self.body = bytes(held)
        return self.body


def wants_login(address: str) -> str:
    """Say what to do where a registry wants to know who asks, and nobody is known."""
    return (
        f"'{address}' wants a login for it, or does not have it. Check the name, log in with "
        f"'docker login {address}', then try again."
    )


class _Session(requests.Session):
    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Leave redirects to :class:`Connection`: requests would read all of their bodies."""
        return iter(())


class Connection:
    """A session with one host and those it sends on to; several threads may use it at once.

    It follows redirects itself: of their bodies nothing is read, and no secret goes along.
    """

    def __init__(
        self,
        address: str,
        url: str,
        auth: Callable[[requests.PreparedRequest], requests.PreparedRequest],
        certificates: Path | None,
    ) -> None:
        self.address, self.url = address, url
        self._session = _Session()
        self._session.trust_env = not is_local(url)  # a proxy is not asked for this machine
        self._session.auth = auth  # always one, else requests looks for a login in .netrc
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        self._verify = str(certificates) if certificates else True

    @contextlib.contextmanager
    def send(
        self, method: str, url: str, *, doing: str, follow: bool, **more: Any
    ) -> Iterator[Answer]:
        """Send a request, and hand out the answer with its body unread."""
        host = self.address
        for _ in range(REDIRECTS):
            with _translated(doing, host):
                response = self._session.request(
                    method,
                    url,
                    # Else a bundle that the environment names would take the place of this one.
                    verify=self._verify,
                    stream=True,
                    timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                    allow_redirects=False,
                    **more,
                )
            if not (follow and response.is_redirect):
                break
            response.close()
            place = printable(response.headers["Location"])
            with _translated(doing, place):
                url = urljoin(url, place)
                host = self.address if same_origin(url, self.url) else urlsplit(url).netloc
            more.pop("params", None)
        else:
            raise RegistryError(f"{doing}: '{self.address}' sends on and on, last to '{url}'.")
        headers = requests.structures.CaseInsensitiveDict(
            {name: printable(value) for name, value in response.headers.items()}
        )
        with response:
            chunks = _chunks(response, doing, host)
            yield Answer(response.request, response.status_code, headers, chunks)


def _chunks(response: requests.Response, doing: str, host: str) -> Iterator[bytes]:
    """Yield a body as it comes, and give up a host that is silent or drips."""
    waited, count = 0.0, 0
    while True:
        began = time.monotonic()
        with _translated(doing, host):
            # Unlike 'read', this returns with what there is, so that the clock can be looked at.
            chunk = response.raw.read1(CHUNK_BYTES)
            waited, count = waited + time.monotonic() - began, count + len(chunk)
            if waited > ANSWER_SECONDS + count / SLOWEST:
                raise TimeoutError
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _translated(doing: str, host: str) -> Iterator[None]:
    """Turn a failure of the connection within the block into the lab's words."""
    try:
        yield
    except LabError as error:  # of a login, on the way
        raise type(error)(f"{doing}: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise RegistryUnreachable(f"{doing}: {_unreachable(error, host)}") from error


@dataclass(frozen=True)
class Held:
    """What a registry lets in: a header, until when, and advice if it is refused all the same."""

    header: str = ""
    until: float = 0.0  # by time.monotonic()
    advice: str = ""


class RegistryHTTP:
    """The door of one registry; several threads may use it at once.

    A 401 is answered with a login, once; the password or token that was let in is kept.
    """

    def __init__(
        self,
        address: str,
        url: str,
        login: Callable[[requests.Response], Held],
        certificates: Path | None,
    ) -> None:
        self.address, self.url = address, url
        self._login = login
        self._held: dict[tuple[str, bool], Held] = {}
        self._lock = threading.Lock()
        self._connection = Connection(address, url, self._sign, certificates)

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request as far as is known before it is sent; :meth:`_again` sees the answer."""
        held = self._held.get(_right(request), Held())
        if time.monotonic() < held.until and same_origin(str(request.url), self.url):
            request.headers["Authorization"] = held.header
        request.register_hook("response", self._again)  # type: ignore[no-untyped-call]
        return request

    def _again(self, answer: requests.Response, **options: Any) -> requests.Response:
        """Repeat a request that was refused, if there is something new to show."""
        request = answer.request
        # An answer from elsewhere, say a storage service after a redirect, is not the registry's.
        if answer.status_code != 401 or not same_origin(answer.url, self.url):
            return answer
        shown, right = request.headers.get("Authorization", ""), _right(request)
        with self._lock:
            held = self._held.get(right, Held())
            # Unless another thread was first.
            if held.header in ("", shown) or time.monotonic() >= held.until:
                held = self._held[right] = self._login(answer)
        if held.header in ("", shown):
            return answer
        answer.close()
        again = request.copy()
        again.headers["Authorization"] = held.header
        return answer.connection.send(again, **options)

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
        data: bytes | None = None,
    ) -> Iterator[Answer]:
        """Send a request and hand out the answer with its body unread.

        ``doing`` begins an error, with the input in quotes; ``expected`` are the statuses that are
        none; ``missing`` is what 404 means here. The path may be a whole address of the registry's.
        """
        with _translated(doing, printable(path)):
            url = urljoin(self.url, path)
        follow = method in ("GET", "HEAD")
        with self._connection.send(
            method, url, doing=doing, follow=follow, headers=headers, data=data
        ) as answer:
            if answer.status not in expected:
                answer.read(64 * 1024)
                held = self._held.get(_right(answer.request), Held())
                raise self._refusal(doing, answer, missing, held.advice)
            yield answer

    def ask(self, method: str, path: str, *, limit: int = ANSWER_LIMIT, **more: Any) -> Answer:
        """Send a request and return the whole answer, of ``limit`` bytes at most."""
        with self.open(method, path, **more) as answer:
            if len(answer.read(limit)) > limit:
                raise RegistryError(
                    f"{more['doing']}: the answer is longer than {limit:,} bytes, which no honest "
                    "one is. Check what is stored there."
                )
            return answer

    def pages(self, path: str, field: str, *, doing: str, missing: str = "") -> Iterator[list[str]]:
        """Yield a list of texts page by page, as the registry serves it (``Link`` headers)."""
        left = LIST_LIMIT
        for _ in range(LIST_PAGES):
            answer = self.ask("GET", path, doing=doing, missing=missing, limit=left)
            left -= len(answer.body)
            try:
                yield read_json(answer.body, {field: [str]}).get(field, [])
            except FieldError as error:
                raise self.not_a_registry(doing, f"its answer: {error}") from error
            links = requests.utils.parse_header_links(answer.headers.get("Link", ""))
            following = [link["url"] for link in links if link.get("rel") == "next"]
            if not following:
                return
            with _translated(doing, following[0]):
                target = urlsplit(urljoin(self.url + path, following[0]))
            path = f"{target.path}?{target.query}"  # never to another host
        raise RegistryError(
            f"{doing}: the list has no end, after {LIST_PAGES} pages. Take another registry."
        )

    def not_a_registry(self, doing: str, seen: str) -> RegistryError:
        """Return the error for an address where something answers that is not a registry."""
        step = "Check the address."
        if is_local(self.url):
            step = (
                "Another program has that port; on macOS, AirPlay takes 5000. "
                "'python3 -m labapp start' finds a free one."
            )
        return RegistryError(
            f"{doing}: what answers at '{self.address}' is not a registry ({seen}). {step}"
        )

    def _refusal(self, doing: str, answer: Answer, missing: str, login: str) -> RegistryError:
        """Return the error for an answer whose status was not expected."""
        status, said, address = answer.status, answer.said, self.address
        challenge = answer.headers.get("WWW-Authenticate")
        is_registry = challenge is not None or "Docker-Distribution-Api-Version" in answer.headers
        is_page = answer.media_type == "text/html" or status == 403
        if status == 507 or (status >= 500 and _FULL.search(answer.body)):
            cause = "the disk under the registry is full. Make room there, then try again"
        elif status == 429:
            cause = (
                f"'{address}' has had too many requests from this network. Wait, log in with "
                f"'docker login {address}', or use a mirror or a bundle"
            )
        elif status >= 500:
            local = "'python3 -m labapp doctor' seeks the cause"
            step = local if is_local(self.url) else "Try again later"
            cause = f"the registry failed ({said}). {step}"
        elif is_page and not is_registry and said == f"status {status}":
            return self.not_a_registry(doing, said)
        elif status == 404:
            return NotInRegistry(f"{doing}: {missing}.")
        elif status == 401 and 'error="invalid_token"' in (challenge or ""):
            cause = f"'{address}' does not take the token of its own service. Ask for a new one"
        elif status in (401, 403):
            cause = (login or wants_login(address)).rstrip(".")
        else:
            cause = f"the registry refuses it ({said})"
        return RegistryError(f"{doing}: {cause}.")


def _unreachable(error: BaseException, host: str) -> str:
    """Say in words why there is no connection, from an error's chain of causes, and what to do."""
    chain: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and cause not in chain:
        chain.append(cause)
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"the certificate of '{host}' is not to be trusted: {one.verify_message}. Look at "
                "this machine's clock and the name; trust its authority first, if you know whose "
                "it is. Else send no password there."
            )
    causes = (words for kinds, words in _CAUSES if any(isinstance(one, kinds) for one in chain))
    words = next(causes, "the connection to '{host}' broke off").format(host=host)
    step = "Check the name, and that this machine is on the network."
    with contextlib.suppress(ValueError):  # not a host at all
        if is_local(f"//{host}"):
            step = (
                "Is the registry running? 'python3 -m labapp status' tells, "
                "'python3 -m labapp start' helps."
            )
    return f"{words}. {step}"


_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((requests.exceptions.ProxyError,), "the proxy that is set here does not let '{host}' by"),
    ((requests.exceptions.SSLError,), "'{host}' does not speak HTTPS"),
    ((urllib3.exceptions.NameResolutionError,), "the name in '{host}' is not known here"),
    ((ConnectionRefusedError,), "connection refused, nothing listens at '{host}'"),
    (
        (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError),
        "'{host}' does not answer, or too slowly",
    ),
    ((ValueError,), "'{host}' is not an address"),
)


def _right(request: requests.PreparedRequest) -> tuple[str, bool]:
    """Return what a request needs a right for: the repository, and whether it only reads.

    A registry names the scope itself, but only once it has refused; requests of the same kind are
    given the same scope, and so can share a token.
    """
    path = urlsplit(str(request.url)).path
    found = _REPOSITORY.match(path)
    return (found[1] if found else path, request.method in ("GET", "HEAD"))
