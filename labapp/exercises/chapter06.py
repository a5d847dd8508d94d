"""Chapter 06, What can go wrong: the exercises."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from labapp import attacks
from labapp.attacks.forging import marker
from labapp.attacks.journal import Journal
from labapp.bench import Bench
from labapp.deployments.deployment_file import read_deployment
from labapp.errors import DeploymentError, InvalidReference
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.images.dockerfile import instructions
from labapp.manifests import digest_of
from labapp.private import decisions
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.reference import Reference

_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_ELSEWHERE = "team/page"
"""A repository that a server of the shop has no business with."""


def _check_secret(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "safe" / ".env"
    if not file.is_file():
        return not_yet("'work/06/safe' is not there yet. Run the cell above first.")
    held = evidence.image(bench, "team/safe", "1")
    if held is None:
        return not_yet("The registry has no 'team/safe:1' yet.")
    secret = file.read_bytes()
    word = secret.strip().rpartition(b"=")[2]
    if word in held.config.raw:
        return wrong(
            "The password is in the image's settings or history: 'docker history' shows it to "
            "everyone. Build arguments and ENV are no place for it."
        )
    used = b""
    for path, read in evidence.added(bench, held):
        content = read()
        if word in content:
            return wrong(f"The password is in a layer: '{path}'. A later layer can only hide it.")
        if path == "/src/used":
            used = content
    if not used:
        return wrong("No password in it, but no '/src/used' either: the build has to use it once.")
    if hashlib.sha256(secret).hexdigest().encode() not in used:
        return wrong("'/src/used' was not made from the password in 'safe/.env'.")
    return correct(
        "The build used the password, and no layer knows it.", evidence={"image": str(held.pinned)}
    )


def _check_base(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "page" / "Dockerfile"
    if not file.is_file():
        return not_yet("'work/06/page/Dockerfile' is not there yet. Run the cells above first.")
    froms = [i for i in instructions(file.read_text(encoding="utf-8")) if i.keyword == "FROM"]
    if not froms or not froms[0].words:
        return wrong("'page/Dockerfile' has no FROM line any more.")
    try:
        reference = Reference.parse(froms[0].words[0].text)
    except InvalidReference as error:
        return wrong(f"The FROM line can't be read: {error}")
    if reference.digest is None:
        return not_yet(f"The FROM line still trusts a tag: '{reference}'.")
    honest = bench.base("python:3.13-slim").digest
    if reference.digest != honest:
        if reference.digest == evidence.digest(bench, "team/base", "1"):
            return wrong(
                f"{evidence.short(reference.digest)} is what the tag names since the attack: you "
                "have pinned the backdoor."
            )
        return wrong(
            f"{evidence.short(reference.digest)} is not the base that was reviewed. Its digest is "
            "in the box of the attack."
        )
    held = evidence.image(bench, "team/page", "safe")
    if held is None:
        return wrong("The FROM line is pinned. Now build 'team/page:safe' from it, and push it.")
    base = bench.registry.image(bench.base("python:3.13-slim"))
    below = [layer.digest for layer in base.manifest.layers]
    above = [layer.digest for layer in held.manifest.layers]
    if above[: len(below)] != below:
        return wrong("'team/page:safe' stands on other layers than the base that was reviewed.")
    if any(marker("base").encode() in read() for _, read in evidence.added(bench, held)):
        return wrong("'team/page:safe' has the backdoor in it. It was built before the FROM line.")
    return correct(
        "The tag may go where it likes: this build starts from what was reviewed.",
        evidence={"image": str(held.pinned), "base": str(honest)},
    )


def _check_wheel(bench: Bench, answer: object) -> Verdict:
    file, wheels = bench.work / "app" / "requirements.txt", bench.work / "app" / "wheels"
    if not file.is_file():
        return not_yet("'work/06/app' is not there yet. Run the cell above first.")
    text = file.read_text(encoding="utf-8")
    hashes = [f"sha256:{digits}" for digits in _HASH.findall(text)]
    if not hashes:
        return not_yet("'app/requirements.txt' names versions, and no digest.")
    honest = {digest_of(wheel.read_bytes()) for wheel in _wheels(bench.application / "wheels")}
    strange = [each for each in hashes if each not in honest]
    if strange:
        if strange[0] in {digest_of(wheel.read_bytes()) for wheel in _wheels(wheels)}:
            return wrong(
                f"{evidence.short(strange[0])} is the digest of the swapped wheel: you have put "
                "your trust in what the attacker left. Which wheels did you test?"
            )
        return wrong(f"{evidence.short(strange[0])} is the digest of no wheel of this shop.")
    bare = [line for line in text.replace("\\\n", " ").splitlines() if _is_bare(line)]
    if bare:
        return wrong(f"'{bare[0].strip()}' has no digest. pip wants one for every line, or none.")
    held = evidence.image(bench, "shop/web", "hashed")
    if held is None:
        return wrong("The requirements have digests. Now build 'shop/web:hashed', and push it.")
    for path, read in evidence.added(bench, held):
        if marker("dependency").encode() in read():
            return wrong(f"'shop/web:hashed' has the attacker's code in it: '{path}'.")
    return correct(
        "Another file of the same name and version ends the build from now on.",
        evidence={"image": str(held.pinned)},
    )


def _wheels(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))


def _is_bare(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#") and not _HASH.search(line)


def _check_rights(bench: Bench, answer: object) -> Verdict:
    accounts = Accounts(bench.state)
    names = accounts.names()
    if "server" not in names:
        return not_yet("There is no account 'server' yet.")
    for repository in ("shop/web", "shop/worker"):
        allowed = accounts.allowed("server", repository)
        if "pull" not in allowed:
            return wrong(f"'server' may not pull '{repository}'. It is to pull all of 'shop/'.")
        if allowed - {"pull"}:
            more = ", ".join(sorted(allowed - {"pull"}))
            return wrong(f"'server' may also {more} in '{repository}'. Whoever breaks in, may too.")
    if accounts.allowed("server", _ELSEWHERE):
        return wrong(f"'server' may also read '{_ELSEWHERE}'. It only runs what is in 'shop/'.")
    if not {"pull", "push"} <= accounts.allowed("ci", "shop/web"):
        return wrong("'ci' may not push to 'shop/web' any more. It keeps its rights.")
    for name in (ANONYMOUS, *(other for other in names if other not in ("ci", "server"))):
        if accounts.allowed(name, "shop/web"):
            who = f"'{name}'" if name else "Somebody who does not log in"
            return wrong(f"{who} has rights in 'shop/web' too. Nobody else is to have any.")
    asked = [d for d in decisions.read(bench.state) if d.account == "server"]
    if not any("pull" in d.granted for d in asked if d.repository == "shop/web"):
        return wrong("The rights are right. Now try them: as 'server', pull 'shop/web:1.4'.")
    if not any("push" in d.asked and "push" not in d.granted for d in asked):
        return wrong("'server' pulled. Does the registry refuse its push? Try that too.")
    return correct("A server that is broken into can't hand its image to the others.")


def _check_gate(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "production.yaml"
    if not file.is_file():
        return not_yet("'work/06/production.yaml' is not there yet. Run the cell above first.")
    try:
        services = {each.name: each.image for each in read_deployment(file).services}
        refused = attacks.refusals(
            file, allowed=[f"{bench.registry.address}/shop/*"], registry=bench.registry
        )
    except DeploymentError as error:
        return wrong(f"'production.yaml' can't be used as it is: {error}")
    if refused and not any("@sha256:" in image for image in services.values()):
        return not_yet(f"Nothing in 'production.yaml' is pinned yet: {refused[0]}")
    if refused:
        return wrong(f"The gate refuses 'production.yaml': {refused[0]}")
    if "web" not in services:
        return wrong("'production.yaml' has no service 'web' any more: the shop is to run.")
    reference = Reference.parse(services["web"])
    moved = [
        change
        for change in Journal(bench.state).changes()
        if (change.kind, change.attack) == ("tag", "moved")
    ]
    tested = moved[0].data["before"] if moved else evidence.digest(bench, "shop/web", "1.4")
    if reference.digest != tested:
        if moved and reference.digest == moved[0].data["after"]:
            return wrong(
                f"{evidence.short(reference.digest)} is what '1.4' names since the push that "
                "nobody tested. The gate can't know that; you can: what was the digest before?"
            )
        return wrong(f"{evidence.short(reference.digest)} is not what was tested as '1.4'.")
    running = [c for c in evidence.containers(bench) if c["State"]["Running"]]
    if not any(c["Config"]["Image"] == str(reference) for c in running):
        return wrong("The gate lets it pass. Now deploy it: nothing runs from it yet.")
    return correct(
        f"The server runs {evidence.short(tested)}: what was tested, and nothing else can pass.",
        evidence={"image": str(reference)},
    )


EXERCISES = (
    Exercise(
        id="06-secret",
        check=_check_secret,
        hints=(
            "What isn't in the last stage is in no layer of the image.",
            "`FROM … AS use`, with the COPY and the first RUN; then a second `FROM`, and "
            "`COPY --from=use /src/used /src/used`.",
        ),
        solution='''
(safe / "Dockerfile").write_text("""ARG BASE=python:3.13-slim
FROM ${BASE} AS use
COPY .env /src/.env
RUN sha256sum /src/.env > /src/used
FROM ${BASE}
COPY --from=use /src/used /src/used
""")
lab.build(safe, tag=f"{team}/safe:1")
lab.push(f"{team}/safe:1")
''',
        why="The first stage has the password and stays on the machine that builds. Keep that "
        "machine's cache to yourself: the stage is in there.",
    ),
    Exercise(
        id="06-base",
        check=_check_base,
        hints=(
            '`base.evidence["digest before"]` is the digest of the base that was reviewed.',
            "A FROM line may hold a digest: `FROM REGISTRY/team/base@sha256:…`.",
        ),
        solution="""
reviewed = base.evidence["digest before"]
(page / "Dockerfile").write_text(f"FROM {team}/base@{reviewed}\\nWORKDIR /\\n")
lab.build(page, tag=f"{team}/page:safe")
lab.push(f"{team}/page:safe")
""",
        why="The digest names the bytes that somebody looked at. Whoever moves the tag can't move "
        "them.",
    ),
    Exercise(
        id="06-wheel",
        check=_check_wheel,
        hints=(
            "The wheels in `app/wheels` are not what you tested: `lab.undo()` puts them back.",
            "Then `(app / 'requirements.txt').write_text(lab.hashed_requirements(app))`, "
            "build, push.",
        ),
        solution="""
lab.undo()
(app / "requirements.txt").write_text(lab.hashed_requirements(app))
lab.build(app, tag=f"{web}:hashed")
lab.push(f"{web}:hashed")
""",
        why="Digests only help when they come from files that you trust. Taken after the attack, "
        "they would protect the attacker's wheel.",
    ),
    Exercise(
        id="06-rights",
        check=_check_rights,
        hints=(
            '`private.accounts.add(NAME, PASSWORD, rights={"shop/*": (…)})`: which actions?',
            "Then `private.log_in`, `private.pull` and, inside `try`, `private.push`.",
        ),
        solution="""
private.accounts.add("server", "a-password-for-servers", rights={"shop/*": ("pull",)})
private.log_in("server", "a-password-for-servers")
private.pull(f"{private.address}/shop/web:1.4")
try:
    private.push(f"{private.address}/shop/web:1.4")
except LabError as error:
    print(error)
""",
        why="The one who is broken into most can change least. A stolen login of a server gets an "
        "attacker images to read, and nothing to push.",
    ),
    Exercise(
        id="06-gate",
        check=_check_gate,
        hints=(
            "`tested.digest` is what the push told you, before the tag moved.",
            "One service, `web`, with `image: REGISTRY/shop/web@sha256:…`. Then `lab.deploy`.",
        ),
        solution='''
production.write_text(f"""services:
  web:
    image: {web}@{tested.digest}
    ports: ["127.0.0.1::8000"]
""")
lab.gate(production, allowed=[f"{lab.address}/shop/*"])
lab.deploy(production)
''',
        why="`lab.pin_deployment` would have pinned what the tag names *now*. Pin when you test, "
        "not when you deploy.",
    ),
)
