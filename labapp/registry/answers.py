"""What a registry answers, and its refusals in words.

Source: OCI Distribution Specification 1.1, "Error Codes".
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import requests
import urllib3

from labapp.errors import NotInRegistry, RegistryError
from labapp.manifests.fields import FieldError, Fields
from labapp.registry.addresses import is_local

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0

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


def not_a_registry(doing: str, address: str, seen: str) -> RegistryError:
    """Return the error for an address where something answers that is not a registry."""
    step = "Check the address."
    if is_local(f"//{address}"):
        step = (
            "Another program has that port; on macOS, AirPlay takes 5000. "
            "'python3 -m labapp start' finds a free one."
        )
    return RegistryError(f"{doing}: what answers at '{address}' is not a registry ({seen}). {step}")


def unreachable(error: BaseException, address: str) -> str:
    """Say in words why there is no connection, from an error's chain of causes, and what to do."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_fault(cause, address)
    step = "Check the name, and that this machine is on the network."
    if is_local(f"//{address}"):
        step = (
            "Is the registry running? 'python3 -m labapp status' tells, "
            "'python3 -m labapp start' helps."
        )
    return f"{_words(causes, address)}. {step}"


def refusal(doing: str, address: str, answer: Answer, *, missing: str, login: str) -> RegistryError:
    """Return the error for an answer whose status was not expected.

    Args:
        doing: what was being done, to begin the message with.
        address: of the registry.
        answer: what it said.
        missing: what status 404 means here.
        login: what to do where it wants a login, or another one.
    """
    status, said = answer.status, said_in(answer.body)
    is_registry = bool(said) or "Docker-Distribution-Api-Version" in answer.headers
    text = answer.body.decode("utf-8", "replace")
    if status == 507 or (status >= 500 and _FULL.search(text)):
        return RegistryError(
            f"{doing}: the disk under the registry is full. Make room there, for example with "
            "'docker image prune', then try again."
        )
    if status == 429:
        return RegistryError(
            f"{doing}: '{address}' has had too many requests from this network. Wait, log in with "
            f"'docker login {address}', or use a mirror or a bundle."
        )
    if status >= 500:
        said = said or f"status {status}"
        step = "Try again later."
        if is_local(f"//{address}"):
            step = "'python3 -m labapp doctor' seeks the cause."
        return RegistryError(f"{doing}: the registry failed ({said}). {step}")
    challenge = answer.headers.get("WWW-Authenticate", "")
    if status == 401 and 'error="invalid_token"' in challenge:
        return RegistryError(
            f"{doing}: '{address}' does not take the token that came with it: its time is over, or "
            "another service has signed it. Ask once more for a new one; if that is refused too, "
            "the clocks of the two machines may differ."
        )
    asks_login = status == 401 and "WWW-Authenticate" in answer.headers
    html = status == 403 or answer.media_type == "text/html"
    if html and not is_registry and not asks_login:
        return not_a_registry(doing, address, f"status {status}")
    if status == 404:
        return NotInRegistry(f"{doing}: {missing}.")
    if status in (401, 403):
        return RegistryError(f"{doing}: {login}")
    return RegistryError(f"{doing}: the registry refuses it ({said or f'status {status}'}).")


def said_in(body: bytes) -> str:
    """Return the registry's own words in an error's body; empty where there are none."""
    try:
        errors = Fields.read(body).objects("errors")
        return "; ".join(error.text("message") or error.text("code") for error in errors)
    except FieldError:
        return ""


def _certificate_fault(error: ssl.SSLCertVerificationError, address: str) -> str:
    """Say what is wrong with a certificate (the codes are those of OpenSSL's X509_V_ERR_…)."""
    if error.verify_code in (9, 10):
        return (
            f"the certificate of '{address}' has expired, or is not valid yet. Look at this "
            "machine's clock; if it is right, whoever runs the registry has to renew it."
        )
    if error.verify_code in (62, 64):
        return (
            f"the certificate that '{address}' shows is for another host. Use the name that it "
            "was made for; if this is the name, something else answers in its place."
        )
    return (
        f"the certificate of '{address}' is not from an authority that is trusted here. Trust that "
        "authority first, if you know whose it is; else send no password there."
    )


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        cause = cause if isinstance(cause, BaseException) else None
    return chain


def _words(chain: list[BaseException], address: str) -> str:
    for kinds, words in _CAUSES:
        if any(isinstance(cause, kinds) for cause in chain):
            return words.format(address=address)
    return f"the connection to '{address}' broke off"


_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((requests.exceptions.ProxyError,), "the proxy that is set here does not let '{address}' by"),
    ((requests.exceptions.SSLError,), "'{address}' does not speak HTTPS"),
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
