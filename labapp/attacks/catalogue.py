"""The attacks by name: at each step of an image's journey, the wrong thing and its control."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from labapp.errors import AttackError


@dataclass(frozen=True)
class Attack:
    """One wrong thing, and what stops it.

    Attributes:
        id: by which it is started.
        step: of the image's journey.
        title: the same in a few words.
        wrong: what happens.
        control: what stops it.
    """

    id: str
    step: str
    title: str
    wrong: str
    control: str


ATTACKS = (
    Attack(
        "secret",
        "source → build",
        "a secret in a layer",
        "a secret is copied in, 'deleted' in a later layer, and still readable in the earlier one",
        ".dockerignore, build secrets, several stages; a scan of every layer",
    ),
    Attack(
        "base",
        "base image",
        "a base with a backdoor",
        "the base's tag is moved to an image with a backdoor",
        "FROM …@sha256:…",
    ),
    Attack(
        "dependency",
        "dependency",
        "a swapped wheel",
        "a wheel is swapped for another of the same name and version",
        "hashes in the requirements",
    ),
    Attack(
        "push",
        "push",
        "a push over your tag",
        "someone without the right pushes over your tag",
        "accounts and rights; accounts for servers that can only pull",
    ),
    Attack(
        "rest",
        "at rest",
        "an altered blob",
        "one byte of a blob is altered in the registry's storage",
        "content addressing: the pull refuses it",
    ),
    Attack(
        "transit",
        "in transit",
        "a dishonest mirror",
        "a mirror in between answers with another manifest",
        "TLS; and the digest, which catches it even without",
    ),
    Attack(
        "moved",
        "pull → run",
        "a tag that moved",
        "the tag is moved between the test and the deployment",
        "pin by digest; a gate that refuses what is not pinned",
    ),
    Attack(
        "run",
        "run",
        "root with tools at hand",
        "root in the container, a shell and a compiler at hand",
        "another user than root, a slim image, a read-only file system",
    ),
)
"""All attacks, in the order of the journey."""


@dataclass(frozen=True)
class Happened:
    """What an attack did.

    Attributes:
        attack: which one.
        target: what was attacked: a reference, a file or a folder.
        changed: what is different now, in words.
        evidence: what gives it away, by what it is: digests, paths, references.
        address: of the mirror, for the attack in transit.
        refused: in whose words, where the attack was refused; empty where it worked.
        table: what the look into a container found, for the attack on what runs.
    """

    attack: Attack
    target: str
    changed: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    refused: str = ""
    table: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def box(self) -> str:
        """The announcement, as a box of text that no narrow window breaks."""
        word, end = ("ATTACK REFUSED", self.refused) if self.refused else ("ATTACK", "")
        lines = [f"{word} · {self.attack.step} · {self.attack.title}"]
        for text in (self.changed, end or "All of it is harmless."):
            lines += textwrap.wrap(text, 84, break_on_hyphens=False, break_long_words=False)
        lines += [f"  {name}: {value}" for name, value in self.evidence.items()]
        lines += [] if self.refused else ["Undo: lab.undo()"]
        return "\n".join(["╔" + "═" * 88, *(f"║ {line}" for line in lines), "╚" + "═" * 88])


def find_attack(id: str) -> Attack:
    """Return the attack with an id.

    Raises:
        AttackError: there is none; the message lists those that there are.
    """
    for attack in ATTACKS:
        if attack.id == id:
            return attack
    known = ", ".join(attack.id for attack in ATTACKS)
    raise AttackError(f"looking up the attack {id!r}: there is none. There are: {known}.")
