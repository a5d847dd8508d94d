"""Chapter 06, What can go wrong: the checks."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from labapp.attacks.attacks import refusals, unpacked_layers
from labapp.attacks.forging import doctored, marker, normal_name, wheel_to_swap
from labapp.attacks.journal import Journal
from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import NotYet, Verdict, Wrong, correct
from labapp.journey.bases import SLIM
from labapp.journey.deploy import DIGEST_LABEL, SERVICE_LABEL
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.private.service import decisions
from labapp.registry.client import RegistryImage
from labapp.registry.manifests import Manifest, parse_config

_INSIDE = "shop/"
"""Where the accounts of the exercise have business; a pattern of rights has to begin with it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"--hash[= ]\s*[\"']?(sha256|sha384|sha512):([0-9A-Fa-f]+)")
_COMMENT = re.compile(r"(^|\s)#.*")


def check_06_secret(bench: Bench, answer: object) -> Verdict:
    """Was the password used in the build, and is it nowhere in the image?"""
    secret = checks.written(bench, "safe/.env").read_bytes()
    if not _password(secret):
        raise NotYet("'safe/.env' holds no password any more. Run the cell above again.")
    held = checks.pushed(bench, "team/safe:1")
    if slip := _slip_with(secret, bench, held):
        raise Wrong(slip)
    # What does not come from the build, such as a text that was typed, fits this password alone.
    other = secret.replace(_password(secret), token_hex(16).encode())
    with checks.trial(
        bench, bench.work / "safe", lambda copy: (copy / ".env").write_bytes(other)
    ) as tag:
        if slip := _slip_with(other, bench, checks.sent(bench, tag)):
            raise Wrong(f"'safe/Dockerfile' as it is now, built with another password: {slip}")
    return correct("The build used the password, and no layer knows it.", image=held.pinned)


def _password(secret: bytes) -> bytes:
    """Return the password in what the file with it holds."""
    return secret.strip().rpartition(b"=")[2]


def _slip_with(secret: bytes, bench: Bench, held: RegistryImage) -> str | None:
    """Return how an image shows a password, or that it was not used, in words."""
    word = _password(secret)
    if place := _place(bench, held, word):
        return f"The password is in the image's {place}. Whoever pulls it can read that."
    used = dict(checks.added(bench, held)).get("/src/used")
    if used is None or "/src/used" not in set(checks.contents(bench, held).files["path"]):
        return "No password in it, but no '/src/used' either: the build has to use it once."
    # Of the file, or of the password alone.
    ways = (secret, secret.strip(), *(word + end for end in (b"", b"\n", b"\r", b"\r\n")))
    if not any(hashlib.sha256(way).hexdigest().encode() in used for way in ways):
        return "'/src/used' was not made, in the build, from the password in 'safe/.env'."
    return None


def _place(bench: Bench, held: RegistryImage, text: bytes) -> str:
    """Return in which part of an image a text is, in words; empty where it is nowhere.

    What the lab's base images have is left out. An index is looked into whole: each of its images
    can be pulled by digest.
    """
    registry, repository = bench.registry, held.reference.repository
    manifests = [held.manifest]
    if held.index is not None:
        listed = (registry.manifest(repository, one.digest) for one in held.index.manifests)
        manifests = [one for one in listed if isinstance(one, Manifest)]
        if text in held.index.raw:
            return "index"
    for manifest in manifests:
        config = registry.read_blob(repository, manifest.config.digest)
        if text in config:
            return "config (build arguments, labels, ENV: 'docker history' shows it)"
        if text in manifest.raw:
            return "manifest"
        image = replace(held, manifest=manifest, config=parse_config(config))
        for _, layer in unpacked_layers(bench, image):
            if text in layer and layer.startswith(b"{"):
                # buildx stores how an image was built beside it, in the form of one more image.
                return "provenance"
            if text in layer:
                files = (path for path, content in checks.entries(layer) if text in content)
                # A name, or the target of a link, is no file's content.
                file = next(files, "the name of a file")
                return f"layers, in '{file}', which a later layer can only hide"
    return ""


def check_06_base(bench: Bench, answer: object) -> Verdict:
    """Is everything that the build stands on pinned to what was reviewed?"""
    file = checks.written(bench, "page/Dockerfile")
    named = checks.pinned_images(file)
    honest = bench.base(SLIM).digest
    strange = [reference.digest for reference in named if reference.digest != honest]
    if checks.digest(bench, "team/base:1") in strange or len(strange) == len(named):
        raise Wrong(
            f"{checks.short(strange[-1])} is not the base that was reviewed. Its digest is in the "
            "box of the attack; what the tag names since then has the backdoor."
        )
    base = bench.registry.image(bench.base(SLIM))
    held = checks.built_on(bench, "team/page:safe", base, file)
    if _place(bench, held, marker("base").encode()):
        raise Wrong("'team/page:safe' has the backdoor in it. It was built before the FROM line.")
    return correct(
        "The tag may go where it likes: this build starts from what was reviewed.",
        image=held.pinned,
        base=honest,
    )


def check_06_wheel(bench: Bench, answer: object) -> Verdict:
    """Has each requirement the digest of the wheel that was tested, and was the shop built?"""
    file = checks.written(bench, "app/requirements.txt")
    found = _requirements(file.read_text(encoding="utf-8-sig", errors="replace"))
    if not any(found.values()):
        raise NotYet("'app/requirements.txt' names versions, and no digest.")
    _check_requirements(bench, found)
    held = checks.pushed(bench, "shop/web:hashed", missing=Wrong)
    if place := _place(bench, held, marker("dependency").encode()):
        raise Wrong(f"'shop/web:hashed' has the attacker's code in its {place}.")
    checks.check_answers(bench, held, "The requirements are right, 'shop/web:hashed' is there.")
    _try_another_wheel(bench)
    said = "Another file of the same name and version ends the build from now on."
    return correct(said, image=held.pinned)


def _try_another_wheel(bench: Bench) -> None:
    """Build with the wheels that were tested, then with one swapped, which has to be refused."""

    def tested(copy: Path) -> None:
        shutil.rmtree(copy / "wheels", ignore_errors=True)
        shutil.copytree(bench.application / "wheels", copy / "wheels")

    def swapped(copy: Path) -> None:
        tested(copy)
        wheel = wheel_to_swap(bench.application / "requirements.txt", copy / "wheels")
        wheel.write_bytes(doctored(wheel, f"# {token_hex(8)}"))

    app = bench.work / "app"
    with checks.trial(bench, app, tested):
        pass
    try:
        with checks.trial(bench, app, swapped):
            pass
    except Wrong:
        return
    raise Wrong(
        "The requirements are right. But 'app/Dockerfile' builds with a swapped wheel, too: does "
        "pip install from 'requirements.txt'?"
    )


def _requirements(text: str) -> dict[str, set[str]]:
    """Return the digests of each requirement, ``sha256:…``, by the name as pip compares it."""
    found: dict[str, set[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        plain = _COMMENT.sub("", line).strip()
        if name := _NAME.match(plain):
            digests = {f"{kind}:{digits.lower()}" for kind, digits in _HASH.findall(plain)}
            found.setdefault(normal_name(name[0]), set()).update(digests)
    return found


def _wheels(folder: Path) -> dict[str, str]:
    """Return by its digests, of each algorithm, the name of each wheel as pip compares it."""
    found = {}
    for wheel in folder.glob("*.whl"):
        for kind in ("sha256", "sha384", "sha512"):
            digits = hashlib.new(kind, wheel.read_bytes()).hexdigest()
            found[f"{kind}:{digits}"] = normal_name(wheel.name.partition("-")[0])
    return found


def _check_requirements(bench: Bench, found: dict[str, set[str]]) -> None:
    honest, here = (_wheels(app / "wheels") for app in (bench.application, bench.work / "app"))
    for name, digests in found.items():
        if swapped := digests & here.keys() - honest.keys():
            raise Wrong(
                f"{checks.short(min(swapped))} is the digest of the swapped wheel: you have put "
                "your trust in what the attacker left. Which wheels did you test?"
            )
        # Beside the right one there may be others: of wheels for other machines, not other wheels.
        if digests and {honest[digest] for digest in digests & honest.keys()} != {name}:
            raise Wrong(f"{checks.short(min(digests))} is the digest of no wheel of '{name}'.")
    text = (bench.application / "requirements.txt").read_text(encoding="utf-8")
    if bare := [name for name in {**found, **_requirements(text)} if not found.get(name)]:
        raise Wrong(
            f"'app/requirements.txt' has no digest of '{bare[0]}'. The shop needs all that it had, "
            "and pip wants a digest for every line, or for none."
        )


def check_06_rights(bench: Bench, answer: object) -> Verdict:
    """May the server pull the shop and no more, and has it tried both?"""
    accounts = Accounts(bench.state)
    names = accounts.names()
    if "server" not in names:
        raise NotYet("There is no account 'server' yet.")
    for name, wanted in (("server", ["pull"]), ("ci", ["pull", "push"])):
        if slip := _slip_in_rights(accounts, name, wanted):
            raise Wrong(f"{slip} It is to {' and '.join(wanted)} all of 'shop/', and no more.")
    for name in (ANONYMOUS, *(name for name in names if name not in ("ci", "server"))):
        for pattern in _rights(accounts, name):
            who = f"'{name}'" if name else "Somebody who does not log in"
            raise Wrong(f"{who} has rights in '{pattern}' too. Nobody else is to have any.")
    pulled, refused = _tries(bench, "server")
    if not (pulled and refused):
        todo = "push, which is to be refused" if pulled else "pull 'shop/web:1.4'"
        raise Wrong(
            f"The rights are right. Now try them: as 'server', {todo}. What it did before its "
            "rights were changed does not count."
        )
    return correct("A server that is broken into can't hand its image to the others.")


def _slip_in_rights(accounts: Accounts, name: str, wanted: Sequence[str]) -> str | None:
    """Return what is wrong with the rights of an account that is to have just some, in words."""
    for pattern, actions in _rights(accounts, name).items():
        if not pattern.startswith(_INSIDE):
            return f"'{name}' has rights in '{pattern}', which reaches beyond '{_INSIDE}'."
        if more := [action for action in actions if action not in wanted]:
            return f"'{name}' may also {' and '.join(more)} in '{pattern}'."
    for repository in (f"{_INSIDE}web", f"{_INSIDE}worker", f"{_INSIDE}made/tomorrow"):
        allowed = accounts.allowed(name, repository)
        if less := [action for action in wanted if action not in allowed]:
            return f"'{name}' may not {' and '.join(less)} in '{repository}'."
    return None


def _rights(accounts: Accounts, name: str) -> dict[str, list[str]]:
    return {pattern: actions for pattern, actions in accounts.rights(name).items() if actions}


def _tries(bench: Bench, name: str) -> tuple[bool, bool]:
    """Tell whether an account, with its rights of now, has pulled, and was refused a push."""
    since = Accounts(bench.state).since(name)
    pulled = refused = False
    for one in decisions(bench.state):
        is_now = one.account == name and one.time >= since
        # Whoever has guessed a password wrong has not tried the account's rights.
        if is_now and one.status == 200 and one.repository.startswith(_INSIDE):
            asked, granted = set(one.asked.split(",")), set(one.granted.split(","))
            pulled |= one.repository == f"{_INSIDE}web" and asked == granted == {"pull"}
            refused |= "push" in asked - granted
    return pulled, refused


def check_06_gate(bench: Bench, answer: object) -> Verdict:
    """Does the gate let pass what was tested and nothing else, and does it run?"""
    file = checks.written(bench, "production.yaml")
    tested, planted = _moved(bench, "shop/web:1.4")
    if tested is None:
        raise NotYet("The registry has no 'shop/web:1.4'. Run the cells above first.")
    images = checks.services(file)
    web = images["web"]
    allowed = [f"{bench.registry.address}/shop/*"]
    if refused := refusals(file, allowed=allowed):
        unmet = Wrong if web.digest else NotYet
        raise unmet(f"The gate refuses 'production.yaml': {refused[0]}")
    for name, reference in images.items():
        if reference.digest in planted:
            raise Wrong(
                f"'{name}' is pinned to {checks.short(reference.digest)}: that is what '1.4' "
                "names since the push that nobody tested. The gate can't know that; you can: what "
                "was the digest before?"
            )
    if web.digest not in (tested, *checks.digests(bench, f"shop/web@{tested}")):
        raise Wrong(f"{checks.short(web.digest)} is not what was tested as '1.4'.")
    running = [one for one in checks.containers(bench) if one["State"]["Running"]]
    for one in running:
        labels = one["Config"]["Labels"] or {}
        if labels.get(DIGEST_LABEL) in planted:
            raise Wrong(
                f"The gate lets the file pass. But what runs as '{labels.get(SERVICE_LABEL)}' was "
                "started since the attack: deploy the file as it is now."
            )
    if not set(map(str, images.values())) <= {one["Config"]["Image"] for one in running}:
        raise Wrong(
            "The gate lets it pass. But not all of the file as it is now runs: it is to be "
            "deployed, or it has stopped, and 'docker logs' may say why."
        )
    return correct(
        f"The server runs {checks.short(web.digest)}: what was tested, and nothing else can pass.",
        image=web,
    )


def _moved(bench: Bench, name: str) -> tuple[str | None, set[str]]:
    """Return the digest that a tag names by its owner's will, and those that attacks gave it."""
    changes = [
        change.data
        for change in Journal(bench.state).changes()
        if change.kind == "tag" and change.what.partition("/")[2] == name
    ]
    planted = {data["after"] for data in changes}
    now = checks.digest(bench, name)
    if now in planted:
        # An attack on what an attack left, or a push in between: the owner's last one counts.
        own = [data["before"] for data in changes if data["before"] not in planted]
        now = own[-1] if own else None
    return now, planted
