"""What the checks of chapter 06 read: texts in images, hashed requirements, rights, the log."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from labapp.attacks.journal import Journal
from labapp.bench import Bench
from labapp.contents.layers import hides, removal
from labapp.deployments import DIGEST_LABEL, SERVICE_LABEL
from labapp.errors import InvalidReference
from labapp.exercises import evidence
from labapp.exercises.exercise import Verdict, correct, wrong
from labapp.manifests import Manifest
from labapp.private import decisions
from labapp.private.accounts import ACTIONS, Accounts
from labapp.reference import Reference
from labapp.registry.reader import RegistryImage

INSIDE = "shop/"
"""Where the accounts of the exercise have business; a pattern of rights has to begin with it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"--hash[= ]\s*[\"']?(sha256|sha384|sha512):([0-9A-Fa-f]+)")
_COMMENT = re.compile(r"(^|\s)#.*")


# --- images


@dataclass(frozen=True)
class Place:
    """Where a text stands in an image: the file of a layer, or what the config or so is called."""

    file: str = ""
    document: str = ""


def places(bench: Bench, held: RegistryImage, text: bytes) -> Iterator[Place]:
    """Yield where an image has a text that it does not have from the lab's base images.

    An index is looked into whole: each of its images can be pulled by digest.
    """
    registry, repository = bench.registry, held.reference.repository
    manifests = [held.manifest]
    if held.index is not None:
        listed = (registry.manifest(repository, one.digest) for one in held.index.manifests)
        manifests = [one for one in listed if isinstance(one, Manifest)]
        if text in held.index.raw:
            yield Place(document="index")
    for manifest in manifests:
        if text in registry.read_blob(repository, manifest.config.digest):
            yield Place(document="config")
        if text in manifest.raw:
            yield Place(document="manifest")
        for layer in evidence.layers(bench, replace(held, manifest=manifest)):
            if text in layer and layer.startswith(b"{"):
                # buildx stores how an image was built beside it, in the form of one more image.
                yield Place(document="provenance")
            elif text in layer:
                files = (path for path, read in evidence.entries(layer) if text in read())
                # A name, or the target of a link, is no file's content.
                yield Place(file=next(files, "the name of a file"))


def visible(bench: Bench, held: RegistryImage, path: str) -> bytes:
    """Return what a container sees in a file that an image adds; empty where it sees none."""
    content = b""
    for layer in evidence.layers(bench, held):
        found, hidden = None, False
        for name, read in evidence.entries(layer):
            gone = removal(name)
            hidden = hidden or (gone is not None and hides(path, *gone))
            if name == path:
                found = read()
        content = found if found is not None else b"" if hidden else content
    return content


# --- requirements


def requirements(text: str) -> dict[str, set[str]]:
    """Return the digests of each requirement, ``sha256:…``, by the name as pip compares it."""
    found: dict[str, set[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        plain = _COMMENT.sub("", line).strip()
        if name := _NAME.match(plain):
            digests = {f"{kind}:{digits.lower()}" for kind, digits in _HASH.findall(plain)}
            found.setdefault(_normal(name[0]), set()).update(digests)
    return found


def wheels(folder: Path) -> dict[str, set[str]]:
    """Return the digests of the wheels in a folder, by their names as pip compares them."""
    found: dict[str, set[str]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        content = wheel.read_bytes()
        digests = {
            f"{kind}:{hashlib.new(kind, content).hexdigest()}"
            for kind in ("sha256", "sha384", "sha512")
        }
        found.setdefault(_normal(wheel.name.partition("-")[0]), set()).update(digests)
    return found


def requirements_slip(bench: Bench, found: dict[str, set[str]]) -> str | None:
    """Return what is wrong with the chapter's requirements and their digests, in words."""
    honest = wheels(bench.application / "wheels")
    here = wheels(bench.work / "app" / "wheels")
    for name, digests in found.items():
        for digest in sorted(digests - honest.get(name, set())):
            if digest in set().union(*honest.values()):
                return f"{evidence.short(digest)} is the digest of another wheel than '{name}'."
            if digest in set().union(*here.values()):
                return (
                    f"{evidence.short(digest)} is the digest of the swapped wheel: you have put "
                    "your trust in what the attacker left. Which wheels did you test?"
                )
            return f"{evidence.short(digest)} is the digest of no wheel of this shop."
    bare = [name for name, digests in found.items() if not digests]
    if bare:
        return f"'{bare[0]}' has no digest. pip wants one for every line, or none."
    text = (bench.application / "requirements.txt").read_text(encoding="utf-8")
    for name in requirements(text):
        if name not in found:
            return f"'app/requirements.txt' does not name '{name}' any more. The shop needs it."
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- rights


def slip(accounts: Accounts, name: str, wanted: Iterable[str]) -> str | None:
    """Return what is wrong with an account's rights, in words.

    Args:
        accounts: all of them.
        name: of the account.
        wanted: what it is to be allowed in all of :data:`INSIDE`, and nowhere else.
    """
    for pattern, actions in _rights(accounts, name).items():
        if not pattern.startswith(INSIDE):
            return f"'{name}' has rights in '{pattern}', which reaches beyond '{INSIDE}'."
        if more := [action for action in actions if action not in wanted]:
            return f"'{name}' may also {' and '.join(more)} in '{pattern}'."
    for repository in (f"{INSIDE}web", f"{INSIDE}worker", f"{INSIDE}made/tomorrow"):
        allowed = accounts.allowed(name, repository)
        if less := [action for action in wanted if action not in allowed]:
            return f"'{name}' may not {' and '.join(less)} in '{repository}'."
    return None


def others(accounts: Accounts, names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first account of some that has rights, and where; None if there is none."""
    for name in names:
        for pattern in _rights(accounts, name):
            return name, pattern
    return None


def _rights(accounts: Accounts, name: str) -> Mapping[str, list[str]]:
    rights = accounts.rights(name).items()
    found = {pattern: [one for one in ACTIONS if one in actions] for pattern, actions in rights}
    return {pattern: actions for pattern, actions in found.items() if actions}


@dataclass(frozen=True)
class Tries:
    """What an account has tried by the log: a pull that was granted, a push that was refused.

    ``earlier`` is whether there are tries of an older account of that name; they count not.
    """

    pulled: bool
    refused: bool
    earlier: bool


def tries(bench: Bench, name: str) -> Tries:
    """Read from the log what an account has tried since it was added, with its rights of now."""
    since = Accounts(bench.state).since(name)
    logged = [one for one in decisions.read(bench.state) if one.account == name]
    pulled = refused = False
    for one in logged:
        # Whoever has guessed a password wrong has not tried the account's rights.
        if one.time >= since and one.status == 200 and one.repository.startswith(INSIDE):
            asked, granted = set(one.asked.split(",")), set(one.granted.split(","))
            pulled |= one.repository == f"{INSIDE}web" and asked == granted == {"pull"}
            refused |= "push" in asked - granted
    return Tries(pulled, refused, earlier=any(one.time < since for one in logged))


# --- a tag that moved, and what runs


def moved(bench: Bench, repository: str, tag: str) -> tuple[str | None, set[str]]:
    """Return the digest that a tag names by its owner's will, and those that attacks gave it."""
    before: list[str] = []
    after: set[str] = set()
    for change in Journal(bench.state).changes():
        with suppress(InvalidReference):
            if change.kind == "tag":
                reference = Reference.parse(change.what)
                if (reference.repository, reference.tag) == (repository, tag):
                    before.append(change.data["before"])
                    after.add(change.data["after"])
    # An attack on what an attack has left, or a push in between: the last one by the owner counts.
    own = [digest for digest in before if digest not in after]
    now = evidence.digest(bench, repository, tag)
    return (now if now not in after else own[-1] if own else None), after


def judge_deployed(
    bench: Bench, reference: Reference, spelled: set[str], planted: set[str]
) -> Verdict:
    """Judge whether what was tested runs, and nothing else in its place.

    Args:
        bench: which lab.
        reference: what is to run as ``web``.
        spelled: its spellings.
        planted: the digests that must not run.
    """
    found = evidence.containers(bench)
    running = [one for one in found if one["State"]["Running"]]
    for one in running:
        labels = one["Config"]["Labels"] or {}
        image, service = one["Config"]["Image"], labels.get(SERVICE_LABEL)
        if service is not None and labels.get(DIGEST_LABEL) in planted:
            return wrong(
                f"The gate lets the file pass. But what runs as '{service}' was started from "
                f"'{image}' since the attack: deploy the file as it is now."
            )
    if any(one["Config"]["Image"] in spelled for one in running):
        return correct(
            f"The server runs {evidence.short(reference.digest)}: what was tested, and nothing "
            "else can pass.",
            evidence={"image": str(reference)},
        )
    if any(one["Config"]["Image"] in spelled for one in found):
        return wrong(
            "The gate lets it pass, and it was started. But it has stopped: 'docker logs' may say "
            "why. Deploy it again."
        )
    return wrong("The gate lets it pass. Now deploy it: nothing runs from the file as it is now.")
