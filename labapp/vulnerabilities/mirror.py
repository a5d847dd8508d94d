"""A Debian mirror over HTTP: bounded downloads, each compared with the hash that lists it.

The proxies that the environment names (``http_proxy``) are used, as apt does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from typing import BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from labapp.errors import VulnerabilityError

THREADS = 6
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0
CHUNK_BYTES = 64 * 1024

_LATER = "Try again later, or take a snapshot."


class Mirror:
    """The connections to one mirror; several threads may use them at once."""

    def __init__(self, url: str) -> None:
        """Prepare the connections; nothing is sent yet.

        Args:
            url: of the archive, as apt's configuration has it.
        """
        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        # The address may hold a password, which an error must not show.
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._session = requests.Session()
        # A room without internet is told so within a quarter of a minute.
        retries = urllib3.Retry(
            2, connect=1, read=1, backoff_factor=0.1, status_forcelist=(502, 503, 504)
        )
        for scheme in ("http://", "https://"):
            adapter = HTTPAdapter(max_retries=retries, pool_maxsize=THREADS)
            self._session.mount(scheme, adapter)
        self._session.headers["Accept-Encoding"] = "identity"

    def read(self, path: str, *, limit: int) -> bytes:
        """Return a file that nothing lists.

        Args:
            path: below the archive's address.
            limit: its greatest length in bytes.

        Raises:
            VulnerabilityError: no answer, another status than 200, or longer than the limit.
        """
        body = bytearray()
        for chunk in self._chunks(path):
            body += chunk
            if len(body) > limit:
                raise self._error(path, f"it is longer than {limit:,} bytes", _LATER)
        return bytes(body)

    def download(
        self,
        path: str,
        file: BinaryIO,
        *,
        size: int,
        sha256: str,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Write a listed file's bytes to an open file, as they come.

        Args:
            path: below the archive's address.
            file: where the bytes go.
            size: the length in bytes that the index lists; more is not read.
            sha256: the hash that the index lists.
            progress: told of each further count of bytes.

        Raises:
            VulnerabilityError: no answer, another status than 200, or other bytes than listed.
        """
        hasher, done = hashlib.sha256(), 0
        for chunk in self._chunks(path):
            done += len(chunk)
            if done > size:
                break
            hasher.update(chunk)
            file.write(chunk)
            progress(len(chunk))
        if done != size or hasher.hexdigest() != sha256:
            raise self._error(path, "its bytes are not those that the suite's index lists", _LATER)

    def _chunks(self, path: str) -> Generator[bytes]:
        try:
            with self._session.get(
                f"{self._url}/{path}", stream=True, timeout=(CONNECT_SECONDS, ANSWER_SECONDS)
            ) as answer:
                if answer.status_code != 200:
                    raise self._error(path, f"the mirror answers {answer.status_code}", _LATER)
                yield from answer.iter_content(CHUNK_BYTES)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            step = "Connect to the network, or take a snapshot."
            raise self._error(path, "the mirror can't be reached", step) from error

    def _error(self, path: str, cause: str, step: str) -> VulnerabilityError:
        return VulnerabilityError(f"reading '{self.name}/{path}': {cause}. {step}")
