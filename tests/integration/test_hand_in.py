"""Handing in for real: to a registry with accounts and TLS by an authority of its own, and back."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import trustme
from made_images import put, put_index
from registries import stored_at

from labapp import cli
from labapp.course.exercises import find_exercise
from labapp.course.hand_in import Place, pack
from labapp.course.receipts import Attempt, Receipts
from labapp.course.report import report
from labapp.errors import RegistryUnreachable
from labapp.feedback import using
from labapp.machine.engine import Engine
from labapp.machine.ports import wait_until
from labapp.private.registry import PrivateRegistry
from labapp.registry.client import Registry
from labapp.registry.http import Credentials
from labapp.registry.log import parse_log
from labapp.registry.manifests import Index, digest_of
from labapp.registry.server import RegistryServer
from labapp.state import State

SECRETS = {"ada": "ada's secret", "bob": "bob's secret"}


@dataclass(frozen=True)
class Room:
    """The registries of ada's lab and of her school, where bob may only read; and her folder."""

    lab: RegistryServer
    school: PrivateRegistry
    folder: Path

    @property
    def held(self) -> Registry:
        return self.school.registry("ada", SECRETS["ada"])

    def run(self, *argv: str, ca: str = "school.pem", who: str = "ada", secret: str = "") -> int:
        """Run a command as somebody who is logged in, as docker keeps it."""
        auth = Credentials(who, secret or SECRETS[who]).basic.removeprefix("Basic ")
        config = json.dumps({"auths": {self.school.address: {"auth": auth}}})
        (self.folder / "config.json").write_text(config, "utf-8")
        return cli.main([*argv, "--ca", str(self.folder / ca)])

    def passed(self, name: str, **images: str) -> Receipts:
        """Somebody's receipts, for an image each, at the address that it had then."""
        receipts = Receipts(State.open(self.folder / name))
        receipts.rename("ada lovelace")
        for exercise, image in images.items():
            receipts.note(exercise, Attempt(tries=1), {"image": f"localhost:1/{image}", "at": "12"})
        return receipts

    def image(self, name: str, *layers: bytes) -> str:
        """Store an image with a file in each layer; return it as receipts name it."""
        files = [{"file": layer} for layer in layers]
        return f"{name}@{put(self.lab.registry(), name, '', files)['digest']}"

    def sent(self, since: datetime) -> list[str]:
        """What the school's registry took: the digests of blobs, and the tags of manifests."""
        mark = digest_of(os.urandom(16))
        with contextlib.suppress(RegistryUnreachable):  # the log is whole where it has this
            self.held.blob_size("class/mark", mark)

        def log() -> pd.DataFrame:
            return parse_log(self.school.server.logs())

        wait_until(lambda: mark in set(log()["digest"]), seconds=3, every=0.1)
        puts = log().query("time >= @since and method == 'PUT' and status == 201")
        return [row.digest or row.path.rpartition("/")[2] for row in puts.itertuples()]


@pytest.fixture(scope="module")
def whole(
    engine: Engine, server: RegistryServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Room]:
    folder = tmp_path_factory.mktemp("room")
    state = State.open(folder / "ada")
    lab = RegistryServer(engine=engine, state=state)
    school = PrivateRegistry(engine=engine, state=state)
    lab.start(image=server.image)
    school.start()
    for name, rights in (("ada", ("pull", "push")), ("bob", ("pull",))):
        school.accounts.add(name, SECRETS[name], rights={"class/*": rights})
    (folder / "school.pem").write_bytes(school.authority.read_bytes())
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    yield Room(lab, school, folder)
    school.stop()
    school.server.remove()
    lab.remove()


@pytest.fixture
def room(whole: Room, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """The same, with ada at a terminal."""
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.setenv("LABAPP_STATE", str(whole.folder / "ada"))
    monkeypatch.setenv("DOCKER_CONFIG", str(whole.folder))
    with using(None):
        yield whole


def test_what_receipts_name_arrives_byte_for_byte_and_nothing_else(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    registry, held = room.lab.registry(), room.held
    web, leaky = (room.image("shop/web", b"base", text) for text in (b"web", b"pass=hunter2"))
    room.image("shop/private", b"private")
    entries = [put(registry, "shop/both", "", [{"file": name}]) for name in (b"amd64", b"arm64")]
    kind = "application/vnd.in-toto+json"
    entries.append(put(registry, "shop/both", "", [{"file": b"attested"}], layer_type=kind))
    both = f"shop/both@{put_index(registry, 'shop/both', '1', entries)}"
    receipts = room.passed("ada", **{"04-small": web, "03-pin": both})
    place = f"{room.school.address}/class/ada"

    assert room.run("hand-in", place, "--yes") == 0
    told = capsys.readouterr().out
    assert told.index("ada lovelace") < told.index("2 images") < told.index("Handing in at")
    for fact in (web[:24], "04-small", both[:25], "03-pin", "shop/private"):
        assert fact in told
    assert SECRETS["ada"] not in told and leaky[:24] not in told
    tags = held.tags("class/ada")
    digests = {web[9:], both[10:], *(each["digest"] for each in entries)}
    assert {f"sha256:{tag}" for tag in tags if not tag.startswith("receipts-")} == digests
    for digest in digests:
        part, name = held.manifest("class/ada", digest), web[:8] if digest in web else both[:9]
        assert part.raw == registry.manifest_bytes(name, digest)[0]
        if not isinstance(part, Index):
            assert held.damaged_blobs("class/ada", part, contents=True) == []
    assert room.run("inspect", f"{place}@{web[9:]}", "--cves", "none", who="bob") == 0

    # Nothing is new; then another exercise is passed, by an image that is there.
    began = datetime.now(UTC)
    assert room.run("hand-in", place, "--yes") == 0
    assert room.sent(began) == []
    receipts.note("03-from", Attempt(tries=1), {"base": f"localhost:1/{web}"})
    assert room.run("hand-in", place, "--yes") == 0
    assert len(room.sent(began)) == 2 and held.tags("class/ada") == tags

    # The instructor needs no files, and may have some.
    receipts.save(room.folder / "files" / "ada.json")
    for files in [], [str(room.folder / "files")]:
        capsys.readouterr()
        assert room.run("report", "--registry", place, *files, who="bob") == 0
        told = capsys.readouterr().out
        # Verified is what is named as its exercise wants it.
        assert re.search(r"ada lovelace +3 of 25 +1 +2 ", told)
    # This registry does not tell what is below.
    assert room.run("report", "--registry", f"{room.school.address}/class", who="bob") == 1
    assert "nothing below" in capsys.readouterr().out


def test_what_the_lab_lost_is_named_and_the_rest_goes(room: Room) -> None:
    registry, ids = room.lab.registry(), ("00-tag", "00-run", "04-small")
    gone, altered, whole = (room.image(find_exercise(id).evidence, id.encode()) for id in ids)
    registry.delete_manifest(*gone.split("@"))
    (layer,) = registry.image(f"{registry.address}/{altered}").manifest.layers
    room.lab.storage(["sh", "-c", f"printf x >> {stored_at(layer.digest)}"])
    receipts = room.passed("lost", **dict(zip(ids, (gone, altered, whole), strict=True)))
    place = Place(room.held, "class/lost")
    parcel = pack(receipts, registry, place)
    parcel.send()
    for line, facts in zip(
        parcel.lost.values(), (("00-tag", gone), ("00-run", layer.digest)), strict=True
    ):
        assert all(fact in line for fact in facts)
    (row,) = report(place, ids).learners.to_dict("records")
    assert (row["passed"], row["images"], row["verified"]) == (3, 3, 1)


@pytest.mark.parametrize(
    ("command", "wrong", "facts"),
    [
        ("hand-in", {"ca": "other.pem"}, ["unable to get local issuer", "--ca"]),
        ("report --registry", {"ca": "other.pem"}, ["unable to get local issuer", "--ca"]),
        ("hand-in", {"secret": "a wrong secret"}, ["'ada'", "docker login"]),
        ("hand-in", {"who": "bob"}, ["'bob'", "right"]),
    ],
)
def test_who_is_not_trusted_or_not_let_in(
    room: Room,
    capsys: pytest.CaptureFixture[str],
    command: str,
    wrong: dict[str, Any],
    facts: list[str],
) -> None:
    yes = ["--yes"] if command == "hand-in" else []
    address = room.school.address
    assert room.run(*command.split(), f"{address}/class/no", *yes, **wrong) == 1
    told = capsys.readouterr()
    assert all(fact in told.err for fact in (address, *facts))
    assert "secret" not in told.out + told.err


def test_learners_of_one_name_in_one_repository_or_each_in_their_own(room: Room) -> None:
    registry, exercise = room.lab.registry(), "00-tag"
    for name, repository in (("one", "class"), ("two", "class"), ("three", "class/three")):
        receipts = room.passed(name, **{exercise: room.image("hello/web", name.encode())})
        pack(receipts, registry, Place(registry, repository)).send()
    rows = report(Place(registry, "class"), [exercise]).learners
    names = ["ada lovelace", "ada lovelace (2)", "ada lovelace (3)"]
    assert list(rows["learner"]) == names
    assert list(rows["verified"]) == list(rows["images"]) == [1, 1, 1]


def test_a_registry_killed_in_mid_push_gets_the_rest_the_next_time(
    room: Room, engine: Engine
) -> None:
    server = room.school.server

    class Killing(Registry):
        """The lab's registry; in the middle of a large layer, the school's ends."""

        def open_blob(self, *about: str, size: int | None = None) -> Generator[bytes]:
            count = 0
            for chunk in super().open_blob(*about, size=size):
                yield chunk
                count += len(chunk)
                if count > 9_000_000 and server.is_running():
                    engine.client.api.kill(server.name)

    place = Place(room.held, "class/cut")
    image = room.image("hello/web", b"small", os.urandom(12_000_000))
    receipts, began = room.passed("cut", **{"00-tag": image}), datetime.now(UTC)
    with pytest.raises(RegistryUnreachable, match=room.school.address):
        pack(receipts, Killing(room.lab.address), place).send()
    before = room.sent(began)
    room.school.start()
    began = datetime.now(UTC)
    pack(receipts, room.lab.registry(), place).send()
    after = room.sent(began)
    # Config and small layer; then the large one, its manifest, and three for the receipts.
    assert (len(before), len(after)) == (2, 5) and not {*before} & {*after}
    assert list(report(place, ["00-tag"]).learners["verified"]) == [1]
