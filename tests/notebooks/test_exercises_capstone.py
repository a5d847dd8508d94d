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
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from desk import Steps, cells, step, verdict

from labapp import LabError
from labapp.attacks.delivery import FAULTS, last_delivery
from labapp.attacks.forging import doctored, marker, startup_code
from labapp.bench import Bench
from labapp.course import chapter08
from labapp.course.exercises import Coach, find_exercise, saboteur
from labapp.course.receipts import Receipts
from labapp.lab import Lab
from labapp.registry.manifests import digest_of

CELLS = """
app-wheel app-till app-dockerfile script-head script-builder script-server script-write trail-run
"""

Names = dict[str, Any]


def chapter(bench: Bench) -> Names:
    """Run the cells that write script and application, and return what they define."""
    lab = Lab(bench, Coach(bench))
    names: Names = {"lab": lab, "pd": pd, "re": re, "shutil": shutil, "LabError": LabError}
    for id in CELLS.split():
        # The last one also shows the trail of a delivery that is not made here.
        exec(cells("08")[id].replace("\ntrail(run)", ""), names)
    return names


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
            own = SimpleNamespace(own_seed=self.seed)
            patch.setattr(chapter08, "saboteur", lambda receipts: own)
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
    delivery = last_delivery(found.bench)
    assert delivery is not None
    return delivery.planted[fault][name]


def wheel(which: str) -> Callable[[Found], str]:
    return lambda found: left(found, "dependency", f"wheel {which}")


def image(which: str, cut: slice = slice(None)) -> Callable[[Found], str]:
    return lambda found: left(found, "moved", f"digest {which}")[cut]


def log_and_digests(found: Found) -> str:
    digests = [digest_of(bytes([number])) for number in range(3)]
    return str(found.names["own"].output("build")) + json.dumps(digests)


NEIGHBOURS_LINE = f"BACKDOOR (harmless, {marker('moved')}): … for r00000000; …"

FIND: list[tuple[str, Callable[[Found], object], str]] = [
    ("registry", lambda found: "x", "'registry'"),
    ("dependency", wheel("now"), "1 of 2"),
    ("push", image("now"), "'push'"),
    ("dependency", image("before"), "as a whole"),
    ("moved", image("before"), "should be there"),
    ("dependency", wheel("before"), "should be there"),
    ("dependency", image("now"), "what else"),
    ("dependency", of_a_neighbour, "your delivery 'r"),
    ("moved", lambda found: NEIGHBOURS_LINE, "your delivery 'r"),
    ("moved", image("now", slice(23)), "64"),
    ("moved", image("now", slice(7, None)), "64"),
    ("dependency", lambda found: found.names["wheel"].name, "itsdangerous"),
    ("moved", lambda found: None, "None"),
    ("moved", log_and_digests, "digests"),
]

one_delivery = pytest.mark.parametrize("found", PAIRS[-1:], indirect=True, ids="-".join)


@one_delivery
def test_what_is_no_finding_is_told(found: Found) -> None:
    assert found.judge(...)[0] == "NotYet"
    for answer, fact in ((["dependency", "moved"], "list"), ({}, "of 2")):
        outcome, message = found.judge(answer)
        assert (outcome, fact in message) == ("Wrong", True), message


@one_delivery
@pytest.mark.parametrize(("fault", "evidence", "fact"), FIND)
def test_wrong_findings_are_told(
    found: Found, fault: str, evidence: Callable[[Found], object], fact: str
) -> None:
    outcome, message = found.judge({fault: evidence(found)})
    assert (outcome, fact in message) == ("Wrong", True), message


@pytest.fixture
def stops(names: Names) -> Path:
    """A script that delivers nothing."""
    script: Path = names["mine"] / "deliver.py"
    script.write_text("raise SystemExit(3)\n")
    return script


def test_another_delivery_than_ones_own_is_told(names: Names, stops: Path) -> None:
    lab = names["lab"]
    seed = lab.own_seed
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
    seed = lab.own_seed
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


@step
def written(names: Names, text: str, *, name: str = "deliver.py") -> None:
    """Write a script in the place of the naive one; what was reviewed is known to it.

    A hardened script that passes is the chapter's own solution, which the chapter's test runs.
    """
    mine: Path = names["mine"]
    (mine / "deliver.py").unlink()
    reviewed = names["lab"].base("python:3.13-slim").rpartition("@")[2]
    (mine / name).write_text(text.replace("REVIEWED", reviewed))
    wheel = f"wheels/{names['wheel'].name}"
    digest = hashlib.sha256((mine / "app" / wheel).read_bytes()).hexdigest()
    (mine / "sums").write_text(f"{digest}  {wheel}\n")


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


EARLY = (
    ("docker push", "docker run -d --name $LAB_SERVICE -p 127.0.0.1::8000 $LAB_IMAGE; docker push"),
    ("docker pull -q", "exit 0; docker"),
)
"""Run the build machine's own image, before the deployment."""

ONLY_ONCE = ("eu\n", 'eu\n[ "$1" = build ] && { [ ! -e once ] || exit 9; }\ntouch once\n')

NO_BUILD = (
    'docker build -q --build-arg BASE="${LAB_BASE%:*}@REVIEWED" -t "$LAB_IMAGE" "$LAB_APP"',
    "docker pull -q $LAB_BASE; docker tag $LAB_BASE $LAB_IMAGE",
)
"""Deliver the base itself."""

AROUND_THE_MIRROR = (
    (" > digest.txt", ' > digest.txt; echo "${LAB_IMAGE%:*}" > name'),
    ('"${LAB_IMAGE%:*}@$(cat digest.txt)"', '"$(cat name)@$(cat digest.txt)"'),
)
"""As no server can."""

PINS_LATER = (
    'docker pull "$LAB_IMAGE" | grep -q "$(cat digest.txt)"',
    "docker pull $LAB_IMAGE | sed -n 's/Digest: //p' > digest.txt",
)
"""Pin what the tag names later; it was tried with seeds that never pushed over the tag."""

UNDOES = """
import sys
from dataclasses import replace
from pathlib import Path
from labapp.attacks.journal import undo
from labapp.bench import prepare
from labapp.state import State

if sys.argv[1] == "deploy":
    undo(replace(prepare(State.open()), work=Path.cwd()))
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
    (changed(NO_BUILD), "Wrong", "release.txt", ()),
    (another_till, "Wrong", "till.py", ()),
    (changed(*EARLY), "Wrong", "runs", ()),
    (undoes, "Wrong", "undid", ()),
    (changed(*AROUND_THE_MIRROR), "Wrong", "mirror", ()),
    (changed(ONLY_ONCE), "Wrong", "deliver.sh", ("secret",)),
    (changed(("test ! -e .env", "true")), "Wrong", "'secret'", ("secret",)),
    (changed(PINS_LATER), "Wrong", "'push'", ("push",)),
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
