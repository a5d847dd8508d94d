"""The live view of a real room: who may post, who may look, what is kept and signed."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
import requests
from playwright.sync_api import sync_playwright
from visitors import View

from labapp.course import post
from labapp.course.exercises import all_exercises
from labapp.course.receipts import Attempt, Receipts
from labapp.course.report import report
from labapp.course.signatures import read_key
from labapp.feedback import QuietFeedback
from labapp.machine.ports import wait_until
from labapp.state import State


@pytest.fixture
def learner(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Receipts:
    """A learner's lab, as the hub would have started it."""
    name = f"ada-{request.node.name.lower()}"[:40]
    monkeypatch.setenv("LABAPP_CLASS", view.place)
    monkeypatch.setenv("JUPYTERHUB_USER", name)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", view.token(name))
    receipts = Receipts(State.open(tmp_path / "state"))
    receipts.note("00-tag", Attempt(tries=1), {})
    return receipts


def test_what_is_posted_is_seen_by_teachers_alone(view: View, learner: Receipts) -> None:
    learner.note("00-run", Attempt(tries=2))
    learner.ask("<b>Which</b> port?")
    assert post.post(learner, "00-run", wait=20)
    name = learner.read().learner
    # Another teacher is one by the group, and no admin.
    view.browser("grace")
    group = "groups/teachers/users"
    assert view.asks(view.teacher, group, {"users": ["grace"]}).status_code == 200
    for teacher in ("grace", view.teacher):
        page = view.browser(teacher).get(view.place, timeout=20)
        assert page.status_code == 200 and "script-src" in page.headers["Content-Security-Policy"]
        assert name in page.text and "&lt;b&gt;Which&lt;/b&gt; port?" in page.text
    for other in ("eve", name):
        page = view.browser(other).get(view.place, timeout=20)
        assert page.status_code == 403 and "Which" not in page.text
    # A token that posts is no key to the page, and nobody at all is asked to log in.
    head = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    assert requests.get(f"{view.place}/", headers=head, timeout=20).status_code == 403
    assert "login" in requests.get(view.place, timeout=20).url


def test_a_teachers_browser_is_drawn_anew_and_clicks(
    view: View, learner: Receipts, browser_path: str
) -> None:
    name = learner.read().learner
    learner.ask("what is a port?")
    assert post.post(learner, "00-run", wait=20)
    # A click from elsewhere, without the page's own token, does nothing.
    form = {"learner": name, "time": learner.read().question.time}
    forged = view.browser(view.teacher).post(f"{view.place}/", data=form, timeout=20)
    assert forged.status_code == 403 and view.kept(name)["posted"]["seen"] == ""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(view.place)
        page.fill("#username_input", view.teacher)
        page.fill("#password_input", view.password(view.teacher))
        page.click("#login_submit")
        item, row = (page.locator(each, has_text=name) for each in ("li", "tbody tr"))
        question = item.locator("q")
        question.get_by_text("what is a port?").wait_for()
        shown, number = row.locator("th .name"), row.locator("th .number")
        shown.wait_for()
        page.keyboard.press("n")
        shown.wait_for(state="hidden")
        number.get_by_text(re.compile(r"Learner \d+")).wait_for()
        item.get_by_role("button").click()
        question.wait_for(state="detached")
        assert view.kept(name)["posted"]["seen"] == form["time"]
        # The next one comes by itself, and names are hidden still.
        learner.ask("and a digest?")
        assert post.post(learner, "00-run", wait=20)
        question.get_by_text("and a digest?").wait_for(timeout=20_000)
        assert page.url.endswith("#numbers") and not shown.is_visible()
        learner.note("00-run", Attempt(tries=1), {})
        assert post.post(learner, "00-run", wait=20)
        question.wait_for(state="detached", timeout=20_000)
        assert wrong == []
        browser.close()


def test_who_posts_is_told_by_the_token(view: View, learner: Receipts, tmp_path: Path) -> None:
    assert post.post(learner, "00-tag", wait=20)
    name, own = learner.read().learner, learner.file.read_bytes()
    place = f"{view.place}/receipts"
    mine = json.loads(own)
    service = mine | {"learner": "room", "seed": 1}
    head = {"Authorization": f"token {view.token('eve')}"}
    stranger = Receipts(State.open(tmp_path / "stranger"))
    stranger.rename("eve")
    cases = [
        (head, mine, 403, name),  # another's receipts, as they are
        (head, mine | {"learner": "eve"}, 403, "another"),  # under one's own name
        ({}, mine, 403, "Restart"),
        ({"Authorization": "token nonsense"}, mine, 403, "Restart"),
        ({"Authorization": f"token {view.room.settings()['token']}"}, service, 403, "Restart"),
        (head, {"format": 1, "learner": "eve"}, 400, "receipts"),
        (head, mine | {"learner": "eve", "seed": 1e999}, 400, "receipts"),
    ]
    for headers, body, status, word in cases:
        answer = requests.post(place, data=json.dumps(body), headers=headers, timeout=20)
        assert (answer.status_code, word in answer.text) == (status, True), answer.text
    answer = requests.post(place, data=b"[" * 200_000, headers=head, timeout=20)
    assert answer.status_code == 400
    assert requests.post(place, data=b" " * 300_000, headers=head, timeout=20).status_code >= 400
    before = (view.folder / "key").read_bytes()
    assert requests.get(f"{view.place}/key", timeout=20).status_code == 404
    # What eve says of himself counts, but not what he says in the service's name.
    said = {"where": "x", "last": "2020-01-01", "since": "", "seen": ""}
    document = json.loads(stranger.file.read_bytes() if stranger.read() else b"") | {"posted": said}
    answer = requests.post(f"{place}?where=03", data=json.dumps(document), headers=head, timeout=20)
    assert answer.status_code == 200 and answer.json() == {}
    kept = view.kept("eve")
    assert kept["posted"]["where"] == "03" and kept["posted"]["last"] > "2026"
    assert (view.folder / "key").read_bytes() == before


@pytest.mark.long  # the hub is started anew in it
def test_receipts_are_signed_once_and_the_report_tells(
    view: View, learner: Receipts, tmp_path: Path
) -> None:
    assert post.post(learner, "00-tag", wait=20)
    assert is_signed(learner, 1)
    first = learner.read().signatures
    view.crash()
    learner.note("00-run", Attempt(tries=1), {})
    assert post.post(learner, "00-run", wait=20)
    assert is_signed(learner, 2)
    both, name = learner.read().signatures, learner.read().learner
    assert first.items() < both.items() and {each.user for each in both.values()} == {name}
    assert learner.read().broken is None
    key = read_key(view.folder / "key.pub")
    learner.save(tmp_path / "handed-in" / "ada.json")
    for folder in (view.folder, tmp_path / "handed-in"):
        rows = report(folder, list(all_exercises()), key=key).learners.set_index("learner")
        assert rows.loc[name, "signed"] == 2


def is_signed(learner: Receipts, number: int) -> bool:
    return wait_until(lambda: len(learner.read().signatures) == number, seconds=5)


def test_what_could_not_be_posted_goes_with_the_next_post(
    view: View, learner: Receipts, told: QuietFeedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes the call, and says nothing
        monkeypatch.setenv("LABAPP_CLASS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert not post.post(learner, "00-tag")
        assert time.monotonic() - began < 2
    monkeypatch.setenv("LABAPP_CLASS", "http://127.0.0.1:9")
    for _ in range(2):
        assert not post.post(learner, "00-tag", wait=20)
    assert sum("127.0.0.1" in line for line in told.lines) == 1
    learner.note("00-run", Attempt(tries=1), {})
    monkeypatch.setenv("LABAPP_CLASS", view.place)
    assert post.post(learner, "00-run", wait=20)
    assert is_signed(learner, 2)
    assert post.post(learner, "00", wait=20)
    kept = view.kept(learner.read().learner)
    assert kept["posted"]["where"] == "00-run"
    assert kept["receipts"] == json.loads(learner.file.read_bytes())["receipts"]
