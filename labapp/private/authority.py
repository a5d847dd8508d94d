"""A certificate authority of the lab's own, and the certificates that it signs.

Source: RFC 5280, 4.2 (extensions); what OpenSSL's strict checks ask for is all there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import filelock
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from labapp.errors import StateError

NAME = "Image Build & Delivery lab authority"
AUTHORITY_DAYS = 3650
EARLY = timedelta(hours=1)
"""A certificate is valid from a little before it was made: clocks differ."""


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key, as files in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """An authority that signs certificates for servers.

    Attributes:
        folder: where its files are, and those of what it signs.
    """

    folder: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)
    _certificate: x509.Certificate = field(repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority in a folder; it is made on first use, and anew if it can't be used.

        One whose file is damaged, or whose time is over, can't be used. Who trusted it has to
        trust the new one.

        Args:
            folder: where its files are; it is made where it is missing.

        Raises:
            StateError: the files can't be read or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / "authority.lock"):
                pair = _load(folder / "authority.key")
                if pair is None or not _lasts(pair[1], timedelta()) or _issuer(*pair) != pair[1]:
                    pair = _make()
                    _write(folder / "authority.key", _key_pem(pair[0]) + _pem(pair[1]), mode=0o600)
                _write(folder / "authority.pem", _pem(pair[1]))
        except OSError as error:
            raise StateError(
                f"opening the certificate authority in '{folder}': {error.strerror or error}. "
                "Make the folder readable and writable for you, then try again."
            ) from error
        return cls(folder, *pair)

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

        Raises:
            StateError: the files can't be written.
        """
        wanted = list(dict.fromkeys(hosts))
        issued = Issued(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        try:
            with filelock.FileLock(self.folder / f"{name}.lock"):
                pair = _load(issued.key)
                if pair is None or not self._is_good(pair[1], wanted, timedelta(days=days / 2)):
                    pair = self._sign(wanted, timedelta(days=days))
                    _write(issued.key, _key_pem(pair[0]) + _pem(pair[1]), mode=0o600)
                _write(issued.certificate, _pem(pair[1]))
        except OSError as error:
            raise StateError(
                f"writing the certificate '{issued.certificate}': {error.strerror or error}. "
                "Make the folder writable for you, then try again."
            ) from error
        return issued

    def _is_good(self, found: x509.Certificate, hosts: list[str], left: timedelta) -> bool:
        with contextlib.suppress(x509.ExtensionNotFound):
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            same_hosts = list(names) == [_general_name(host) for host in hosts]
            mine = _issuer(self._key, found) == found
            return same_hosts and mine and timedelta() <= left and _lasts(found, left)
        return False

    def _sign(
        self, hosts: list[str], valid: timedelta
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        end = datetime.now(UTC) + valid
        public = self._key.public_key()
        certificate = (
            _builder(hosts[0], key, start=min(datetime.now(UTC), end) - EARLY, end=end)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(host) for host in hosts]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return key, certificate


def _make() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = _builder(NAME, key, start=now - EARLY, end=now + timedelta(days=AUTHORITY_DAYS))
    certificate = (
        builder.issuer_name(_name(NAME))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, *, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _lasts(certificate: x509.Certificate, left: timedelta) -> bool:
    return certificate.not_valid_after_utc > datetime.now(UTC) + left


def _issuer(
    key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> x509.Certificate | None:
    """Return the certificate if the key has signed it, else None."""
    try:
        key.public_key().verify(
            certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature:
        return None
    return certificate


def _load(file: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
    """Return key and certificate of a file; None where it is missing or damaged."""
    try:
        pem = file.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    fits = isinstance(key, ec.EllipticCurvePrivateKey)
    if not fits or key.public_key() != certificate.public_key():
        return None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key, certificate


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(file: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all; who may not read it never can, not even meanwhile."""
    if file.exists() and file.read_bytes() == content:
        return
    # The draft is readable by its owner alone.
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
        draft.write(content)
    os.chmod(draft.name, mode)  # noqa: PTH101 (a name, not a path)
    Path(draft.name).replace(file)
