"""Signatures of receipts: a class's word that a user posted one at a time, and nothing more.

It says neither who sat at the keyboard nor that the work is real. What is signed is JSON with
sorted keys and no spaces: the receipt's digest, the user of the hub, the time (UTC), and
:data:`PURPOSE`. The signature is Ed25519 (RFC 8032), in base64.
"""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from labapp.course.receipts import Receipt, Record, Signature
from labapp.errors import StateError
from labapp.registry.manifests import canonical_json, digest_of

PURPOSE = "labapp: the user posted this receipt at this time"


def id_of(key: Ed25519PublicKey) -> str:
    """Return a key's short name: 16 digits of the SHA-256 of its 32 bytes."""
    return digest_of(key.public_bytes_raw())[7:23]


def sign(key: Ed25519PrivateKey, receipt: str, user: str, time: str) -> Signature:
    """Sign that a user posted the receipt with a digest at a time (UTC, ISO 8601)."""
    signature = key.sign(_statement(receipt, user, time))
    return Signature(user, time, id_of(key.public_key()), base64.b64encode(signature).decode())


def is_signed(key: Ed25519PublicKey, record: Record, receipt: Receipt) -> bool:
    """Say whether a key signed a receipt as posted by the record's learner."""
    signed = record.signatures.get(receipt.digest)
    if signed is None or signed.user[:100] != record.learner:
        return False
    said = _statement(receipt.digest, signed.user, signed.time)
    try:
        key.verify(base64.b64decode(signed.signature), said)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_key(file: Path) -> Ed25519PublicKey:
    """Read a class's public key (PEM); StateError where a file holds none."""
    try:
        key = load_pem_public_key(file.read_bytes())
        if isinstance(key, Ed25519PublicKey):
            return key
        cause = "it is another kind of key"
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or "it holds no public key"
    raise StateError(
        f"reading the class's key '{file}': {cause}. It is 'key.pub' in the folder of the class, "
        "and on the hub at '/services/class/key.pub'."
    )


def _statement(receipt: str, user: str, time: str) -> bytes:
    return canonical_json({"purpose": PURPOSE, "receipt": receipt, "user": user, "time": time})
