"""The exercises of chapter 08, where deliveries are spoiled: right ways and wrong states.

The chapter's own cells write the naive script and its application; what a learner does comes after.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labapp import LabError
from labapp.attacks import judge as deliveries
from labapp.attacks.delivery import FAULTS
from labapp.attacks.forging import doctored, marker, startup_code
from labapp.bench import Bench
from labapp.course import chapter08
from labapp.course.coach import Coach, own_seed, saboteur
from labapp.course.exercises import find_exercise
from labapp.course.receipts import Receipts
from labapp.lab import Lab
from labapp.registry.manifests import digest_of

FILE = Path(__file__).parents[2] / "notebooks" / "08_capstone.ipynb"

CELLS = """
app-wheel app-till app-dockerfile script-head script-builder script-server script-write trail-run
"""

Names = dict[str, Any]


def cell(id: str) -> str:
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    return next("".join(cell["source"]) for cell in notebook["cells"] if cell["id"] == id)


def chapter(bench: Bench) -> Names:
    """Run the cells that write script and application, and return what they define."""
    lab = Lab(bench, Coach(bench))
    names: Names = {"lab": lab, "pd": pd, "re": re, "shutil": shutil, "LabError": LabError}
    for id in CELLS.split():
        # The last one also shows the trail of a delivery that is not made here.
        exec(cell(id).replace("\ntrail(run)", ""), names)
    return names


def verdict(id: str, bench: Bench, answer: object = ...) -> tuple[str, str]:
    judged = find_exercise(id).check(bench, answer)
    return judged.outcome, judged.message


@pytest.fixture(autouse=True, scope="module")
def tidy(bench: Bench) -> Iterator[None]:
    yield
    Lab(bench, Coach(bench)).undo()


@pytest.fixture
def names(bench: Bench, tmp_path: Path) -> Names:
    """A chapter as a learner finds it."""
    return chapter(replace(bench, work=tmp_path))


# 08-find

PAIRS = [("secret", "rest"), ("base", "transit"), ("secret", "push"), ("dependency", "moved")]


@dataclass(frozen=True)
class Found:
    """A delivery by the naive script, by a seed that plants two faults."""

    faults: tuple[str, ...]
    seed: int
    names: Names

    @property
    def bench(self) -> Bench:
        lab: Lab = self.names["lab"]
        return lab.bench

    def judge(self, answer: object) -> tuple[str, str]:
        # Whose seed it is depends on the learner; here, one learner has each in turn.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chapter08, "own_seed", lambda bench: self.seed)
            return verdict("08-find", self.bench, answer)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def found(
    request: pytest.FixtureRequest, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Found:
    choose = saboteur(Receipts(bench.state)).choose
    seed = next(s for s in itertools.count() if choose(s) == request.param)
    names = chapter(replace(bench, work=tmp_path_factory.mktemp("found")))
    names["own"] = names["lab"].deliver(names["naive"], seed=seed)
    return Found(request.param, seed, names)


def docker(bench: Bench, *words: str) -> str:
    argv, environment = ["docker", *words], bench.engine.environment()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def by_layers_and_logs(names: Names) -> dict[str, str]:
    """What the engine's logs and the image's layers tell, without a look at the trail."""
    lab, own = names["lab"], names["own"]
    answer = {}
    for row in lab.layers(own.image)[1:].to_dict("records"):
        for fault in FAULTS:
            if marker(fault) in row["instruction"]:
                answer[fault] = row["digest"]
        # Builders tell a COPY in other words; who has read no word of it looks into each layer.
        with contextlib.suppress(LabError):
            blob = lab.registry.read_blob("shop/delivered", row["digest"])
            if b"DEPLOY_PASSWORD" in gzip.decompress(blob):
                answer["secret"] = row["digest"]
    if refused := re.search(r"failed for digest (sha256:\w{64})", own.output("deploy")):
        answer["rest"] = refused[1]
    for name in ("live", "mirror"):
        label = f"name=labapp-{name}-{lab.bench.state.lab_id}"
        for container in docker(lab.bench, "ps", "--quiet", "--filter", label).split():
            for line in docker(lab.bench, "logs", container).splitlines():
                if line.startswith("FORGED"):
                    answer["transit"] = line
                if marker("dependency") in line:
                    answer["dependency"] = line
    return answer


def test_the_chapters_own_solution_finds_both(found: Found) -> None:
    names = dict(found.names)
    exec(find_exercise("08-find").solution, names)
    assert set(names["answer"]) == set(found.faults)
    assert found.judge(names["answer"])[0] == "Correct"


def test_layers_and_logs_tell_both(found: Found) -> None:
    answer = by_layers_and_logs(found.names)
    assert set(answer) == set(found.faults)
    outcome, message = found.judge(answer)
    assert outcome == "Correct", message


def of_a_neighbour(found: Found) -> str:
    """The digest of the wheel that the same fault leaves in somebody else's delivery."""
    wheel = found.names["wheel"]
    words = f"code in '{wheel.name}' for r00000000"
    return digest_of(doctored(wheel, startup_code("dependency", words)))


def left(found: Found, fault: str, name: str) -> str:
    delivery = deliveries.last_delivery(found.bench)
    assert delivery is not None
    return delivery.planted[fault][name]


FIND: list[tuple[Callable[[Found], object], str, str]] = [
    (lambda found: ..., "NotYet", ""),
    (lambda found: ["dependency", "moved"], "Wrong", "list"),
    (lambda found: {"registry": "x"}, "Wrong", "'registry'"),
    (lambda found: {}, "Wrong", "of 2"),
    (lambda found: {"dependency": left(found, "dependency", "wheel now")}, "Wrong", "1 of 2"),
    (lambda found: {"push": left(found, "moved", "digest now")}, "Wrong", "'push'"),
    (lambda found: {"dependency": left(found, "moved", "digest before")}, "Wrong", "as a whole"),
    (lambda found: {"moved": left(found, "moved", "digest before")}, "Wrong", "should be there"),
    (
        lambda found: {"dependency": left(found, "dependency", "wheel before")},
        "Wrong",
        "should be there",
    ),
    (lambda found: {"dependency": left(found, "moved", "digest now")}, "Wrong", "what else"),
    (lambda found: {"dependency": of_a_neighbour(found)}, "Wrong", "your delivery 'r"),
    (
        lambda found: {"moved": f"BACKDOOR (harmless, {marker('moved')}): … for r00000000; …"},
        "Wrong",
        "your delivery 'r",
    ),
    (lambda found: {"moved": left(found, "moved", "digest now")[:23]}, "Wrong", "64"),
    (lambda found: {"moved": left(found, "moved", "digest now")[7:]}, "Wrong", "64"),
    (lambda found: {"dependency": found.names["wheel"].name}, "Wrong", "itsdangerous"),
    (lambda found: {"moved": None}, "Wrong", "None"),
    (
        lambda found: {"moved": found.names["own"].output("build") + json.dumps(SOME_DIGESTS)},
        "Wrong",
        "digests",
    ),
]

SOME_DIGESTS = [digest_of(bytes([number])) for number in range(3)]


@pytest.mark.parametrize("found", PAIRS[-1:], indirect=True, ids="-".join)
@pytest.mark.parametrize(("answer", "outcome", "fact"), FIND)
def test_wrong_findings_are_told(
    found: Found, answer: Callable[[Found], object], outcome: str, fact: str
) -> None:
    given, message = found.judge(answer(found))
    assert (given, fact in message) == (outcome, True), message


@pytest.fixture
def stops(names: Names) -> Path:
    """A script that delivers nothing."""
    script: Path = names["mine"] / "deliver.py"
    script.write_text("raise SystemExit(3)\n")
    return script


def test_another_delivery_than_ones_own_is_told(names: Names, stops: Path) -> None:
    lab = names["lab"]
    seed = own_seed(lab.bench)
    lab.bench.state.path("delivery.json").unlink(missing_ok=True)
    outcome, message = verdict("08-find", lab.bench, {})
    assert (outcome, str(seed) in message) == ("NotYet", True)
    # A script that stops lets not all of it in, and the next seed is somebody else's.
    lab.deliver(stops, seed=seed)
    assert verdict("08-find", lab.bench, {"push": "x"})[0] == "NotYet"
    lab.deliver(stops, seed=seed + 1)
    outcome, message = verdict("08-find", lab.bench, {"push": "x"})
    assert (outcome, str(seed + 1) in message) == ("NotYet", True)


def test_ones_own_delivery_is_not_told_by_the_judge(names: Names, stops: Path) -> None:
    lab = names["lab"]
    seed = own_seed(lab.bench)
    planted = len(lab.judge(lab.deliver(stops, seed=seed)).faults)
    passed = "08-find" in Receipts(lab.bench.state).read().passed
    assert planted == (2 if passed else 0)
    assert len(saboteur(Receipts(lab.bench.state)).choose(seed)) == 2
    assert len(lab.judge(lab.deliver(stops, seed=8)).faults) >= 1


# 08-survive

SHELL = """
set -eu
case "$1" in
build)
    (cd "$LAB_APP" && ls -A && sha256sum -c ../sums && test ! -e .env)
    docker build -q --build-arg BASE="${LAB_BASE%:*}@REVIEWED" -t "$LAB_IMAGE" "$LAB_APP"
    ;;
push)
    docker push "$LAB_IMAGE" | sed -n 's/.*digest: \\(sha256:[0-9a-f]*\\) .*/\\1/p' > digest.txt
    ;;
pin)
    docker pull "$LAB_IMAGE" | grep -q "$(cat digest.txt)"
    ;;
deploy)
    docker pull -q "${LAB_IMAGE%:*}@$(cat digest.txt)"
    docker run -d --name "$LAB_SERVICE" -p 127.0.0.1::8000 "${LAB_IMAGE%:*}@$(cat digest.txt)"
    ;;
esac
"""

Steps = Callable[[Names], object]


def written(text: str, *, name: str = "deliver.py") -> Steps:
    """Write a script in the place of the naive one; what was reviewed is known to it.

    A hardened script that passes is the chapter's own solution, which the chapter's test runs.
    """

    def steps(names: Names) -> None:
        mine: Path = names["mine"]
        (mine / "deliver.py").unlink()
        reviewed = names["lab"].base("python:3.13-slim").rpartition("@")[2]
        (mine / name).write_text(text.replace("REVIEWED", reviewed))
        wheel = f"wheels/{names['wheel'].name}"
        digest = hashlib.sha256((mine / "app" / wheel).read_bytes()).hexdigest()
        (mine / "sums").write_text(f"{digest}  {wheel}\n")

    return steps


def changed(*changes: tuple[str, str]) -> Steps:
    """Write the script for a shell, with a slip."""
    text = SHELL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return written(text, name="deliver.sh")


def both(names: Names) -> None:
    (names["mine"] / "deliver.py").write_text("# mine\n")
    (names["mine"] / "deliver.sh").write_text("# mine too\n")


def another_till(names: Names) -> None:
    """An application of the same release, and nothing else of the till."""
    changed()(names)
    (names["mine"] / "app" / "till.py").write_text(
        "import http.server as h\nh.test(h.SimpleHTTPRequestHandler)\n"
    )


ONLY_ONCE = (
    "set -eu\n",
    'set -eu\n[ "$1" = build ] && { [ ! -e once ] || exit 9; }\ntouch once\n',
)
EARLY = "docker run -d --name $LAB_SERVICE -p 127.0.0.1::8000 $LAB_IMAGE"

UNDOES = """
import sys
from dataclasses import replace
from pathlib import Path
from labapp.attacks import attacks
from labapp.bench import prepare
from labapp.state import State

if sys.argv[1] == "deploy":
    attacks.undo(replace(prepare(State.open()), work=Path.cwd()))
import subprocess
sys.exit(subprocess.run(["bash", "{}", sys.argv[1]]).returncode)
"""


def undoes(names: Names) -> None:
    """A script that has the lab undo its attacks, before it delivers like the naive one."""
    rest = names["mine"] / "naive.sh"
    changed(("test ! -e .env", "true"))(names)
    (names["mine"] / "deliver.sh").rename(rest)
    (names["mine"] / "deliver.py").write_text(UNDOES.replace("{}", str(rest)))


SURVIVE: list[tuple[Steps, str, str, tuple[str, ...]]] = [
    (lambda names: None, "NotYet", "deliver.py", ()),
    (lambda names: (names["mine"] / "deliver.py").unlink(), "NotYet", "deliver.py", ()),
    (lambda names: shutil.rmtree(names["mine"]), "NotYet", "work/08/mine", ()),
    (both, "NotYet", "deliver.sh", ()),
    (written("raise SystemExit('never')\n"), "Wrong", "'never'", ()),
    (written("# nothing\n"), "Wrong", "shop/delivered", ()),
    # Something else than what was built: the base itself, or an image with the release only.
    (
        changed(
            (
                'docker build -q --build-arg BASE="${LAB_BASE%:*}@REVIEWED" -t "$LAB_IMAGE" '
                '"$LAB_APP"',
                "docker pull -q $LAB_BASE; docker tag $LAB_BASE $LAB_IMAGE",
            )
        ),
        "Wrong",
        "release.txt",
        (),
    ),
    (another_till, "Wrong", "till.py", ()),
    # The build machine's own image, run before the deployment.
    (
        changed(("docker push", f"{EARLY}; docker push"), ("docker pull -q", "exit 0; docker")),
        "Wrong",
        "runs",
        (),
    ),
    (changed(ONLY_ONCE), "Wrong", "deliver.sh", ("secret",)),
    (undoes, "Wrong", "undid", ()),
    # It goes around the mirror, as no server can.
    (
        changed(
            (" > digest.txt", ' > digest.txt; echo "${LAB_IMAGE%:*}" > name'),
            ('"${LAB_IMAGE%:*}@$(cat digest.txt)"', '"$(cat name)@$(cat digest.txt)"'),
        ),
        "Wrong",
        "mirror",
        (),
    ),
    (changed(("test ! -e .env", "true")), "Wrong", "'secret'", ("secret",)),
    # It was tried with seeds that never pushed over the tag: it pins what the tag names later.
    (
        changed(
            (
                'docker pull "$LAB_IMAGE" | grep -q "$(cat digest.txt)"',
                "docker pull $LAB_IMAGE | sed -n 's/Digest: //p' > digest.txt",
            )
        ),
        "Wrong",
        "'push'",
        ("push",),
    ),
]


@pytest.mark.parametrize(("steps", "outcome", "fact", "faults"), SURVIVE)
def test_scripts_that_do_not_survive_are_told(
    names: Names,
    monkeypatch: pytest.MonkeyPatch,
    steps: Steps,
    outcome: str,
    fact: str,
    faults: tuple[str, ...],
) -> None:
    # The check tries all faults in order. Those that the script survives only cost time here.
    monkeypatch.setattr(chapter08, "FAULTS", {fault: FAULTS[fault] for fault in faults})
    steps(names)
    given, message = verdict("08-survive", names["lab"].bench)
    assert (given, fact in message) == (outcome, True), message


def test_a_script_that_opens_the_lab_undoes_nothing(names: Names) -> None:
    """As in all chapters, open_lab is what a learner may begin a script with."""
    written("from labapp import open_lab\nopen_lab('08')\nimport sys; sys.exit(1)\n")(names)
    lab = names["lab"]
    run = lab.deliver(names["script"], seed=8)
    assert run.undone_at == ""
    assert run.output("build").count("Undone") == 0
