"""The attacks on a real engine and registry: before, after, undone; also after a sudden death."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker.errors
import elsewhere
import pytest

from labapp import attacks, contents, deployments, images, removal
from labapp.attacks import mirror
from labapp.attacks.forging import NOTE, marker
from labapp.attacks.journal import Change, Journal
from labapp.bench import Bench
from labapp.errors import AttackError, DeploymentError, NotInRegistry, PullError
from labapp.exercises import evidence
from labapp.feedback import QuietFeedback
from labapp.images import builds
from labapp.private.registry import PrivateRegistry
from labapp.reference import Reference
from labapp.registry import Registry
from labapp.registry.copies import put_image

QUIET = QuietFeedback()
PAGE = "FROM {base}\nRUN echo {text} > /page\nCMD {cmd}\n"
CMD = '["python3", "-m", "http.server", "8000"]'


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
    # Another text each time: a build's cache must not have a layer that is altered here.
    build(own, folder, str(own.base("python:3.13-slim")), str(reference), uuid.uuid4().hex)
    images.push(own.engine, own.server, reference, feedback=QUIET)
    yield reference
    images.remove(own.engine, reference)
    own.registry.delete_manifest("attacked/page", digest(own, reference))


@pytest.fixture(autouse=True)
def undone(own: Bench) -> Iterator[None]:
    yield
    attacks.undo(own, feedback=QUIET)
    assert Journal(own.state).changes() == []


def build(own: Bench, folder: Path, base: str, tag: str, text: str = "hello") -> None:
    (folder / "Dockerfile").write_text(PAGE.format(base=base, text=text, cmd=CMD))
    builds.build(own.engine, folder, tag=tag, labels=own.state.labels, feedback=QUIET)


def digest(own: Bench, reference: Reference) -> str:
    return own.registry.resolve(reference.repository, str(reference.tag))


def printed(own: Bench, reference: object) -> str:
    """What a container prints that tells whether planted code runs in it."""
    container = own.engine.client.containers.run(
        str(reference), ["python3", "-c", "print('runs')"], detach=True, labels=own.state.labels
    )
    try:
        container.wait()
        return str(container.logs().decode())
    finally:
        container.remove(force=True)


def refused(own: Bench, reference: str) -> str:
    """What the engine itself says when it refuses to pull."""
    name, _, wanted = reference.partition("@")
    events = own.engine.client.api.pull(name, tag=wanted, stream=True, decode=True)
    return "".join(str(event["error"]) for event in events if "error" in event)


def test_a_deleted_secret_is_still_in_its_layer(own: Bench, tmp_path: Path) -> None:
    happened = attacks.start(own, "secret", feedback=QUIET)
    held = contents.read(own.registry, happened.target, folder=tmp_path, feedback=QUIET)
    [found] = held.secrets.to_dict("records")
    assert (found["path"], found["visible"]) == ("/src/.env", False)
    layers = held.layers.set_index("number")["digest"]
    assert layers[found["layer"]] == happened.evidence["layer"]
    assert "/src/.env" not in set(held.files["path"])
    assert any("ATTACK · source → build" in line for line in QUIET.lines)

    attacks.undo(own, feedback=QUIET)
    assert not (own.work / "leak").exists()
    with pytest.raises(NotInRegistry):
        own.registry.resolve("team/leak", "1")
    with pytest.raises(docker.errors.ImageNotFound):
        own.engine.client.images.get(happened.target)


def test_a_base_with_a_backdoor(own: Bench, tmp_path: Path) -> None:
    base = attacks.copy_base(own)
    honest = digest(own, base)
    assert honest == own.base("python:3.13-slim").digest
    tags = own.registry.tags("base/python")
    made = f"{own.registry.address}/attacked/made:1"
    build(own, tmp_path, str(base), made)
    assert printed(own, made) == "runs\n"

    happened = attacks.start(own, "base", feedback=QUIET)
    assert happened.evidence["digest now"] == digest(own, base) != honest
    build(own, tmp_path, str(base), made)
    assert marker("base") in printed(own, made)
    # The control: by digest, the same Dockerfile starts from what was meant.
    build(own, tmp_path, f"{base.registry}/{base.repository}@{honest}", made)
    assert printed(own, made) == "runs\n"

    attacks.undo(own, feedback=QUIET)
    assert digest(own, base) == honest
    build(own, tmp_path, str(base), made, text="anew")
    assert printed(own, made) == "runs\n"
    images.remove(own.engine, made)
    assert own.registry.tags("base/python") == tags
    assert own.registry.resolve("base/python", "3.13-slim") == honest
    with pytest.raises(NotInRegistry):
        own.registry.manifest(base.repository, happened.evidence["digest now"])


def test_a_swapped_wheel_and_hashes_that_refuse_it(own: Bench, tmp_path: Path) -> None:
    app = own.work / "app"
    (app / "wheels").mkdir(parents=True)
    [wheel] = (own.application / "wheels").glob("blinker-*.whl")
    shutil.copy(wheel, app / "wheels")
    version = wheel.name.split("-")[1]
    (app / "requirements.txt").write_text(f"blinker=={version}\n")
    (app / "hashed.txt").write_text(
        attacks.hashed_requirements(app / "requirements.txt", app / "wheels")
    )

    def install(file: str, *options: str) -> subprocess.CompletedProcess[str]:
        target = tmp_path / file
        shutil.rmtree(target, ignore_errors=True)
        return subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
                *("--disable-pip-version-check", "--no-cache-dir", "--target", str(target)),
                *("--find-links", str(app / "wheels"), "-r", str(app / file), *options),
            ],
            capture_output=True,
            text=True,
        )

    happened = attacks.start(own, "dependency", feedback=QUIET)
    assert happened.evidence["wheel now"] != happened.evidence["wheel before"]
    assert install("requirements.txt").returncode == 0
    planted = (tmp_path / "requirements.txt" / "blinker" / "__init__.py").read_text()
    assert marker("dependency") in planted
    assert "DO NOT MATCH THE HASHES" in install("hashed.txt", "--require-hashes").stderr

    attacks.undo(own, feedback=QUIET)
    assert (app / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()
    assert install("hashed.txt", "--require-hashes").returncode == 0


@pytest.mark.parametrize("id", ["push", "moved"])
def test_a_tag_that_somebody_moves(own: Bench, page: Reference, id: str, tmp_path: Path) -> None:
    before = digest(own, page)
    file = tmp_path / "deployment.yaml"
    file.write_text(f"services:\n  web:\n    image: {page}\n    ports: ['127.0.0.1::8000']\n")
    pinned = tmp_path / "pinned.yaml"
    pinned.write_text(file.read_text().replace(str(page), str(page.pinned(before))))
    attacks.start(own, id, target=page, feedback=QUIET)

    def logs(deployed: Path) -> str:
        return deployments.deploy(
            own.engine, own.server, deployed, project="attacked", state=own.state, feedback=QUIET
        ).logs("web")

    assert marker(id) in logs(file)
    assert marker(id) not in logs(pinned)
    with pytest.raises(DeploymentError, match=r"line 3.*'web'.*not pinned"):
        attacks.gate(file)
    attacks.gate(pinned, registry=own.registry)
    deployments.remove(own.engine, own.state, project="attacked")

    attacks.undo(own, feedback=QUIET)
    assert digest(own, page) == before
    # The engine had pulled the forged image under that name, and has forgotten it.
    images.pull(own.engine, own.server, page, feedback=QUIET)
    assert marker(id) not in printed(own, page)


def test_a_tag_that_was_moved_again_stays_where_it_is(own: Bench, page: Reference) -> None:
    before = digest(own, page)
    attacks.start(own, "push", target=page, feedback=QUIET)
    raw, media_type = own.registry.manifest_bytes(page.repository, before)
    changed = own.registry.put_manifest(page.repository, "1", raw + b"\n", media_type or "")
    told = attacks.undo(own, feedback=QUIET)
    assert "left" in told[0]
    assert digest(own, page) == changed
    own.registry.put_manifest(page.repository, "1", raw, media_type or "")


def test_an_altered_blob_is_refused(own: Bench, page: Reference) -> None:
    happened = attacks.start(own, "rest", target=page, feedback=QUIET)
    images.remove(own.engine, page)
    with pytest.raises(PullError, match=f"blob {happened.evidence['blob']} has been altered"):
        images.pull(own.engine, own.server, page, feedback=QUIET)
    attacks.undo(own, feedback=QUIET)
    images.pull(own.engine, own.server, page, feedback=QUIET)

    # A push over the damage heals it; the undo does no harm then.
    attacks.start(own, "rest", target=page, feedback=QUIET)
    images.push(own.engine, own.server, page, feedback=QUIET)
    attacks.undo(own, feedback=QUIET)
    image = own.registry.image(page)
    assert own.registry.damaged_blobs(page.repository, image.manifest, contents=True) == []


def test_a_base_that_the_engine_packed_anew_is_not_altered_either(
    own: Bench, page: Reference
) -> None:
    held = own.registry.image(page)
    lowest, *_, highest = held.manifest.layers
    packed = gzip.compress(
        gzip.decompress(own.registry.read_blob(page.repository, lowest.digest)), 1
    )
    digest, size = own.registry.upload_blob(page.repository, [packed])
    manifest = json.loads(held.manifest.raw)
    manifest["layers"][0] |= {"digest": digest, "size": size}
    raw = json.dumps(manifest).encode()
    repacked = replace(page, tag="repacked")
    own.registry.put_manifest(page.repository, "repacked", raw, held.manifest.media_type)
    slim = own.registry.image(own.base("python:3.13-slim"))
    assert evidence.stands_on(own.registry.image(repacked), slim)
    assert len(list(evidence.layers(own, own.registry.image(repacked)))) == 1
    happened = attacks.start(own, "rest", target=repacked, feedback=QUIET)
    assert happened.evidence["blob"] == highest.digest
    attacks.undo(own, feedback=QUIET)
    own.registry.delete_manifest(page.repository, own.registry.resolve(page.repository, "repacked"))


def test_the_labs_own_base_images_are_not_altered(own: Bench) -> None:
    base = attacks.copy_base(own)
    with pytest.raises(AttackError, match="base images, which stay as they are"):
        attacks.start(own, "rest", target=base, feedback=QUIET)


def test_a_dishonest_mirror(own: Bench, tmp_path: Path) -> None:
    # Never pulled before: an engine that knows a digest already does not ask for it again.
    name = Reference(own.registry.address, "attacked/fresh", "1")
    build(own, tmp_path, str(own.base("python:3.13-slim")), str(name), text="fresh")
    honest = images.push(own.engine, own.server, name, feedback=QUIET).digest
    images.remove(own.engine, name)
    happened = attacks.start(own, "transit", target=name, feedback=QUIET)
    seen = f"{happened.address}/attacked/fresh"
    assert happened.evidence["pull through it"] == f"{seen}:1"

    with pytest.raises(PullError, match="do not match the digest"):
        images.pull(own.engine, own.server, f"{seen}@{honest}", feedback=QUIET)
    assert re.search("verification failed|digest", refused(own, f"{seen}@{honest}"))
    images.pull(own.engine, own.server, f"{seen}:1", feedback=QUIET)
    assert marker("transit") in printed(own, f"{seen}:1")
    images.remove(own.engine, f"{seen}:1")
    assert "FORGED GET /v2/attacked/fresh/manifests/1" in mirror.log(own)
    # Other repositories come through as they are.
    other = Registry(happened.address)
    assert other.resolve("base/python", "3.13-slim") == own.base("python:3.13-slim").digest
    with pytest.raises(AttackError, match="one runs already"):
        attacks.start(own, "transit", target=name, feedback=QUIET)

    attacks.undo(own, feedback=QUIET)
    assert mirror.log(own) == ""
    with pytest.raises(NotInRegistry):
        own.registry.manifest(name.repository, happened.evidence["it hands out"])
    own.registry.delete_manifest(name.repository, honest)


def test_what_one_can_do_in_a_container(own: Bench, page: Reference) -> None:
    happened = attacks.start(own, "run", target=page, feedback=QUIET)
    assert happened.table is not None
    before = happened.table.set_index("question")
    after = attacks.exposure(own, page, hardened=True, feedback=QUIET).set_index("question")
    assert before.loc["Who am I?", "answer"] == "root (uid 0)"
    assert "/etc" in str(before.loc["Where can I write?", "answer"])
    assert not after.loc[list(after.index[:4]), "open"].any()
    assert bool(after.loc["Is there a shell?", "open"])
    label = f"labapp.lab={own.state.lab_id}"
    names = [
        each.name for each in own.engine.client.containers.list(all=True, filters={"label": label})
    ]
    assert [name for name in names if str(name).startswith("labapp-exposed")] == []


def test_other_registries_and_containers_are_refused(own: Bench, page: Reference) -> None:
    elsewhere = Registry("localhost:1")
    with pytest.raises(AttackError, match="no container of this lab serves 'localhost:1'"):
        attacks.start(
            own, "push", target="localhost:1/shop/web:1", registry=elsewhere, feedback=QUIET
        )
    with pytest.raises(AttackError, match="only 'push' goes to another registry"):
        attacks.start(own, "moved", target=page, registry=elsewhere, feedback=QUIET)
    with pytest.raises(AttackError, match="which image"):
        attacks.start(own, "push", feedback=QUIET)
    foreign = own.engine.client.containers.create(
        str(page), ["true"], name=mirror.name(own), labels={"labapp.lab": "somebody"}
    )
    try:
        with pytest.raises(AttackError, match="this lab did not start it"):
            attacks.start(own, "transit", target=page, feedback=QUIET)
        foreign.reload()
    finally:
        foreign.remove()


@pytest.fixture(scope="module")
def private(own: Bench, page: Reference) -> Iterator[PrivateRegistry]:
    """The registry with accounts: ann may push, bob may pull, mallory does not exist."""
    private = PrivateRegistry(engine=own.engine, state=own.state, feedback=QUIET)
    try:
        private.start()
        private.accounts.add("ann", "ann", rights={"shop/*": ("pull", "push")})
        private.accounts.add("bob", "bob", rights={"shop/*": ("pull",)})
        ann, image = private.registry("ann", "ann"), own.registry.image(page)
        for blob in image.manifest.blobs:
            ann.upload_blob("shop/web", own.registry.open_blob(page.repository, blob.digest))
        put_image(ann, "shop/web", "1", image.manifest)
        yield private
    finally:
        private.remove()


class TestRegistryWithAccounts:
    """The control of the push: who has no right is refused."""

    @pytest.mark.parametrize("account", ["bob", "mallory", ""])
    def test_who_has_no_right_is_refused(
        self, own: Bench, private: PrivateRegistry, account: str
    ) -> None:
        before = private.registry("bob", "bob").resolve("shop/web", "1")
        happened = attacks.start(
            own,
            "push",
            target=f"{private.address}/shop/web:1",
            registry=private.registry(account, account),
            feedback=QUIET,
        )
        assert happened.refused
        assert "ATTACK REFUSED · push" in happened.box
        assert private.registry("bob", "bob").resolve("shop/web", "1") == before
        assert Journal(own.state).changes() == []

    def test_who_has_the_right_is_not(self, own: Bench, private: PrivateRegistry) -> None:
        ann = private.registry("ann", "ann")
        before = ann.resolve("shop/web", "1")
        target = f"{private.address}/shop/web:1"
        happened = attacks.start(own, "push", target=target, registry=ann, feedback=QUIET)
        assert not happened.refused
        assert ann.resolve("shop/web", "1") == happened.evidence["digest now"]
        with pytest.raises(AttackError, match="wants an account"):
            attacks.undo(own, feedback=QUIET)
        attacks.undo(own, registry=ann, feedback=QUIET)
        assert ann.resolve("shop/web", "1") == before

    def test_what_is_gone_with_its_registry_needs_no_undo(self, own: Bench) -> None:
        target = "192.0.2.1:20000/shop/web:1"
        data = {"before": "x", "after": "y", "registry": "192.0.2.1:20000"}
        Journal(own.state).note(Change("push", "tag", target, data))
        assert "gone with its registry" in attacks.undo(own, feedback=QUIET)[0]
        assert Journal(own.state).changes() == []


KILLED = """
from labapp import attacks
from labapp.attacks import changes
from labapp.registry import Registry

id, target, when = arguments

def hang():
    print("REACHED", flush=True)
    time.sleep(60)

def around(owner, name):
    real = getattr(owner, name)
    def replaced(*args, **options):
        if when == "before":
            hang()
        real(*args, **options)
        hang()
    setattr(owner, name, replaced)

if id == "rest":
    around(changes, "_write_byte")
else:
    around(Registry, "put_manifest")
attacks.start(bench, id, target=target, feedback=QuietFeedback())
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
    attacks.undo(own, feedback=QUIET)
    assert attacks.undo(own, feedback=QUIET) == []
    assert digest(own, page) == before
    image = own.registry.image(page)
    assert own.registry.damaged_blobs(page.repository, image.manifest, contents=True) == []


def test_what_can_not_be_undone_now_stays_in_the_journal(own: Bench, page: Reference) -> None:
    before = digest(own, page)
    attacks.start(own, "push", target=page, feedback=QUIET)
    gone = replace(own, registry=Registry("localhost:1"))
    with pytest.raises(AttackError, match=r"(?s)could not be put back.*attacked/page:1'.*reset"):
        attacks.undo(gone, feedback=QUIET)
    attacks.undo(own, feedback=QUIET)
    assert digest(own, page) == before


def test_reset_takes_the_traces_of_attacks_along(own: Bench, page: Reference) -> None:
    file = own.work / "elsewhere" / "wheel.whl"
    file.parent.mkdir()
    file.write_bytes(b"honest")
    Journal(own.state).change_file("dependency", file, b"planted")
    attacks.start(own, "transit", target=page, feedback=QUIET)
    listed = [str(thing) for thing in removal.things(own.engine, own.state)]
    assert f"container {mirror.name(own)}" in listed
    # Only what is asked for here: a whole reset would take the registry of all tests with it.
    plan = removal.Plan(own.state, own.engine, (), ())
    assert removal.carry_out(plan, feedback=QUIET) == []
    assert file.read_bytes() == b"honest"


def test_forged_images_are_the_same_each_time(own: Bench, page: Reference) -> None:
    def once() -> dict[str, str]:
        happened = attacks.start(own, "push", target=page, feedback=QUIET)
        attacks.undo(own, feedback=QUIET)
        return dict(happened.evidence)

    first = once()
    time.sleep(1.1)
    assert once() == first
    with contextlib.suppress(NotInRegistry):
        own.registry.manifest(page.repository, first["digest now"])
        pytest.fail("the forged manifest is still there")
    assert NOTE.startswith("opt/")
