"""One registry's HTTP door: logins, bounded answers, each failure in words that say what to do.

What answers may be a stranger: its texts are made fit to print, and its JSON is read by the shape
that it should have. A password leaves for two places only, the registry and its token service,
and over HTTPS, except on this machine.

Sources: OCI Distribution Specification 1.1, "Error Codes"; CNCF Distribution, "Token Authentication
Specification" and "OAuth2 Token Authentication".
"""

from __future__ import annotations

import base64
import collections
import contextlib
import functools
import importlib.metadata
import io
import ipaddress
import json
import queue
import re
import ssl
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from labapp.errors import (
    LabError,
    NotInRegistry,
    RegistryError,
    RegistryFailed,
    RegistryUnreachable,
    printable,
)

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""How long a registry may be silent, and how long all of an answer may take, …"""

SLOWEST = 10_000
"""… and a second more for each of so many bytes: who drips is given up."""

ANSWER_LIMIT = 4 * 1024 * 1024
"""The largest answer that is held in memory, in bytes; registries bound manifests the same."""

LIST_PAGES = 100
"""The longest list of tags or repositories that is read, a thousand a page."""

Result = TypeVar("Result")

_ERRORS = {"errors": [{"message": str, "code": str}]}
_TOKEN = {"token": str, "access_token": str}
_PARAMETER = re.compile(r'(\w+)\s*=\s*"?((?<=")[^"]*|[^\s,"]+)')
_NEXT = re.compile(r"<(?:https?://[^/>]*)?(/[^/>][^>]*)>.*\bnext\b")  # never to another host
_FULL = re.compile(rb'no space left|"Err":\s*(?:28|112|122)\b', re.IGNORECASE)

RATE_LIMIT = re.compile("too ?many ?requests|pull rate limit", re.IGNORECASE)
FEWER = (
    "Wait, log in with 'docker login' in a terminal, or take the lab's base images from a mirror "
    "(LABAPP_MIRROR) or a bundle ('labapp bundle load')"
)
"""What registries and engines say of a network that asks too often; what helps, but waiting."""


class FieldError(ValueError):
    """A document is not JSON, or a field of it is missing or of the wrong type."""


def read_json(raw: bytes, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stranger's JSON object that a shape names, each of its type.

    What is ``null`` is left out, as Go programs write it for what is missing. Texts can be printed.
    A shape is a type, a list of one shape, or an object of them, where ``...`` is any name.
    """
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FieldError("it is not JSON") from error
    return cast("dict[str, Any]", _shaped(found, shape, ""))


def _shaped(value: Any, shape: Any, path: str) -> Any:
    wanted: Any = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        where = f"its field '{printable(path[1:])}'" if path else "it"
        raise FieldError(f"{where} is not of the type '{wanted.__name__}'")
    if isinstance(shape, list):
        return [_shaped(item, shape[0], f"{path}[{n}]") for n, item in enumerate(value)]
    if isinstance(shape, dict):
        names = dict.fromkeys(value, shape[...]) if ... in shape else shape
        return {
            printable(name): _shaped(value[name], inner, f"{path}.{name}")
            for name, inner in names.items()
            if value.get(name) is not None
        }
    return printable(value) if isinstance(value, str) else value


def url_of(address: str, *, secure: bool | None = None) -> str:
    """Return the URL of a registry as references name it; HTTPS but on this machine, as docker."""
    host = urlsplit(f"//{address}").hostname or ""
    scheme = "https" if (not is_loopback(host) if secure is None else secure) else "http"
    if address == "docker.io":  # that host serves web pages; this one speaks for it
        return f"{scheme}://registry-1.docker.io"
    # Windows spends two seconds on [::1] before it tries 127.0.0.1, where the registry is.
    reach = address.replace("localhost", "127.0.0.1", 1) if host == "localhost" else address
    return f"{scheme}://{reach}"


def is_loopback(host: str) -> bool:
    """Tell if a host name or address is this machine itself."""
    with contextlib.suppress(ValueError):  # a name
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def is_local(url: str) -> bool:
    """Tell if a URL leads to this machine itself, by a loopback name or its own address."""
    host = urlsplit(url).hostname or ""
    if is_loopback(host):
        return True
    import psutil

    return any(host == one.address for found in psutil.net_if_addrs().values() for one in found)


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL: where they are the same, one's secrets fit the other.

    This machine is the same by all its names.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, "localhost" if is_loopback(host) else host, port


def same_address(one: str, other: str) -> bool:
    """Tell if two addresses lead to the same registry, for all names of this machine."""
    return origin(url_of(one)) == origin(url_of(other))


@dataclass
class Answer:
    """What a registry answered; the headers in any case, the body read or on its way."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    body: bytes = b""

    @property
    def media_type(self) -> str:
        """The ``Content-Type`` without its parameters; empty where there is none."""
        return printable(self.headers.get("Content-Type", "").partition(";")[0].strip().lower())

    @property
    def said(self) -> str:
        """The registry's own words in an error's body, else its status."""
        errors = []
        with contextlib.suppress(FieldError):
            errors = read_json(self.body, _ERRORS).get("errors", [])
        words = "; ".join(error.get("message") or error.get("code", "") for error in errors)
        return words or f"status {self.status}"

    def read(self, limit: int) -> None:
        """Take the body, at most a chunk more than the limit."""
        held = bytearray()
        for chunk in self.chunks:
            held += chunk
            if len(held) > limit:
                break
        self.body = bytes(held)


class Connection(requests.Session):
    """The door of one registry, or of its token service; several threads may use it at once.

    It follows redirects itself: of their bodies nothing is read, and no secret goes along. It logs
    in where ``find`` tells who the learner is at an address.
    """

    def __init__(
        self, address: str, url: str, certificates: Path | None = None, find: Finder | None = None
    ) -> None:
        super().__init__()
        self.address, self.url = address, url
        self.trust_env = not is_local(url)  # a proxy is not asked for this machine
        # Always something, else requests looks for a login in .netrc.
        self.auth = Login(address, url, certificates, find) if find else lambda unsigned: unsigned
        # So that the lab's own requests can be told from docker's.
        self.headers["User-Agent"] = f"labapp/{importlib.metadata.version('labapp')}"
        self.headers["Accept-Encoding"] = "identity"
        self.verify = str(certificates) if certificates else True

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Follow none: requests would read all of their bodies."""
        return iter(())

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        place: str,
        *,
        doing: str,
        expected: Container[int] = range(200, 300),
        missing: str = "",
        follow: bool = True,
        **more: Any,
    ) -> Iterator[Answer]:
        """Send a request and hand out the answer with its body unread.

        ``doing`` begins an error, with the input in quotes; ``expected`` are the statuses that are
        none; ``missing`` is what 404 means here. The place is a path or a whole address.
        """
        url = self.url
        for _ in range(5):
            with _translated(doing, printable(place)):
                url = urljoin(url, place)
                is_home = origin(url) == origin(self.url)
                host = self.address if is_home else urlsplit(url).netloc
            with _translated(doing, host):
                send = functools.partial(
                    self.request,
                    method,
                    # Else a bundle that the environment names would take the place of this one.
                    verify=self.verify,
                    stream=True,
                    timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
                    allow_redirects=False,
                    **more,
                )
                [(_, response)] = at_once(send, [url])
            if not (follow and method in ("GET", "HEAD") and response.is_redirect):
                break
            response.close()
            place = printable(response.headers["Location"])
            more.pop("params", None)
        else:
            raise RegistryError(f"{doing}: '{self.address}' sends on and on, last to '{place}'.")
        with response:
            chunks = _chunks(response, doing, host)
            answer = Answer(response.status_code, response.headers, chunks)
            if answer.status not in expected:
                answer.read(64 * 1024)
                raise self._refusal(doing, answer, missing)
            yield answer

    def ask(self, method: str, place: str, *, doing: str, **more: Any) -> Answer:
        """Send a request and return the whole answer, of ``ANSWER_LIMIT`` bytes at most."""
        with self.open(method, place, doing=doing, **more) as answer:
            answer.read(ANSWER_LIMIT)
        if len(answer.body) > ANSWER_LIMIT:
            raise RegistryError(
                f"{doing}: the answer is longer than {ANSWER_LIMIT:,} bytes. Take another registry."
            )
        if answer.status == 200 and answer.media_type == "text/html":
            raise self._not_a_registry(doing, "it serves pages for a browser")
        return answer

    def names(self, path: str, field: str, *, doing: str, missing: str = "") -> list[str]:
        """Return a list of texts, sorted, which a registry serves by pages (``Link`` headers)."""
        found: list[str] = []
        for _ in range(LIST_PAGES):
            answer = self.ask("GET", path, doing=doing, missing=missing)
            try:
                found += read_json(answer.body, {field: [str]}).get(field, [])
            except FieldError as error:
                raise self._not_a_registry(doing, f"its answer: {error}") from error
            following = _NEXT.match(answer.headers.get("Link", ""))
            if not following:
                return sorted(found)
            if len(found) > 1000 * LIST_PAGES:
                break
            path = following[1]
        raise RegistryError(
            f"{doing}: the list has no end, after {len(found)} names. Take another registry."
        )

    def _not_a_registry(self, doing: str, seen: str) -> RegistryError:
        return RegistryError(
            f"{doing}: what answers at '{self.address}' is not a registry ({seen}). Check the "
            "address. On this machine, another program has that port (on macOS, AirPlay takes "
            "5000): 'python3 -m labapp start' finds a free one."
        )

    def _refusal(self, doing: str, answer: Answer, missing: str) -> RegistryError:
        status, said, address = answer.status, answer.said, self.address
        # What has the blobs may miss them while another one stores the same.
        kind = RegistryFailed if b"BLOB_UNKNOWN" in answer.body else RegistryError
        is_registry = "Docker-Distribution-Api-Version" in answer.headers
        is_page = (answer.media_type == "text/html" or status == 403) and not is_registry
        if status == 507 or (status >= 500 and _FULL.search(answer.body)):
            local = "'python3 -m labapp tidy' shows what can go" if is_local(self.url) else ""
            cause = f"the disk under the registry is full. {local or 'Make room there'}"
        elif status == 429:
            after = answer.headers.get("Retry-After", "")
            said += f"; again in {after} s" if after.isdecimal() else ""
            cause = f"'{address}' has had too many requests from this network ({said}). {FEWER}"
        elif status >= 500:
            local = "'python3 -m labapp doctor' seeks the cause"
            cause = f"the server failed ({said}). {local if is_local(self.url) else 'Try later'}"
            kind = RegistryFailed
        elif status == 413:
            cause = (
                f"a server in front of '{address}' takes no 8 MiB at once. Tell its owner; nginx "
                "calls this limit 'client_max_body_size'"
            )
        elif said == f"status {status}" and (is_page or (status == 404 and not missing)):
            return self._not_a_registry(doing, said)
        elif status == 404 and missing:
            return NotInRegistry(f"{doing}: {missing}.")
        elif status == 401:
            cause = _wants_login(address).rstrip(".")
        elif status == 403:
            cause = (
                f"'{address}' does not allow it ({said}). Ask its owner for the right, or log in "
                f"with 'docker login {address}' as who has it"
            )
        else:
            cause = f"the registry refuses it ({said})"
        return kind(f"{doing}: {cause}.")


def at_once(
    work: Callable[[str], Result], items: Iterable[str], *, threads: int = 1
) -> Iterator[tuple[str, Result]]:
    """Yield each item and what came of it, as soon as a thread has it.

    Who stops it by Ctrl-C waits for none of them: not for a name server, which Python itself waits
    for without hearing, nor for a slow host at Python's end, as with the threads of a pool.
    """
    todo, done = collections.deque(items), queue.SimpleQueue[tuple[str, Result] | BaseException]()

    def run() -> None:
        with contextlib.suppress(IndexError):  # nothing is left
            while item := todo.popleft():
                try:
                    done.put((item, work(item)))
                except BaseException as error:
                    done.put(error)

    try:
        count = len(todo)
        for _ in range(min(threads, count)):
            threading.Thread(target=run, daemon=True).start()
        for _ in range(count):
            if isinstance(found := done.get(), BaseException):
                raise found
            yield found
    finally:
        todo.clear()


def _chunks(response: requests.Response, doing: str, host: str) -> Iterator[bytes]:
    """Yield a body as it comes, and give up a host that is silent or drips."""
    waited, count = 0.0, 0
    while True:
        began = time.monotonic()
        with _translated(doing, host):
            # Unlike 'read', this returns with what there is, so that the clock can be looked at.
            chunk = response.raw.read1(256 * 1024)
            waited, count = waited + time.monotonic() - began, count + len(chunk)
            if waited > ANSWER_SECONDS + count / SLOWEST:
                raise TimeoutError("too slow")
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _translated(doing: str, host: str) -> Iterator[None]:
    try:
        yield
    except LabError as error:  # of a login, on the way
        raise type(error)(f"{doing}: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise RegistryUnreachable(f"{doing}: {_unreachable(error, host)}") from error


def _unreachable(error: BaseException, host: str) -> str:
    """Say why there is no connection, by the innermost cause of an error, and what to do."""
    cause: object = error
    while isinstance(cause, BaseException):
        error = cause
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of '{host}' is not to be trusted: {error.verify_message}. Look at "
            "this machine's clock and the name. If you know whose authority signed it, give a "
            "command its certificate with '--ca FILE'. Else send no password there."
        )
    words = printable(str(getattr(error, "strerror", None) or error))
    step = "Check the name, the network, and whether a proxy has to let it by."
    with contextlib.suppress(ValueError):  # not a host at all
        if is_local(f"//{host}"):
            step = (
                "Is the registry running? 'python3 -m labapp status' tells, "
                "'python3 -m labapp start' helps."
            )
    return f"no connection to '{host}' ({words}). {step}"


@dataclass(frozen=True)
class Credentials:
    """Who the learner is at one registry: a name and a password, or a token in their place."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


Finder = Callable[[str], Credentials | None]


def docker_credentials(address: str) -> Credentials | None:
    """Return what ``docker login`` has kept for a registry; None if nothing is.

    It is read by the Docker SDK from the user's docker configuration, or from the system's
    keychain, and never stored. RegistryError if that fails.
    """
    import docker.auth  # slow, and most registries never ask
    import docker.errors

    try:
        found = docker.auth.load_config().resolve_authconfig(address) or {}
        # A helper program's answer has its fields in capitals, the file's in small letters.
        fields = {str(name).lower(): str(value or "") for name, value in found.items()}
    # The SDK trusts the file to be an object of objects; where it is not, it stumbles anywhere.
    except (docker.errors.DockerException, ValueError, OSError, AttributeError, TypeError) as error:
        raise RegistryError(
            f"looking up the login for '{address}': docker's configuration can't be read ({error})."
            f" 'docker logout {address}' and 'docker login {address}' write it anew."
        ) from error
    known = Credentials(
        *(fields.get(name, "") for name in ("username", "password", "identitytoken"))
    )
    return known if known.identity_token or known.username else None


@dataclass
class Login:
    """Answers a registry's 401, once a request, and keeps the password or token that was let in.

    To ``Basic``, name and password are sent. To ``Bearer``, the token service that it names is
    asked for a token, with what ``docker login`` keeps (``find`` tells), or else anonymously:
    public images want a token, but no login. How long a token lasts is left to the registry: to
    one of the past it says 401 again.
    """

    address: str
    url: str
    certificates: Path | None
    find: Finder
    _held: dict[tuple[str, bool], str] = field(default_factory=dict)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign a request as far as is known before it is sent."""
        header = self._held.get(_right(request))
        if header and origin(str(request.url)) == origin(self.url):
            request.headers["Authorization"] = header
        request.register_hook("response", self._again)  # type: ignore[no-untyped-call]
        return request

    def _again(self, answer: requests.Response, **options: Any) -> requests.Response:
        """Repeat a refused request with what is asked for; RegistryError if that is refused too."""
        asked = {
            scheme.lower(): dict(_PARAMETER.findall(rest))
            for value in answer.raw.headers.getlist("WWW-Authenticate")
            for scheme, _, rest in [value.strip().partition(" ")]
        }
        # An answer from elsewhere, say a storage service after a redirect, is not the registry's.
        if answer.status_code != 401 or not asked or origin(answer.url) != origin(self.url):
            return answer
        header, advice = "", _wants_login(self.address)
        if "bearer" in asked:
            header, advice = self._token(asked["bearer"])
        elif "basic" in asked:
            known, advice = self._known(self.url)
            header = known.basic if known and known.password else ""
        if header not in ("", answer.request.headers.get("Authorization")):
            self._held[_right(answer.request)] = header
            answer.close()
            again = answer.request.copy()
            again.headers["Authorization"] = header
            if isinstance(again.body, io.BytesIO):  # a token may end in the middle of an upload
                again.body.seek(0)
            answer = answer.connection.send(again, **options)
        if answer.status_code == 401:
            answer.close()
            raise RegistryError(advice)
        return answer

    def _known(self, *places: str) -> tuple[Credentials | None, str]:
        """Return the credentials where they may be sent, and advice should they not do."""
        try:
            known = self.find(self.address)
        except RegistryError as error:
            return None, f"it wants a login, but {error}"
        at_home = is_local(self.url)
        for place in places:
            if place.startswith("http:") and not (at_home and is_local(place)):
                return None, (
                    f"it wants a login over plain HTTP ('{place}'), where everybody on the way can "
                    "read a password; the lab sends none. Ask for a registry with HTTPS."
                )
        if known is None:
            return None, _wants_login(self.address)
        return known, (
            f"'{self.address}' does not let '{known.username or 'this login'}' do that: it has no "
            "right to it, there is no such thing, or its password is another. Check the name, ask "
            f"the owner for the right, or log in anew with 'docker login {self.address}'."
        )

    def _token(self, asked: Mapping[str, str]) -> tuple[str, str]:
        """Return a header with the token service's token, and advice should it not do."""
        realm, host = printable(asked.get("realm", "")), ""
        with contextlib.suppress(ValueError):  # not an address at all
            host = urlsplit(realm).netloc
        if not host or not realm.startswith(("https://", "http://")):
            raise RegistryError(f"'{self.address}' wants a token, but names no token service.")
        known, advice = self._known(self.url, realm)
        form = {"service": asked.get("service", ""), "client_id": "labapp"}
        scope = asked.get("scope", "")
        request: dict[str, Any] = {"method": "GET", "params": {**form, "scope": scope.split()}}
        if known and known.identity_token:
            # OAuth2: the token of the login is exchanged for one of this scope.
            form |= {"grant_type": "refresh_token", "refresh_token": known.identity_token}
            request = {"method": "POST", "data": {**form, "scope": scope}}
        elif known:
            request["params"]["account"] = known.username
            request["headers"] = {"Authorization": known.basic}
        answer = Connection(host, realm, self.certificates).ask(
            place=realm,
            doing=f"asking the token service of '{self.address}'",
            expected=(200, 401, 403),
            follow=known is None,  # who has a password is not sent on with it
            **request,
        )
        if answer.status != 200:
            raise RegistryError(advice)
        try:
            told = read_json(answer.body, _TOKEN)
            # Else an error would print all of one that is no header's.
            return f"Bearer {''.join((told.get('token') or told['access_token']).split())}", advice
        except (FieldError, KeyError) as error:
            raise RegistryError(
                f"what answers at '{host}' is no token service: {error}. Take another registry."
            ) from error


def _right(request: requests.PreparedRequest) -> tuple[str, bool]:
    """Return what requests that can share a token have in common: a repository, and the verb."""
    about = urlsplit(str(request.url)).path.rsplit("/", 2)[0]
    return about, request.method in ("GET", "HEAD")


def _wants_login(address: str) -> str:
    return (
        f"'{address}' wants a login for it, or does not have it. Check the name, log in with "
        f"'docker login {address}', then try again."
    )
