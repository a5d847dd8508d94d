"""What a learner has found out about a spoiled delivery, judged by what the delivery noted."""

from __future__ import annotations

import re
from collections.abc import Mapping

from labapp.attacks.deliveries import Delivery
from labapp.attacks.forging import marker
from labapp.attacks.saboteur import FAULTS
from labapp.exercises import evidence

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_PROOF = ("file", "wheel", "wheel before", "digest before")
"""What a delivery notes of a fault that would be the same without it, or for everybody."""


def proofs(left: Mapping[str, str]) -> list[str]:
    """Return what gives a fault away, of all that a delivery notes of it."""
    return [value for name, value in left.items() if name not in _NO_PROOF]


def mistaken(delivery: Delivery, fault: str, found: object) -> str | None:
    """Return what is wrong with a piece of evidence; None where it is right.

    Args:
        delivery: by which it is judged.
        fault: what the learner says has happened.
        found: what the learner holds for its evidence: a text with a digest or a line of a log.
    """
    if not isinstance(found, str) or not found.strip():
        return f"the evidence is {found!r:.60}. Expected: a text with a digest or a log line."
    if fault not in delivery.planted:
        return "that is not what happened in your delivery. What else would look like it?"
    left = delivery.planted[fault]
    digests = set(_DIGEST.findall(found))
    release = delivery.release
    if len(digests) > 2:
        return f"there are {len(digests)} digests in it. Which one is the evidence?"
    if digests & set(_DIGEST.findall(" ".join(proofs(left)))):
        return None
    if marker(fault) in found and release in found:
        return None
    image = set(_DIGEST.findall(delivery.image))
    right = {left.get("wheel before"), left.get("digest before")}
    if digests & (right if FAULTS[fault] == "build" else right | image):
        return "that is the digest of what should be there. What is there instead?"
    if digests & image:
        return "that is your image as a whole. Which part of it is wrong, or what stands beside it?"
    for other, others in delivery.planted.items():
        if digests & set(_DIGEST.findall(" ".join(proofs(others)))):
            return f"{evidence.short(min(digests))} belongs to what else happened, not to '{fault}'"
        if marker(other) in found and release in found:
            return f"that line belongs to what else happened, not to '{fault}'."
    if digests or marker(fault) in found:
        what = evidence.short(min(digests)) if digests else "that line"
        return (
            f"{what} is no trace of it in your delivery '{release}'. Is it of another one, or of "
            "what is always there?"
        )
    if "sha256:" in found or re.fullmatch(r"[0-9a-f]{12,64}", found.strip()):
        return "expected is a whole digest: 'sha256:' and 64 hexadecimal digits."
    return f"'{found.strip()[:50]}' holds no digest, and is no line of a log that shows it."
