"""A certificate authority of the lab's own, and the certificates that it signs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
import trustme
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from labapp.errors import StateError
from labapp.state import write_atomically

NAME = "Image Build & Delivery lab authority"


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, as files in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """An authority that signs certificates for servers; its files are in a folder."""

    folder: Path
    _ca: trustme.CA = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in a folder; it is made on first use, and anew if it is damaged.

        Raises:
            StateError: the files can't be read or written.
        """
        key, certificate = folder / "authority.key", folder / "authority.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "authority.lock"):
                try:
                    ca = trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
                except (FileNotFoundError, ValueError):
                    ca = trustme.CA(organization_name=NAME)
                    write_atomically(key, ca.private_key_pem.bytes())
                    write_atomically(certificate, ca.cert_pem.bytes(), mode=0o644)
        except OSError as error:
            raise StateError(
                f"opening the certificate authority in '{folder}': {error.strerror or error}. "
                "Make the folder readable and writable for you, then try again."
            ) from error
        return cls(folder, ca)

    @property
    def certificate(self) -> Path:
        """The authority's own certificate: the file that others have to trust."""
        return self.folder / "authority.pem"

    def issue(self, hosts: Iterable[str], *, name: str = "server", days: float = 30) -> Issued:
        """Sign a certificate for a server; one that still lasts half of its time is kept.

        Args:
            hosts: the host names and addresses that the server is reached by.
            name: what the files are called.
            days: how long it is valid from now on; below 0, it has expired already.
        """
        wanted = list(dict.fromkeys(hosts))
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        with filelock.FileLock(self.folder / f"{name}.lock"):
            if not self._is_good(issued, wanted, timedelta(days=days / 2)):
                end = datetime.now(UTC) + timedelta(days=days)
                begin = min(end, datetime.now(UTC)) - timedelta(hours=1)  # clocks differ
                leaf = self._ca.issue_cert(
                    *wanted, organization_name=NAME, not_before=begin, not_after=end
                )
                [certificate] = leaf.cert_chain_pems
                write_atomically(issued.key, leaf.private_key_pem.bytes())
                write_atomically(issued.certificate, certificate.bytes(), mode=0o644)
        return issued

    def _is_good(self, issued: Issued, hosts: list[str], left: timedelta) -> bool:
        try:
            found = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
            mine = x509.load_pem_x509_certificate(self._ca.cert_pem.bytes())
            found.verify_directly_issued_by(mine)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, InvalidSignature):
            return False
        lasts = timedelta() <= left <= found.not_valid_after_utc - datetime.now(UTC)
        return lasts and issued.key.exists() and list(names) == [_general_name(h) for h in hosts]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
