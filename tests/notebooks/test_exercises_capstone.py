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
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from desk import Desk, Names, Steps, capstone, solved, step, verdict

from labapp import LabError
from labapp.attacks import delivery
from labapp.attacks.delivery import FAULTS, STEPS, last_delivery
from labapp.attacks.forging import doctored, marker, startup_code
from labapp.attacks.journal import undo
from labapp.bench import Bench
from labapp.course import chapter08
from labapp.course.exercises import saboteur
from labapp.course.receipts import Receipts
from labapp.registry.manifests import digest_of


@pytest.fixture
def names(bench: Bench, tmp_path: Path) -> Iterator[Names]:
    """A chapter as a learner finds it."""
    yield capstone(replace(bench, work=tmp_path))
    undo(bench)


# the naive script, which falls for every fault

BUILD_BY_SDK = """
def build():
    import docker
    docker.from_env().images.build(path=app, tag=image, buildargs={"BASE": base})
"""


def test_without_a_fault_it_delivers(names: Names) -> None:
    run = names["lab"].deliver(names["naive"])
    assert delivery.judge(run).ok
    assert [(step.name, step.code) for step in run.steps] == [(name, 0) for name in STEPS]
    # An honest mirror hands out the very manifest, and not one converted to an older kind.
    assert all(run.pushed.digest in run.output(step) for step in ("push", "deploy"))
    # The server has never seen the image: what is this delivery's alone comes by the mirror.
    assert run.fetched(run.pushed.layer)


def test_what_is_altered_at_rest_where_the_sdk_built_it(names: Names) -> None:
    """The SDK keeps more than the docker command: nothing of it may be left for the server."""
    script = names["naive"]
    script.write_text(names["head"] + names["builder"] + BUILD_BY_SDK + names["server"])
    run = delivery.run_pipeline(names["lab"].bench, script, faults=["rest"])
    [rest] = delivery.judge(run).faults
    assert (rest.survived, run.deployed) == (False, None)
    blob = rest.evidence["blob"]
    assert run.fetched(blob) and blob in run.output("deploy")


# 08-find

PAIRS = [("secret", "rest"), ("base", "transit"), ("secret", "push"), ("dependency", "moved")]


@dataclass(frozen=True)
class Found:
    """A delivery by the naive script, by a seed that plants two faults."""

    faults: tuple[str, ...]
    names: Names

    def judge(self, answer: object) -> tuple[str, str]:
        # Whose seed it is depends on the learner; here, one learner has each in turn.
        own = SimpleNamespace(own_seed=self.names["own"].seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chapter08, "saboteur", lambda receipts: own)
            return verdict("08-find", self.names["lab"].bench, answer)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def found(
    request: pytest.FixtureRequest, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Found]:
    choose = saboteur(Receipts(bench.state)).choose
    seed = next(s for s in itertools.count() if choose(s) == request.param)
    names = capstone(replace(bench, work=tmp_path_factory.mktemp("found")))
    names["own"] = names["lab"].deliver(names["naive"], seed=seed)
    yield Found(request.param, names)
    undo(bench)


def by_layers_and_logs(found: Found) -> dict[str, str]:
    """What the engine's logs and the image's layers tell, without a look at the trail."""
    lab, own = found.names["lab"], found.names["own"]
    answer, desk = {}, Desk(lab.bench)
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
        for container in desk.docker("ps", "--quiet", "--filter", label).stdout.split():
            log = desk.docker("logs", container)
            for line in (log.stdout + log.stderr).splitlines():
                if line.startswith("FORGED"):
                    answer["transit"] = line
                if marker("dependency") in line:
                    answer["dependency"] = line
    return answer


@pytest.mark.parametrize("way", [solved("08-find"), by_layers_and_logs])
def test_two_ways_find_both(found: Found, way: Callable[[Found], Any]) -> None:
    assert found.judge(...)[0] == "NotYet"
    answer = way(found)
    assert set(answer) == set(found.faults)
    outcome, message = found.judge(answer)
    assert outcome == "Correct", message


def of_a_neighbour(found: Found) -> str:
    """The digest of the wheel that the same fault leaves in somebody else's delivery."""
    wheel = found.names["wheel"]
    words = f"code in '{wheel.name}' for r00000000"
    return digest_of(doctored(wheel, startup_code("dependency", words)))


def noted(fault: str, name: str, cut: slice = slice(None)) -> Callable[[Found], str]:
    """Answer what the delivery noted of a fault."""

    def evidence(found: Found) -> str:
        last = last_delivery(found.names["lab"].bench)
        assert last is not None
        return last.planted[fault][name][cut]

    return evidence


def log_and_digests(found: Found) -> str:
    digests = [digest_of(bytes([number])) for number in range(3)]
    return str(found.names["own"].output("build")) + json.dumps(digests)


NEIGHBOURS_LINE = f"BACKDOOR (harmless, {marker('moved')}): … for r00000000; …"

FIND: list[tuple[str, Callable[[Found], object], str]] = [
    ("", lambda found: ["dependency", "moved"], "list"),
    ("", lambda found: {}, "of 2"),
    ("registry", lambda found: "x", "'registry'"),
    ("dependency", noted("dependency", "wheel now"), "1 of 2"),
    ("push", noted("moved", "digest now"), "'push'"),
    ("dependency", noted("moved", "digest before"), "as a whole"),
    ("moved", noted("moved", "digest before"), "should be there"),
    ("dependency", noted("dependency", "wheel before"), "should be there"),
    ("dependency", noted("moved", "digest now"), "what else"),
    ("dependency", of_a_neighbour, "your delivery 'r"),
    ("moved", lambda found: NEIGHBOURS_LINE, "your delivery 'r"),
    ("moved", noted("moved", "digest now", slice(23)), "64"),
    ("moved", noted("moved", "digest now", slice(7, None)), "64"),
    ("dependency", lambda found: found.names["wheel"].name, "itsdangerous"),
    ("moved", lambda found: None, "None"),
    ("moved", log_and_digests, "digests"),
]


@pytest.mark.parametrize("found", PAIRS[-1:], indirect=True, ids="-".join)
@pytest.mark.parametrize(("fault", "evidence", "fact"), FIND)
def test_wrong_findings_are_told(
    found: Found, fault: str, evidence: Callable[[Found], object], fact: str
) -> None:
    outcome, message = found.judge({fault: evidence(found)} if fault else evidence(found))
    assert (outcome, fact in message) == ("Wrong", True), message


def test_only_ones_own_delivery_is_looked_into_and_not_told_by_the_judge(names: Names) -> None:
    lab, script = names["lab"], names["script"]
    script.write_text("raise SystemExit(3)\n")
    seed, passed = lab.own_seed, "08-find" in Receipts(lab.bench.state).read().passed
    lab.bench.state.path("delivery.json").unlink(missing_ok=True)
    outcome, message = verdict("08-find", lab.bench, {})
    assert (outcome, str(seed) in message) == ("NotYet", True)
    # A script that stops lets not all of it in, and the next seed is somebody else's.
    run = lab.deliver(script, seed=seed)
    assert len(lab.judge(run).faults) == (2 if passed else 0)
    assert verdict("08-find", lab.bench, {"push": "x"})[0] == "NotYet"
    run = lab.deliver(script, seed=seed + 1)
    assert len(lab.judge(run).faults) >= 1
    outcome, message = verdict("08-find", lab.bench, {"push": "x"})
    assert (outcome, str(seed + 1) in message) == ("NotYet", True)


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

UNDOES = (
    "deploy)\n",
    f"deploy)\n{sys.executable} -c 'from labapp import open_lab; open_lab(\"08\").undo()'\n",
)
"""Have the lab undo its attacks, before the server pulls."""

PEEKS = (
    (
        "eu\n",
        'eu\n(cd "$LABAPP_STATE"; ! grep -rqsE "moved|after" attacks delivery.json) || exit 9\n',
    ),
    ('"${LAB_IMAGE%:*}@$(cat digest.txt)"', '"$LAB_IMAGE"'),
)
"""Stop where a file of the lab's tells of a fault, and trust the tag otherwise."""

SURVIVE: list[tuple[Any, ...]] = [
    (lambda names: None, "NotYet", "deliver.py"),
    (lambda names: (names["mine"] / "deliver.py").unlink(), "NotYet", "deliver.py"),
    (lambda names: shutil.rmtree(names["mine"]), "NotYet", "work/08/mine"),
    (both, "NotYet", "deliver.sh"),
    (written("raise SystemExit('never')\n"), "Wrong", "'never'"),
    (written("# nothing\n"), "Wrong", "shop/delivered"),
    (changed(NO_BUILD), "Wrong", "release.txt"),
    (another_till, "Wrong", "till.py"),
    (changed(*EARLY), "Wrong", "runs"),
    (changed(UNDOES), "Wrong", "undid"),
    (changed(*AROUND_THE_MIRROR), "Wrong", "mirror"),
    (changed(ONLY_ONCE), "Wrong", "deliver.sh", "secret"),
    (changed(*PEEKS), "Wrong", "'moved'", "moved"),
    (changed(PINS_LATER), "Wrong", "'push'", "push"),
]


@pytest.mark.parametrize("case", SURVIVE, ids=lambda case: case[2])
def test_scripts_that_do_not_survive_are_told(
    names: Names, monkeypatch: pytest.MonkeyPatch, case: tuple[Any, ...]
) -> None:
    """The check tries all faults in order. Those that the script survives only cost time here."""
    steps, outcome, fact, *faults = case
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
