"""The attacks on a real engine and registry: before, after, undone; also after a sudden death."""

from __future__ import annotations

import gzip
import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import elsewhere
import pytest

from labapp import feedback, reset
from labapp.attacks import attacks, mirror
from labapp.attacks.controls import exposure, gate
from labapp.attacks.forging import forge, marker
from labapp.attacks.journal import Journal
from labapp.bench import Bench
from labapp.errors import AttackError, NotInRegistry, PullError
from labapp.feedback import QuietFeedback
from labapp.inside import image
from labapp.journey import build as builds
from labapp.journey import transfer
from labapp.journey.bases import SLIM
from labapp.journey.run import run_once
from labapp.reference import Reference
from labapp.registry.client import Registry

QUIET = QuietFeedback()
PAGE = "FROM {base}\nRUN echo {text} > /page\n"


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    with feedback.using(QUIET):
        yield


@pytest.fixture(scope="module")
def own(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The bench with a work folder of these tests."""
    own = replace(bench, work=tmp_path_factory.mktemp("attacks"))
    yield own
    copy = attacks.copy_base(own)
    own.registry.delete_manifest(copy.repository, digest(own, copy))


@pytest.fixture(scope="module")
def page(own: Bench) -> Iterator[Reference]:
    """A small image in the registry, by tag."""
    reference = Reference(own.registry.address, "attacked/page", "1")
    folder = own.work / "page"
    folder.mkdir()
    build(own, folder, str(own.base(SLIM)), str(reference), uuid.uuid4().hex)
    transfer.push(own.engine, own.server, reference)
    yield reference
    transfer.remove(own.engine, reference)
    own.registry.delete_manifest("attacked/page", digest(own, reference))


@pytest.fixture
def fresh(own: Bench) -> Iterator[Reference]:
    """An image that was put together over HTTP: no engine and no build cache has seen its layer."""
    copy = attacks.copy_base(own)
    forged = forge(own, copy, "fresh", occasion=uuid.uuid4().hex)
    forged.upload(own.registry, "fresh")
    yield replace(copy, tag="fresh")
    transfer.remove(own.engine, replace(copy, tag="fresh"))
    own.registry.delete_manifest(copy.repository, forged.manifest.digest)


@pytest.fixture(autouse=True)
def undone(own: Bench) -> Iterator[None]:
    yield
    attacks.undo(own)
    assert Journal(own.state).changes() == []


def build(own: Bench, folder: Path, base: str, tag: str, text: str = "hello") -> None:
    (folder / "Dockerfile").write_text(PAGE.format(base=base, text=text))
    builds.build(own.engine, folder, tag=tag)


def digest(own: Bench, reference: Reference) -> str:
    return own.registry.resolve(reference.repository, str(reference.tag))


def printed(own: Bench, reference: object) -> str:
    """What a container prints that tells whether planted code runs in it."""
    return run_once(own.engine, str(reference), ["sh", "-c", "python3 -c 'print(0)' 2>&1"])


def damaged(own: Bench, reference: Reference) -> list[str]:
    manifest = own.registry.image(reference).manifest
    found = own.registry.damaged_blobs(reference.repository, manifest, contents=True)
    return [each.digest for each in found]


def test_a_deleted_secret_is_still_in_its_layer(own: Bench, tmp_path: Path) -> None:
    happened = attacks.start(own, "secret")
    held = image.read(own.registry, happened.target, folder=tmp_path)
    [found] = held.secrets.to_dict("records")
    assert (found["path"], found["visible"]) == ("/src/.env", False)
    layers = held.layers.set_index("number")["digest"]
    assert layers[found["layer"]] == happened.evidence["layer"]
    assert happened.box in QUIET.lines

    attacks.undo(own)
    assert not (own.work / "leak").exists()
    with pytest.raises(NotInRegistry):
        own.registry.resolve("team/leak", "1")
    assert own.engine.image(happened.target) is None


def test_a_base_with_a_backdoor(own: Bench, tmp_path: Path) -> None:
    base = attacks.copy_base(own)
    honest = digest(own, base)
    assert honest == own.base(SLIM).digest
    tags = own.registry.tags("base/python")
    made = f"{own.registry.address}/attacked/made:1"
    build(own, tmp_path, str(base), made)

    happened = attacks.start(own, "base")
    assert happened.evidence["digest now"] == digest(own, base) != honest
    build(own, tmp_path, str(base), made)
    assert marker("base") in printed(own, made)
    # The control: by digest, the same Dockerfile starts from what was meant.
    build(own, tmp_path, f"{base.registry}/{base.repository}@{honest}", made)
    assert printed(own, made) == "0\n"

    attacks.undo(own)
    assert digest(own, base) == honest
    build(own, tmp_path, str(base), made, text="anew")
    assert printed(own, made) == "0\n"
    transfer.remove(own.engine, made)
    assert own.registry.tags("base/python") == tags
    assert own.registry.resolve("base/python", SLIM.partition(":")[2]) == honest
    with pytest.raises(NotInRegistry):
        own.registry.manifest(base.repository, happened.evidence["digest now"])


@pytest.mark.parametrize("id", ["push", "moved"])
def test_a_tag_that_somebody_moves(own: Bench, page: Reference, id: str, tmp_path: Path) -> None:
    before = digest(own, page)
    pinned = page.pinned(before)
    attacks.start(own, id, target=page)
    for reference, is_honest in ((page, False), (pinned, True)):
        transfer.pull(own.engine, own.server, reference)
        assert (marker(id) not in printed(own, reference)) is is_honest
        file = tmp_path / "deployment.yaml"
        file.write_text(f"services:\n  web:\n    image: {reference}\n")
        assert gate(file, allowed=(), registry=own.registry) is is_honest

    attacks.undo(own)
    assert digest(own, page) == before
    # The engine had pulled the forged image under that name, and has forgotten it.
    transfer.pull(own.engine, own.server, page)
    assert marker(id) not in printed(own, page)


def test_a_tag_that_was_moved_again_stays_where_it_is(own: Bench, page: Reference) -> None:
    raw, media_type = own.registry.manifest_bytes(page.repository, digest(own, page))
    attacks.start(own, "push", target=page)
    changed = own.registry.put_manifest(page.repository, "1", raw + b"\n", media_type or "")
    attacks.undo(own)
    assert digest(own, page) == changed
    own.registry.put_manifest(page.repository, "1", raw, media_type or "")


def test_forged_images_are_the_same_each_time(own: Bench, page: Reference) -> None:
    first = forge(own, page, "push").manifest.digest
    time.sleep(1.1)
    assert forge(own, page, "push").manifest.digest == first


def test_an_altered_blob_is_refused(own: Bench, fresh: Reference) -> None:
    happened = attacks.start(own, "rest", target=fresh)
    assert damaged(own, fresh) == [happened.evidence["blob"]]
    with pytest.raises(PullError, match=happened.evidence["blob"]):
        transfer.pull(own.engine, own.server, fresh)
    attacks.undo(own)
    transfer.pull(own.engine, own.server, fresh)


def test_a_push_heals_an_altered_blob_and_the_undo_does_no_harm_then(
    own: Bench, page: Reference
) -> None:
    attacks.start(own, "rest", target=page)
    transfer.push(own.engine, own.server, page)
    attacks.undo(own)
    assert damaged(own, page) == []


def test_a_base_is_not_altered_even_if_the_engine_packed_it_anew(
    own: Bench, page: Reference
) -> None:
    held = own.registry.image(page)
    lowest, *_, highest = held.manifest.layers
    plain = gzip.decompress(own.registry.read_blob(page.repository, lowest.digest))
    packed, size = own.registry.upload_blob(page.repository, [gzip.compress(plain, 1)])
    manifest = json.loads(held.manifest.raw)
    manifest["layers"][0] |= {"digest": packed, "size": size}
    repacked = replace(page, tag="repacked")
    own.registry.put_manifest(
        page.repository, "repacked", json.dumps(manifest).encode(), held.manifest.media_type
    )
    assert attacks.start(own, "rest", target=repacked).evidence["blob"] == highest.digest
    attacks.undo(own)
    own.registry.delete_manifest(page.repository, digest(own, repacked))
    with pytest.raises(AttackError, match="team/base:1"):
        attacks.start(own, "rest", target=attacks.copy_base(own))


def test_a_dishonest_mirror(own: Bench, fresh: Reference) -> None:
    honest = digest(own, fresh)
    happened = attacks.start(own, "transit", target=fresh)
    seen = f"{happened.address}/{fresh.repository}"
    assert happened.evidence["pull through it"] == f"{seen}:fresh"

    with pytest.raises(PullError):
        transfer.pull(own.engine, own.server, f"{seen}@{honest}")
    events = own.engine.client.api.pull(seen, tag=honest, stream=True, decode=True)
    assert re.search("verification failed|digest", "".join(e.get("error", "") for e in events))
    transfer.pull(own.engine, own.server, f"{seen}:fresh")
    assert marker("transit") in printed(own, f"{seen}:fresh")
    transfer.remove(own.engine, f"{seen}:fresh")
    assert re.search(rf"FORGED \w+ /v2/{fresh.repository}/manifests/fresh", mirror.log(own))
    # Other repositories come through as they are.
    through = replace(own.base(SLIM), registry=happened.address)
    assert Registry(happened.address).image(through).digest == own.base(SLIM).digest
    with pytest.raises(AttackError, match=mirror.name(own)):
        attacks.start(own, "transit", target=fresh)

    attacks.undo(own)
    assert mirror.log(own) == ""
    with pytest.raises(NotInRegistry):
        own.registry.manifest(fresh.repository, happened.evidence["digest handed out"])


def test_what_one_can_do_in_a_container(own: Bench, page: Reference) -> None:
    before = exposure(own, page).set_index("question")
    found = before[before["open"]]["answer"].to_dict()
    assert attacks.start(own, "run", target=page).evidence == found
    after = exposure(own, page, hardened=True).set_index("question")
    assert "--cap-drop ALL --security-opt no-new-privileges --user 10001" in QUIET.commands[-1]
    assert before.loc["Who am I?", "answer"] == "root (uid 0)"
    assert "/etc" in str(before.loc["Where can I write?", "answer"])
    assert not after.loc[list(after.index[:4]), "open"].any()
    assert bool(after.loc["Is there a shell?", "open"])
    assert own.engine.client.containers.list(all=True, filters={"ancestor": str(page)}) == []
    with pytest.raises(AttackError, match="Python"):
        exposure(own, own.server.image)


def test_containers_of_others_are_refused(own: Bench, page: Reference) -> None:
    labels = {"labapp.lab": "somebody"}
    create = own.engine.client.containers.create
    foreign = create(str(page), ["true"], name=mirror.name(own), labels=labels)
    try:
        with pytest.raises(AttackError, match=mirror.name(own)):
            attacks.start(own, "transit", target=page)
        foreign.reload()
    finally:
        foreign.remove()


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


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("id", ["push", "rest", "transit"])
def test_an_attacker_that_dies_in_the_middle(
    own: Bench, page: Reference, id: str, when: str
) -> None:
    before = digest(own, page)
    process = elsewhere.start(own, KILLED, id, str(page), when)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "REACHED\n"
        process.kill()
    assert len(Journal(own.state).changes()) == 1
    # Asked by whoever comes next, and once more: that changes nothing.
    attacks.undo(own)
    attacks.undo(own)
    assert digest(own, page) == before
    assert damaged(own, page) == []


def test_what_can_not_be_undone_now_stays_in_the_journal(own: Bench, page: Reference) -> None:
    before = digest(own, page)
    attacks.start(own, "push", target=page)
    with pytest.raises(AttackError, match="attacked/page:1"):
        attacks.undo(replace(own, registry=Registry("localhost:1")))
    attacks.undo(own)
    assert digest(own, page) == before


def test_reset_takes_the_traces_of_attacks_along(own: Bench, page: Reference) -> None:
    file = own.work / "wheel.whl"
    file.write_bytes(b"honest")
    Journal(own.state).change_file("dependency", file, b"planted")
    attacks.start(own, "transit", target=page)
    listed = [str(thing) for thing in reset.things(own.engine, own.state)]
    assert f"container {mirror.name(own)}" in listed
    # Only what is asked for here: a whole reset would take the registry of all tests with it.
    assert reset.carry_out(reset.Plan(own.state, own.engine, (), ())) == []
    assert file.read_bytes() == b"honest"
