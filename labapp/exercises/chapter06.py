"""Chapter 06, What can go wrong: the exercises."""

from __future__ import annotations

import hashlib

from labapp import attacks, pins
from labapp.attacks.forging import marker
from labapp.bench import Bench
from labapp.deployments.deployment_file import read_deployment
from labapp.errors import DeploymentError, InvalidReference
from labapp.exercises import evidence, guarding, inside
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.private.accounts import ANONYMOUS, Accounts
from labapp.reference import Reference


def _check_secret(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "safe" / ".env"
    if not file.is_file():
        return not_yet("'work/06/safe' is not there yet. Run the cell above first.")
    secret = file.read_bytes()
    word = secret.strip().rpartition(b"=")[2]
    if not word:
        return not_yet("'safe/.env' holds no password any more. Run the cell above again.")
    held = evidence.image(bench, "team/safe", "1")
    if held is None:
        return not_yet("The registry has no 'team/safe:1' yet.")
    for place in guarding.places(bench, held, word):
        if place.file:
            return wrong(
                f"The password is in a layer: '{place.file}'. A later layer can only hide it."
            )
        if place.document == "config":
            return wrong(
                "The password is in the image's settings or history: 'docker history' shows it to "
                "everyone. Build arguments, labels and ENV are no place for it."
            )
        return wrong(f"The password is in the image's {place.document}, which everyone may read.")
    used = guarding.visible(bench, held, "/src/used")
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
    try:
        named = [Reference.parse(text) for text in pins.dockerfile_images(file)]
    except InvalidReference as error:
        return wrong(f"The FROM line can't be read: {error}")
    if not named:
        return wrong("'page/Dockerfile' has no FROM line any more that names an image.")
    loose = [reference for reference in named if reference.digest is None]
    if loose == named:
        return not_yet(f"The FROM line still trusts a tag: '{loose[0]}'.")
    if loose:
        return wrong(
            f"One image in 'page/Dockerfile' is pinned, another still trusted by its tag: "
            f"'{loose[0]}'."
        )
    honest = bench.base("python:3.13-slim").digest
    strange = [reference.digest for reference in named if reference.digest != honest]
    if evidence.digest(bench, "team/base", "1") in strange:
        return wrong(
            f"{evidence.short(evidence.digest(bench, 'team/base', '1'))} is what the tag names "
            "since the attack: you have pinned the backdoor."
        )
    if len(strange) == len(named):
        return wrong(
            f"{evidence.short(strange[-1])} is not the base that was reviewed. Its digest is "
            "in the box of the attack."
        )
    held = evidence.image(bench, "team/page", "safe")
    if held is None:
        return wrong("The FROM line is pinned. Now build 'team/page:safe' from it, and push it.")
    if held.manifest.digest == honest:
        return wrong("'team/page:safe' is the base itself. Build it from 'page/Dockerfile'.")
    if not evidence.stands_on(held, bench.registry.image(bench.base("python:3.13-slim"))):
        return wrong("'team/page:safe' stands on other layers than the base that was reviewed.")
    if any(guarding.places(bench, held, marker("base").encode())):
        return wrong("'team/page:safe' has the backdoor in it. It was built before the FROM line.")
    return correct(
        "The tag may go where it likes: this build starts from what was reviewed.",
        evidence={"image": str(held.pinned), "base": str(honest)},
    )


def _check_wheel(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "app" / "requirements.txt"
    if not file.is_file():
        return not_yet("'work/06/app' is not there yet. Run the cell above first.")
    found = guarding.requirements(file.read_text(encoding="utf-8", errors="replace"))
    if not any(found.values()):
        return not_yet("'app/requirements.txt' names versions, and no digest.")
    slip = guarding.requirements_slip(bench, found)
    if slip is not None:
        return wrong(slip)
    held = evidence.image(bench, "shop/web", "hashed")
    if held is None:
        return wrong("The requirements have digests. Now build 'shop/web:hashed', and push it.")
    for place in guarding.places(bench, held, marker("dependency").encode()):
        where = place.file or place.document
        return wrong(f"'shop/web:hashed' has the attacker's code in it: '{where}'.")
    problem = inside.judge_answers(bench, held)
    if problem is not None:
        return wrong(
            f"The requirements are right. But 'shop/web:hashed' is not the shop: {problem}"
        )
    return correct(
        "Another file of the same name and version ends the build from now on.",
        evidence={"image": str(held.pinned)},
    )


def _check_rights(bench: Bench, answer: object) -> Verdict:
    accounts = Accounts(bench.state)
    names = accounts.names()
    if "server" not in names:
        return not_yet("There is no account 'server' yet.")
    slip = guarding.slip(accounts, "server", ["pull"])
    if slip is not None:
        return wrong(
            f"{slip} It is to pull all of 'shop/', and no more: whoever breaks in can do the same."
        )
    slip = guarding.slip(accounts, "ci", ["pull", "push"])
    if slip is not None:
        return wrong(f"{slip} It is to keep its rights: to pull and push all of 'shop/'.")
    rest = [ANONYMOUS, *(name for name in names if name not in ("ci", "server"))]
    more = guarding.others(accounts, rest)
    if more is not None:
        who = f"'{more[0]}'" if more[0] else "Somebody who does not log in"
        return wrong(f"{who} has rights in '{more[1]}' too. Nobody else is to have any.")
    tries = guarding.tries(bench, "server")
    again = " What it did before it was changed does not count." if tries.earlier else ""
    if not tries.pulled:
        return wrong(
            f"The rights are right. Now try them: as 'server', pull 'shop/web:1.4'.{again}"
        )
    if not tries.refused:
        return wrong(f"'server' pulled. Does the registry refuse its push? Try that too.{again}")
    return correct("A server that is broken into can't hand its image to the others.")


def _check_gate(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "production.yaml"
    if not file.is_file():
        return not_yet("'work/06/production.yaml' is not there yet. Run the cell above first.")
    tested, planted = guarding.moved(bench, "shop/web", "1.4")
    if tested is None:
        return not_yet("The registry has no 'shop/web:1.4'. Run the cells above first.")
    try:
        services = {each.name: each.image for each in read_deployment(file).services}
        refused = attacks.refusals(
            file, allowed=[f"{bench.registry.address}/shop/*"], registry=bench.registry
        )
    except DeploymentError as error:
        return wrong(f"'production.yaml' can't be used as it is: {error}")
    if refused and "@sha256:" not in services.get("web", "@sha256:"):
        return not_yet(f"'web' in 'production.yaml' is not pinned yet: {refused[0]}")
    if refused:
        return wrong(f"The gate refuses 'production.yaml': {refused[0]}")
    if "web" not in services:
        return wrong("'production.yaml' has no service 'web' any more: the shop is to run.")
    pinned = {name: Reference.parse(image) for name, image in services.items()}
    for name, reference in pinned.items():
        if reference.digest in planted:
            return wrong(
                f"'{name}' is pinned to {evidence.short(reference.digest)}: that is what '1.4' "
                "names since the push that nobody tested. The gate can't know that; you can: what "
                "was the digest before?"
            )
    if pinned["web"].digest != tested:
        return wrong(f"{evidence.short(pinned['web'].digest)} is not what was tested as '1.4'.")
    spelled = {services["web"], str(pinned["web"])}
    return guarding.judge_deployed(bench, pinned["web"], spelled, planted)


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
print(lab.run_once(f"{team}/page:safe", ["sh", "-c", "python3 -m platform 2>&1"]))
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
lab.attack("dependency")
try:
    lab.build(app, tag=f"{web}:swapped")
except LabError as error:
    print(str(error)[-700:])
lab.undo()
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
private.decisions().tail(3)
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
if lab.gate(production, allowed=[f"{lab.address}/shop/*"]):
    lab.deploy(production)
''',
        why="`lab.pin_deployment` would have pinned what the tag names *now*. Pin when you test, "
        "not when you deploy.",
    ),
)
