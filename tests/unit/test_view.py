"""The live view: the page, what a learner's lab posts, questions, and a class's signatures."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from classroom import NOW, ago, learner, room
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from registries import Reply, Seen, Server, serving, told

from labapp import cli, feedback
from labapp.course import post, signatures
from labapp.course.exercises import Coach, all_exercises
from labapp.course.receipts import (
    LONGEST,
    Attempt,
    Posted,
    Question,
    Receipts,
    Record,
    parse,
)
from labapp.course.view import AWAY, QUIET, TRIES, page, rows
from labapp.errors import StateError
from labapp.feedback import QuietFeedback, using
from labapp.state import State

IDS = list(all_exercises())
HERE = Posted(where="00-run", last=ago(1), since=ago(1))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receipts]:
    """A learner of a class, of whose failures nothing has been told yet."""
    monkeypatch.setenv("LABAPP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "of-ada")
    monkeypatch.delenv("LABAPP_CLASS", raising=False)
    post._told.clear()
    yield Receipts(State.open())


# ---------------------------------------------------------------- the page

STATES = {
    "begins": (learner("a", last=1), "here", ""),
    "has tried": (learner("a", attempts={"00-run": Attempt(TRIES - 1)}), "here", "00-run"),
    "tried often": (learner("a", attempts={"00-run": Attempt(TRIES)}), "stuck", "00-run"),
    "often, elsewhere": (
        learner("a", attempts={"00-tag": Attempt(TRIES)}, posted=HERE), "here", "00-run"
    ),
    "opened a chapter": (
        learner("a", "01-cache", last=1, posted=replace(HERE, where="01")), "here", "01-context"
    ),
    "long without a receipt": (learner("a", "00-tag", last=QUIET), "stuck", "00-tag"),
    "back after a night": (learner("a", "00-tag", last=900, posted=HERE), "here", "00-run"),
    "gone": (learner("a", "00-tag", last=AWAY), "away", "00-tag"),
    "asks": (learner("a", last=AWAY, question=Question("?", ago(3))), "asks", ""),
    "was seen": (
        learner("a", last=1, question=Question("?", "x"), posted=replace(HERE, seen="x")),
        "here", "00-run",
    ),
    "done": (learner("a", *IDS, last=900), "done", IDS[-1]),
    "times that are none": (
        replace(learner("a"), begun="yesterday", posted=replace(HERE, last="0000", since="9")),
        "here", "00-run",
    ),
    "a clock ahead, without a zone": (
        replace(learner("a"), begun="2999-01-01T00:00:00"), "here", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "state", "where"), STATES.values(), ids=STATES)
def test_who_is_where_and_who_is_stuck(record: Record, state: str, where: str) -> None:
    (row,) = rows([record], IDS, NOW)
    assert (row.state, row.where) == (state, where)
    here = re.findall(r'class="cell [^"]* at" title="(.+?):', page([record], NOW))
    assert here[: bool(where)] == [where] * bool(where)


def test_learners_stand_by_name_and_a_number_tells_nothing_of_it() -> None:
    there = [("Zoe", 50), ("Émile", 40), ("ada", 60), ("Fay", 5)]
    records = [learner(name, last=last) for name, last in there]
    found = [(row.record.learner, row.number) for row in rows(records, IDS, NOW)]
    assert found == [("ada", 1), ("Émile", 3), ("Fay", 4), ("Zoe", 2)]
    # Who comes later changes no number.
    more = rows([*records, learner("Bea", last=1)], IDS, NOW)
    assert {(row.record.learner, row.number) for row in more} == {*found, ("Bea", 5)}


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)" x="',
    "</style><img src=//x.test onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[2J\u202edrawkcab\ud800",
    "a" * 100,
]


@pytest.mark.parametrize("token", [None, "to'ken"])
def test_a_page_shows_what_strangers_wrote_and_obeys_none_of_it(token: str | None) -> None:
    def class_of(words: list[str]) -> str:
        records = [
            learner(text, "00-tag", question=Question(text, text), posted=replace(HERE, where=text))
            for text in words
        ]
        return page(records, NOW, token=token, left_out=words)

    shown = class_of(HOSTILE)
    shown.encode()
    hostile = Elements(shown)
    plain = Elements(class_of([f"name {number}" for number in range(len(HOSTILE))]))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in plain.found]
    assert [set(given) for _, given in hostile.found] == [set(given) for _, given in plain.found]
    for text in HOSTILE[:4]:
        assert hostile.text.count(text) >= 3
    assert "\x1b" not in shown and "\u202e" not in shown


def test_a_page_loads_nothing_and_says_its_limits() -> None:
    records = room(30)
    shown = Elements(page(records, NOW, token="x"))
    for tag, given in shown.found:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert (given.get("href") or "#").startswith("#") and "src" not in given
        assert given.get("action", "./") == "./"
    words = " ".join(shown.text.split())
    for limit in (f"{TRIES} tries", f"{QUIET} min", f"{AWAY} minutes", "30 learners"):
        assert limit in words
    passed = [int(text) for text in re.findall(r'<th class="passed">(\d+)', page(records, NOW))]
    assert passed == [sum(id in record.passed for record in records) for id in IDS]


def test_two_hundred_learners_are_drawn_in_a_second() -> None:
    records = room(200)
    for record in records:  # what a service has read once
        assert record.broken is None
    began = time.process_time()
    shown = page(records, NOW, token="x")
    assert time.process_time() - began < 1
    assert shown.count("<tr class=") == 200


def test_a_folder_of_receipts_is_shown_and_shown_anew(
    own: Receipts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opened, seen = tmp_path / "class", list[str](), list[str]()
    own.save(folder / "ada.json")
    (folder / "cut.json").write_text("{", encoding="utf-8")

    def sleep(_: float) -> None:
        seen.append((own.state.folder / "class.html").read_text(encoding="utf-8"))
        if len(seen) == 2:
            raise KeyboardInterrupt
        own.rename("bob")
        own.save(folder / "below" / "bob.json")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert cli.main(["report", str(folder), "--view"]) == 130
    assert opened == [(own.state.folder / "class.html").as_uri()]
    names = [re.findall(r'<th scope="row">.*?class="name">(.*?)<', text) for text in seen]
    assert names == [["ada"], ["ada", "bob"]]
    assert all("cut.json" in text and "<form" not in text for text in seen)
    assert cli.main(["report", str(tmp_path / "none"), "--view"]) == 1
    assert cli.main(["report", "--registry", "r.test/x", "--view"]) == 2


# ---------------------------------------------------------------- questions

ASKED = {
    "plain": (" why?\n so ", "why? so"),
    "long": ("x" * 500, "x" * LONGEST),
    "hostile": ("\x1b[2J\u202eno", "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}no"),
    "nothing": ("  ", ""),
    "taken back": (None, ""),
}


@pytest.mark.parametrize(("text", "kept"), ASKED.values(), ids=ASKED)
def test_a_question_is_bounded_and_ends_with_a_pass(
    own: Receipts, text: str | None, kept: str
) -> None:
    own.ask("first")
    assert own.ask(text).text == own.read().question.text == kept
    own.note("00-tag", Attempt(tries=1, hints=1))
    assert own.read().question.text == kept and own.read().broken is None
    own.note("00-tag", Attempt(tries=1), {})
    assert own.read().question == Question() and own.read().broken is None


def test_what_strangers_ask_is_cut(own: Receipts) -> None:
    document = own.read().content | {"question": {"text": "x" * 9999, "time": "y" * 9999}}
    assert parse(json.dumps(document).encode(), "it").question == Question("x" * 200, "y" * 200)


# ---------------------------------------------------------------- posting


@contextlib.contextmanager
def school(answer: Reply | Callable[[Seen], Reply]) -> Iterator[tuple[Server, QuietFeedback]]:
    """A class that answers so to what is posted, and what the lab says meanwhile."""
    with (
        serving(answer) as served,
        pytest.MonkeyPatch.context() as patch,
        using(QuietFeedback()) as quiet,
    ):
        patch.setenv("LABAPP_CLASS", f"http://{served.address}/services/class/")
        yield served, quiet


FAILURES: dict[str, Reply] = {
    "down": Reply(502, b"Bad Gateway"),
    "refused": Reply(403, b"these receipts are of 'bob'"),
    "sends elsewhere": Reply(302, headers={"Location": "http://localhost:9/hub/login"}),
    "says nonsense": Reply(200, b"<html>"),
    "says another thing": told({"sha256:00": {"name": "x"}}),
    "says a list": told([1]),
    "says numbers": told({"sha256:00": dict.fromkeys(("user", "time", "key", "signature"), 1)}),
    "breaks off": Reply(200, b"{}" * 99, cut_after=5),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_a_class_that_fails_is_told_once_and_breaks_nothing(own: Receipts, answer: Reply) -> None:
    own.note("00-tag", Attempt(tries=1), {})
    before = own.read()
    with school(answer) as (served, quiet):
        post.post(own, "00-tag", wait=10)
        post.post(own, "00-tag", wait=10)
        assert len(quiet.lines) == 1 and served.address in quiet.lines[0]
        served.answer = told({})
        assert post.post(own, "00-tag", wait=10)
        served.answer = answer
        post.post(own, "00-tag", wait=10)
        assert len(quiet.lines) == 2
    assert own.read() == before


def test_a_check_waits_for_no_class(own: Receipts, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = SimpleNamespace(state=own.state, work=Path("00"))
    coach = Coach(bench)
    with socket.create_server(("127.0.0.1", 0)) as silent, using(QuietFeedback()) as quiet:
        coach.help("no class")
        assert own.read().question == Question() and len(quiet.lines) == 1
        monkeypatch.setenv("LABAPP_CLASS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        for _ in range(5):
            assert coach.check("03-pin").outcome == "NotYet"
        assert time.monotonic() - began < 5  # the limit of a single post
        monkeypatch.setenv("LABAPP_CLASS", "http://127.0.0.1:9")
        silent.close()
        for thread in threading.enumerate():
            if "_post" in thread.name:
                thread.join(20)
        assert sum("posting" in line for line in quiet.lines) == 1


def test_help_says_whether_the_teacher_has_it(own: Receipts) -> None:
    bench: Any = SimpleNamespace(state=own.state, work=Path("03"))
    coach = Coach(bench)

    def answer(seen: Seen) -> Reply:
        asked = json.loads(seen.body)["question"]["text"]
        return told({}) if asked != "lost" else Reply(500)

    with school(answer) as (served, quiet):
        for text in ("why?", None, "lost"):
            coach.help(text)
    assert all(each.path.endswith("/receipts?where=03") for each in served.seen)
    texts = [json.loads(each.body)["question"]["text"] for each in served.seen]
    assert texts == ["why?", "", "lost"]
    assert len(quiet.lines) == 4 and quiet.lines[0] == quiet.lines[1] != quiet.lines[3]
    assert own.read().question.text == "lost"


# ---------------------------------------------------------------- signatures


def test_the_report_tells_what_is_signed_and_by_whom(
    own: Receipts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    for id in IDS[:6]:
        own.note(id, Attempt(tries=1), {})
    digests = [receipt.digest for receipt in own.read().receipts]
    good = [signatures.sign(key, each, "ada", ago(1)) for each in digests]
    own.keep(
        {
            digests[0]: good[0],
            digests[1]: signatures.sign(other, digests[1], "ada", ago(1)),
            digests[2]: signatures.sign(key, digests[2], "bob", ago(1)),
            digests[3]: replace(good[3], time=ago(99)),
            digests[4]: good[3],
            "sha256:00": good[5],
        }
    )
    own.save(tmp_path / "class" / "ada.json")
    public = tmp_path / "key.pub"
    kinds = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public.write_bytes(key.public_key().public_bytes(*kinds))
    with feedback.using(None):
        assert cli.main(["report", str(tmp_path / "class"), "--key", str(public)]) == 0
        said = capsys.readouterr().out
        assert cli.main(["report", str(tmp_path / "class")]) == 0
    assert "signed" not in capsys.readouterr().out
    head, row = (line.split() for line in said.splitlines()[:2])
    assert dict(zip(head, [row[0], " ".join(row[1:4]), *row[4:]], strict=True))["signed"] == "1"
    assert signatures.id_of(key.public_key()) in said
    (note,) = (line for line in said.splitlines() if line.startswith("ada: not signed"))
    assert {*re.findall(r"\d\d-\w+", note)} == {*IDS[1:6]}


def test_a_key_that_is_none(tmp_path: Path) -> None:
    wrong = generate_private_key(SECP256R1()).public_key()
    kinds = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (b"", b"x", wrong.public_bytes(*kinds), None):
        file = tmp_path / "key"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(StateError, match=re.escape(f"'{file}'")):
            signatures.read_key(file)
