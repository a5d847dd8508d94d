"""Chapter 08, Capstone: the exercises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from labapp.attacks import deliveries
from labapp.attacks.catalogue import find_attack
from labapp.attacks.judging import Proof, attempt
from labapp.attacks.pipeline import PipelineRun
from labapp.attacks.saboteur import FAULTS, own_seed
from labapp.attacks.undoing import undo
from labapp.bench import Bench
from labapp.errors import AttackError
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong
from labapp.exercises.finding import mistaken, proofs
from labapp.feedback import QuietFeedback, feedback_here
from labapp.manifests import digest_of
from labapp.reference import Reference

_NAIVE, _MINE = "naive", "mine"
"""The folders of the script that the chapter writes, and of the learner's own."""

_NAMES = ("deliver.py", "deliver.sh")

_SLIPS: Mapping[str, str] = {
    "secret": "What of the folder does the build copy? Can your script see a file too many?",
    "base": "What does the build stand on: on a name, or on what was reviewed?",
    "dependency": "What does pip know of a wheel, besides its name?",
    "push": "Where does your script have its digest from: from its own push, or from a later look?",
    "rest": "A step that fails has to end with an exit code other than 0.",
    "moved": "Which image does the server ask for: a name, or what was pushed?",
    "transit": "What of the mirror's answer does the server check, or let the engine check?",
}


def _check_survive(bench: Bench, answer: object) -> Verdict:
    script = _script(bench)
    if isinstance(script, Verdict):
        return script
    try:
        return _prove(bench, script)
    except AttackError as error:
        return wrong(f"'{script.name}' can't be tried: {error}")
    finally:
        undo(bench, feedback=QuietFeedback())


def _script(bench: Bench) -> Path | Verdict:
    """Return the learner's script, or why there is none to judge."""
    naive, mine = bench.work / _NAIVE / "deliver.py", bench.work / _MINE
    if not naive.is_file() or not mine.is_dir():
        return not_yet("'work/08/mine' is not there yet. Run the cells above first.")
    there = [mine / name for name in _NAMES if (mine / name).is_file()]
    if not there:
        return not_yet("In 'work/08/mine' there is no 'deliver.py', and no 'deliver.sh' either.")
    starter = naive.read_bytes().split()
    changed = [each for each in there if each.read_bytes().split() != starter]
    if not changed:
        return not_yet("'deliver.py' is still the naive script: it has nothing against anybody.")
    if len(changed) > 1:
        return not_yet("Both 'deliver.py' and 'deliver.sh' are yours. Remove the one not meant.")
    return changed[0]


def _prove(bench: Bench, script: Path) -> Verdict:
    """Run the script without a fault and with each; the first that it fails at is told."""
    delivered = 0
    image = ""
    runs = ("", *FAULTS, "")
    with feedback_here().bars(f"trying {script.name}", unit="steps") as bars:
        for done, fault in enumerate(runs):
            # Once more, where it stopped at every fault: it may be one that works only once.
            if done > len(FAULTS) and delivered > 1:
                break
            bars.update(script.name, done, len(runs), fault)
            proof = attempt(bench, script, fault)
            if (slip := _slip(bench, script, fault, proof)) is not None:
                return wrong(slip)
            delivered += proof.run.delivered
            image = image or _pinned(bench, proof.run)
    return correct(
        f"'{script.name}' delivers, and none of {len(FAULTS)} faults gets through.",
        evidence={"image": image, "script": digest_of(script.read_bytes())},
    )


def _slip(bench: Bench, script: Path, fault: str, proof: Proof) -> str | None:
    """Return what is wrong with a delivery; None where it is as it should be."""
    words = f" Its last words: '{proof.run.last_line[:160]}'." if proof.run.last_line else ""
    ending = f"{proof.happened}.{words}"
    if fault and not proof.ok:
        attack = find_attack(fault)
        return f"It delivers, but not against '{fault}' ({attack.title}): {ending} {_SLIPS[fault]}"
    if not proof.ok:
        return (
            f"Without any fault, '{script.name}' has to deliver, each time, what it builds from "
            f"'app'. This time: {ending}"
        )
    return None if fault else _not_the_till(bench, proof.run)


def _not_the_till(bench: Bench, run: PipelineRun) -> str | None:
    """Return what the image lacks of the application; None for nothing."""
    held = bench.registry.image(run.image)
    wanted = (bench.work / _NAIVE / "app" / "till.py").read_bytes()
    found = library = False
    for path, read in evidence.added(bench, held):
        found = found or (path.endswith("/till.py") and read() == wanted)
        library = library or path.endswith("/itsdangerous/__init__.py")
    if not found:
        return "It delivers something else: the image has no 'till.py' as the chapter wrote it."
    if not library:
        return "The till it delivers has no 'itsdangerous'. A library less is no control here."
    return None


def _pinned(bench: Bench, run: PipelineRun) -> str:
    digest = run.pushed.digest if run.pushed is not None else ""
    return evidence.pinned(bench, Reference.parse(run.image).repository, digest)


def _check_find(bench: Bench, answer: object) -> Verdict:
    if answer is ...:
        return not_yet("No answer yet: replace the ... with what you have found.")
    seed, delivery = own_seed(bench), deliveries.last(bench)
    if delivery is None or delivery.seed != seed:
        last = f"The last one had the seed {delivery.seed}. " if delivery is not None else ""
        return not_yet(f"There is no delivery with your own seed, {seed}. {last}Deliver once more.")
    if delivery.left_out or not all(proofs(left) for left in delivery.planted.values()):
        return not_yet(
            "The last delivery with your own seed let not all of it in. Deliver the naive script, "
            "which stops at nothing: 'work/08/naive/deliver.py'."
        )
    if not isinstance(answer, Mapping):
        return wrong(
            f"The answer is of type {type(answer).__name__}. Expected: a dict with what happened, "
            "by its name in the table, and the evidence."
        )
    if unknown := [name for name in answer if name not in FAULTS]:
        return wrong(f"{unknown[0]!r} is not in the table. There are: {', '.join(FAULTS)}.")
    for fault, found in answer.items():
        if (slip := mistaken(delivery, fault, found)) is not None:
            return wrong(f"'{fault}': {slip}")
    if len(answer) < len(delivery.planted):
        return wrong(
            f"You have found {len(answer) or 'nothing'} of {len(delivery.planted)}. One came in "
            "before the build, one after the push."
        )
    return correct(
        f"Found: {' and '.join(answer)}, and the evidence is of your own delivery.",
        evidence={"image": delivery.image, **{str(name): str(answer[name]) for name in answer}},
    )


EXERCISES = (
    Exercise(
        id="08-find",
        check=_check_find,
        hints=(
            "Two things happened: one before the build, one after the push. `trail(own)` shows "
            "where the digest changes; `lab.layers(own.image)` shows what the image is made of.",
            "Before the build: does `team/base:1` name the base that it should? Is the wheel in "
            "`app/wheels` the one in `lab.bench.application`? Is there a file too many in `app`, "
            "and which layer has it now?",
            "After the push: if `pin` says another digest than `push`, somebody pushed in between. "
            "If only `deploy` does, ask the registry: does the tag name that, or did the mirror "
            "invent it? If `deploy` says none, its output names the blob that was refused.",
        ),
        solution="""
import gzip
import hashlib

answer, said = {}, digests(own)
base = lab.digest(f"{lab.address}/team/base:1")
if base != lab.base("python:3.13-slim").rpartition("@")[2]:
    answer["base"] = base
there = (app / "wheels" / wheel.name).read_bytes()
if there != wheel.read_bytes():
    answer["dependency"] = "sha256:" + hashlib.sha256(there).hexdigest()
for digest in lab.layers(own.image)["digest"][1:]:
    try:
        layer = gzip.decompress(lab.registry.read_blob("shop/delivered", digest))
    except LabError:
        answer["rest"] = digest  # its bytes don't have that digest any more
    else:
        if b"DEPLOY_PASSWORD" in layer:
            answer["secret"] = digest
if said["pin"] != said["push"]:
    answer["push"] = said["pin"]
elif said["deploy"] and said["deploy"] != said["pin"]:
    served = lab.digest(own.image)
    answer["moved" if said["deploy"] == served else "transit"] = said["deploy"]
print(answer)
""",
        why="Each step is compared with the one before: what should be there, by its digest, with "
        "what is there. What differs is the evidence, and where it begins to differ is the step.",
    ),
    Exercise(
        id="08-survive",
        check=_check_survive,
        hints=(
            "Take one fault at a time: `lab.prove(script, 'base')`. Begin with `docker()`: a "
            "command that fails has to end the script, with `check=True`.",
            "Before the build: `.dockerignore`; `lab.hashed_requirements(mine / 'app')` into "
            "its `requirements.txt`, after `lab.undo()`; and a base by digest, which is written in "
            "the script.",
            "`docker push` prints the digest of what it sent. Write it to a file in that very "
            "step, and let `deploy` pull and run `NAME@DIGEST`. NAME is `LAB_IMAGE` without its "
            "tag: at `deploy`, it leads through the mirror.",
        ),
        solution="""
lab.undo()
(mine / "app" / ".dockerignore").write_text("**/.env\\n")
wanted = mine / "app" / "requirements.txt"
if "--hash" not in wanted.read_text():
    wanted.write_text(lab.hashed_requirements(mine / "app"))
reviewed = lab.base("python:3.13-slim").rpartition("@")[2]
script.write_text('''import os, re, subprocess, sys
from pathlib import Path

image, base, app = os.environ["LAB_IMAGE"], os.environ["LAB_BASE"], os.environ["LAB_APP"]
name, note = image.rpartition(":")[0], Path("digest.txt")

def docker(*words):
    done = subprocess.run(["docker", *words], text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    done.check_returncode()
    return done.stdout

def build():
    base_pinned = base.rpartition(":")[0] + "@REVIEWED"
    docker("build", "--build-arg", "BASE=" + base_pinned, "--tag", image, app)

def push():
    said = docker("push", image)
    note.write_text(re.search(r"digest: (sha256:[0-9a-f]{64})", said)[1])

def deploy():
    pinned = name + "@" + note.read_text()
    docker("pull", pinned)
    docker("run", "--detach", "--name", os.environ["LAB_SERVICE"],
           "--publish", "127.0.0.1::8000", pinned)

if sys.argv[1] in ("build", "push", "deploy"):
    globals()[sys.argv[1]]()
'''.replace("REVIEWED", reviewed))
""",
        why="Three digests that were known before anybody came: of the base, of the wheel, of what "
        "was pushed. Everything else follows from asking for these and for nothing else, and from "
        "stopping when that fails.",
    ),
)
