"""Chapter 03, Tags and digests: the exercises."""

from __future__ import annotations

from labapp import pins
from labapp.bench import Bench
from labapp.errors import DeploymentError, InvalidReference
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.images.dockerfile import instructions
from labapp.manifests import is_digest
from labapp.reference import Reference

_TESTED = "1.4-tested"


def _check_digest(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with your computation.")
    held = evidence.image(bench, "shop/web", _TESTED)
    if held is None:
        return not_yet(f"The registry has no 'shop/web:{_TESTED}'. Run the cells above first.")
    if not isinstance(answer, str):
        return wrong(f"The answer is of type {type(answer).__name__}. Expected: a text.")
    if answer == held.manifest.digest:
        return correct(
            "The registry serves exactly these bytes under exactly this name.",
            evidence={"image": str(held.pinned)},
        )
    if f"sha256:{answer}" == held.manifest.digest:
        return wrong("The digits are right. A digest says which algorithm made it, in front.")
    if answer == held.manifest.config.digest:
        return wrong("That is the digest of the config. Some engines call it the image ID.")
    if answer == evidence.digest(bench, "shop/web", "1.4"):
        return wrong(f"That is what the tag '1.4' names now. Expected: '{_TESTED}'.")
    if not is_digest(answer):
        return wrong(f"'{answer[:24]}' is no digest: expected 'sha256:' and 64 hexadecimal digits.")
    return wrong(
        f"The registry serves no manifest {evidence.short(answer)} for this image. Did you use the "
        "bytes as they came, before any parsing or printing?"
    )


def _check_pin(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "production.yaml"
    tested = evidence.digest(bench, "shop/web", _TESTED)
    if tested is None or not file.is_file():
        return not_yet("'production.yaml' or the tested image is missing. Run the cells above.")
    try:
        texts = pins.deployment_images(file)
        references = {service: Reference.parse(text) for service, text in texts.items()}
    except (DeploymentError, InvalidReference) as error:
        return wrong(f"'production.yaml' can't be used as it is: {error}")
    reference = references.get("web")
    if reference is None:
        return wrong("'production.yaml' has no service 'web' any more.")
    if reference.digest is None:
        return not_yet(f"'production.yaml' still names a tag: '{reference}'.")
    if reference.digest != tested:
        if reference.digest == evidence.digest(bench, "shop/web", "1.4"):
            return wrong(
                f"'production.yaml' is pinned to {evidence.short(reference.digest)}: that is what "
                "the tag '1.4' names since your colleague's push. Nobody tested it."
            )
        if evidence.image(bench, reference.repository, reference.digest) is None:
            return wrong(
                f"The registry has no manifest {evidence.short(reference.digest)}. Is it an image "
                "ID, the digest of a config?"
            )
        return wrong(f"{evidence.short(reference.digest)} is not the image that was tested.")
    running = [c for c in evidence.containers(bench) if c["State"]["Running"]]
    if not any(c["Config"]["Image"] == str(reference) for c in running):
        return wrong("The file is pinned to the tested digest, but nothing runs from it: deploy.")
    return correct(
        f"The server runs {evidence.short(tested)}, the image that was tested.",
        evidence={"image": evidence.pinned(bench, reference.repository, tested)},
    )


def _check_from(bench: Bench, answer: object) -> Verdict:
    file = bench.work / "page" / "Dockerfile"
    base = evidence.image(bench, "team/base", "1")
    if base is None or not file.is_file():
        return not_yet("'page/Dockerfile' or 'team/base:1' is missing. Run the cells above first.")
    froms = [i for i in instructions(file.read_text(encoding="utf-8")) if i.keyword == "FROM"]
    if not froms or not froms[0].words:
        return wrong("'page/Dockerfile' has no FROM line any more.")
    try:
        reference = Reference.parse(froms[0].words[0].text)
    except InvalidReference as error:
        return wrong(f"The FROM line can't be read: {error}")
    if reference.digest is None:
        return not_yet(f"The FROM line still trusts a tag: '{reference}'.")
    if reference.repository != "team/base" or reference.digest != base.manifest.digest:
        return wrong(
            f"The FROM line is pinned to '{reference.repository}' at "
            f"{evidence.short(reference.digest)}; 'team/base:1' is "
            f"{evidence.short(base.manifest.digest)}"
        )
    held = evidence.image(bench, "page/web", "pinned")
    if held is None:
        return wrong("The FROM line is pinned. Now build 'page/web:pinned' from it, and push it.")
    if not evidence.stands_on(held, base):
        return wrong("'page/web:pinned' stands on other layers than 'team/base:1'. Build it again.")
    return correct(
        "Whoever builds this Dockerfile, whenever, starts from the same base.",
        evidence={"image": str(held.pinned), "base": str(base.pinned)},
    )


EXERCISES = (
    Exercise(
        id="03-digest",
        check=_check_digest,
        hints=(
            "`lab.manifest(REFERENCE).raw` holds the bytes, exactly as the registry sent them.",
            "`hashlib.sha256(DATA).hexdigest()` gives the digits. Put `sha256:` in front.",
        ),
        solution="""
raw = lab.manifest(f"{lab.address}/shop/web:1.4-tested").raw
answer = "sha256:" + hashlib.sha256(raw).hexdigest()
""",
        why="The digest is the SHA-256 of the manifest's bytes. Anyone can check it, without "
        "trusting the registry.",
    ),
    Exercise(
        id="03-pin",
        check=_check_pin,
        hints=(
            "Which image was tested? The tag `1.4` moved since. The tag `1.4-tested` didn't.",
            "An image line without a tag: `REGISTRY/shop/web@sha256:…`. Then deploy the file.",
        ),
        solution="""
tested = lab.pin(f"{lab.address}/shop/web:1.4-tested")
text = production.read_text()
production.write_text(text.replace(f"{lab.address}/shop/web:1.4", str(tested)))
lab.deploy(production)
""",
        why="The file now names content. No push can change what it starts.",
    ),
    Exercise(
        id="03-from",
        check=_check_from,
        hints=(
            "`lab.pin(REFERENCE)` tells what a tag names now.",
            "`lab.pin_dockerfile(FILE)` rewrites the FROM lines of a Dockerfile.",
        ),
        solution="""
lab.pin_dockerfile(page / "Dockerfile")
lab.build(page, tag=f"{lab.address}/page/web:pinned")
lab.push(f"{lab.address}/page/web:pinned")
""",
        why="The tag stays in the line for humans. The digest decides.",
    ),
)
