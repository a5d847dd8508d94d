"""The attacks on a real engine and registry: before, after, undone; also after a sudden death."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import replace

import elsewhere
import pytest

from labapp import reset
from labapp.attacks import attacks
from labapp.attacks.attacks import exposure, mirror_log
from labapp.attacks.forging import forge, marker
from labapp.attacks.journal import Journal, container_name, undo
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry, PullError
from labapp.feedback import QuietFeedback
from labapp.journey import transfer
from labapp.journey.bases import SLIM
from labapp.journey.run import run_once
from labapp.reference import Reference
from labapp.registry.client import Registry


@pytest.fixture(scope="module")
def own(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench with a work folder of these tests."""
    own = replace(bench, work=tmp_path_factory.mktemp("attacks"))
    yield own
    copy = attacks.copy_base(own)
    own.registry.delete_manifest(copy.repository, own.registry.digest(copy))


@pytest.fixture
def page(own: Bench) -> Iterator[Reference]:
    """An image that was put together over HTTP: no engine and no build cache has seen its layer."""
    copy = attacks.copy_base(own)
    forged = forge(own, copy, "fresh", occasion=uuid.uuid4().hex)
    forged.upload(own.registry, "page")
    yield replace(copy, tag="page")
    transfer.remove(own.engine, replace(copy, tag="page"))
    own.registry.delete_manifest(copy.repository, forged.manifest.digest)


@pytest.fixture(autouse=True)
def undone(own: Bench) -> Iterator[None]:
    yield
    undo(own)
    assert Journal(own.state).changes() == []


def printed(own: Bench, reference: object) -> str:
    """What a container prints that tells whether planted code runs in it."""
    return run_once(own.engine, str(reference), ["sh", "-c", "python3 -c 'print(0)' 2>&1"])


def damaged(own: Bench, reference: Reference) -> list[str]:
    manifest = own.registry.image(reference).manifest
    found = own.registry.damaged_blobs(reference.repository, manifest, contents=True)
    return [each.digest for each in found]


def test_what_changed_again_since_stays(own: Bench, page: Reference) -> None:
    before = own.registry.digest(page)
    raw, media_type = own.registry.manifest_bytes(page.repository, before)
    happened = attacks.start(own, "push", target=page)
    assert happened.evidence["digest now"] == own.registry.digest(page) != before
    changed = own.registry.put_manifest(page.repository, "page", raw + b"\n", media_type or "")
    undo(own)
    assert own.registry.digest(page) == changed
    own.registry.delete_manifest(page.repository, changed)
    own.registry.put_manifest(page.repository, "page", raw, media_type or "")
    # Some seconds later, the same forgery has the same digest.
    assert forge(own, page, "push").manifest.digest == happened.evidence["digest now"]

    # A push heals an altered blob, and the undo does no harm then.
    transfer.pull(own.engine, own.server, page)
    happened = attacks.start(own, "rest", target=page)
    assert damaged(own, page) == [happened.evidence["blob"]]
    transfer.push(own.engine, own.server, page)
    undo(own)
    assert damaged(own, page) == []


def test_the_engine_forgets_a_base_with_a_backdoor(own: Bench) -> None:
    base, honest = attacks.copy_base(own), own.base(SLIM).digest
    assert printed(own, base) == "0\n"
    happened = attacks.start(own, "base")
    assert marker("base") in printed(own, base)
    undo(own)
    assert (own.registry.digest(base), printed(own, base)) == (honest, "0\n")
    with pytest.raises(NotInRegistry):
        own.registry.manifest(base.repository, happened.evidence["digest now"])


def test_a_dishonest_mirror(own: Bench, page: Reference) -> None:
    honest = own.registry.digest(page)
    happened = attacks.start(own, "transit", target=page)
    seen = f"{happened.address}/{page.repository}"
    assert happened.evidence["pull through it"] == f"{seen}:page"
    mirror = container_name(own, "mirror")
    assert f"container {mirror}" in reset.things(own.engine, own.state)

    with pytest.raises(PullError):
        transfer.pull(own.engine, own.server, f"{seen}@{honest}")
    events = own.engine.client.api.pull(seen, tag=honest, stream=True, decode=True)
    assert re.search("verification failed|digest", "".join(e.get("error", "") for e in events))
    transfer.pull(own.engine, own.server, f"{seen}:page")
    assert marker("transit") in printed(own, f"{seen}:page")
    transfer.remove(own.engine, f"{seen}:page")
    assert re.search(rf"FORGED \w+ /v2/{page.repository}/manifests/page", mirror_log(own))
    # Other repositories come through as they are.
    through = replace(own.base(SLIM), registry=happened.address)
    assert Registry(happened.address).image(through).digest == own.base(SLIM).digest
    with pytest.raises(AttackError, match=mirror):
        attacks.start(own, "transit", target=page)

    undo(own)
    assert mirror_log(own) == ""
    with pytest.raises(NotInRegistry):
        own.registry.manifest(page.repository, happened.evidence["digest handed out"])


def test_what_one_can_do_in_a_container(
    own: Bench, page: Reference, feedback: QuietFeedback
) -> None:
    before = exposure(own, page).set_index("question")
    found = before[before["open"]]["answer"].to_dict()
    assert attacks.start(own, "run", target=page).evidence == found
    after = exposure(own, page, hardened=True).set_index("question")
    assert "--cap-drop ALL --security-opt no-new-privileges --user 10001" in feedback.commands[-1]
    assert before.loc["Who am I?", "answer"] == "root (uid 0)"
    assert "/etc" in str(before.loc["Where can I write?", "answer"])
    bring = "Can I bring a program, and run it?"
    assert before.loc[bring, "open"] and list(after.index[:5])[-1] == bring
    assert not after.loc[list(after.index[:5]), "open"].any()
    assert bool(after.loc["Is there a shell?", "open"])
    assert own.engine.client.containers.list(all=True, filters={"ancestor": str(page)}) == []
    with pytest.raises(AttackError, match="Python"):
        exposure(own, own.server.image)


KILLED = """
from labapp.attacks import attacks
from labapp.registry.client import Registry
from labapp.registry.server import RegistryServer

id, target, when = arguments
owner, name = (RegistryServer, "storage") if id == "rest" else (Registry, "put_manifest")
real = getattr(owner, name)

def hang(self, *args, **options):
    if when == "after":
        real(self, *args, **options)
    print("REACHED", flush=True)
    time.sleep(60)

setattr(owner, name, hang)
attacks.start(bench, id, target=target)
"""


@pytest.mark.parametrize(
    ("id", "when"),
    [("push", "after"), ("rest", "after"), ("transit", "before"), ("transit", "after")],
)
def test_an_attacker_that_dies_in_the_middle(
    own: Bench, page: Reference, id: str, when: str
) -> None:
    before = own.registry.digest(page)
    process = elsewhere.start(own, KILLED, id, str(page), when)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "REACHED\n"
        process.kill()
    assert len(Journal(own.state).changes()) == 1
    # Asked by whoever comes next, and once more: that changes nothing.
    undo(own)
    undo(own)
    assert own.registry.digest(page) == before
    assert damaged(own, page) == []
