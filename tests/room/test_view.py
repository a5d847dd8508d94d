"""The live view behind a real hub: who may post, who may look, what is kept and signed.

Needs ``jupyterhub`` in this environment, ``configurable-http-proxy`` on the PATH, and Chromium.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from playwright.sync_api import sync_playwright

from labapp.course import post
from labapp.course.exercises import all_exercises
from labapp.course.receipts import Attempt, Receipts
from labapp.course.report import report
from labapp.course.signatures import read_key
from labapp.feedback import QuietFeedback
from labapp.state import REPOSITORY, State

SERVICE = REPOSITORY / "dockerfiles" / "room" / "class_view.py"

CONFIGURATION = """
c.JupyterHub.bind_url = "http://127.0.0.1:{ports[0]}"
c.JupyterHub.hub_port = {ports[1]}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[2]}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.ConfigurableHTTPProxy.should_start = True
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {password!r}
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {{"head"}}
c.JupyterHub.services = [
    {{
        "name": "class",
        "url": "http://127.0.0.1:{ports[3]}",
        "command": {service!r},
        "environment": {environment!r},
        "oauth_no_confirm": True,
    }},
    {{"name": "tests", "api_token": {password!r}}},
]
c.JupyterHub.load_groups = {{"teachers": {{"users": ["grace"]}}}}
c.JupyterHub.load_roles = [
    {{"name": "teacher", "scopes": ["access:services!service=class"], "groups": ["teachers"]}},
    {{"name": "tests", "scopes": ["admin:users", "tokens"], "services": ["tests"]}},
]
"""


@dataclass
class Hub:
    """A hub with its proxy and the class, without any learner's server."""

    folder: Path
    url: str
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"{self.url}/services/class"

    def start(self) -> None:
        command = [sys.executable, "-m", "jupyterhub", "-f", "hub.py"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_for(f"{self.place}/key.pub")

    def stop(self) -> None:
        """End the hub as its machine does, and the class before it, as a crash does."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if str(SERVICE) in child.cmdline():
                child.kill()
        self.process.terminate()
        self.process.wait(20)

    def token(self, user: str) -> str:
        """A user's token, as the hub puts one into a server."""
        api = f"{self.url}/hub/api/users/{user}"
        head = {"Authorization": f"token {self.password}"}
        requests.post(api, headers=head, timeout=20)
        rights = {"scopes": ["users:activity!user", "access:servers!user"]}
        answer = requests.post(f"{api}/tokens", headers=head, json=rights, timeout=20)
        return str(answer.json()["token"])

    def browser(self, user: str) -> requests.Session:
        """Somebody who has logged in."""
        session = requests.Session()
        session.get(f"{self.url}/hub/login", timeout=20)
        form = {"username": user, "password": self.password, "_xsrf": session.cookies["_xsrf"]}
        answer = session.post(f"{self.url}/hub/login", data=form, timeout=20, allow_redirects=False)
        assert answer.status_code == 302, answer.text[:500]
        return session

    def kept(self, name: str) -> dict[str, Any]:
        """What the class has in its folder of somebody."""
        files = (self.folder / "class").glob("*.json")
        documents = [json.loads(file.read_bytes()) for file in files]
        (found,) = (each for each in documents if each["learner"] == name)
        return dict(found)


def wait_for(url: str) -> None:
    """Wait until something answers there as it should."""
    for _ in range(240):
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.25)
    raise AssertionError(f"{url} doesn't answer")


def configured(folder: Path) -> Hub:
    """Write a hub's configuration into a folder; it is not started."""
    proxy = shutil.which("configurable-http-proxy")
    assert proxy, "configurable-http-proxy, of npm, has to be on the PATH"
    password = secrets.token_hex(16)
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [each.getsockname()[1] for each in free]
    for each in free:
        each.close()
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH")]
    environment = {
        "LABAPP_CLASS_FOLDER": str(folder / "class"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    (folder / "hub.py").write_text(
        CONFIGURATION.format(
            ports=ports,
            proxy=[proxy],
            password=password,
            service=[sys.executable, str(SERVICE)],
            environment=environment,
        )
    )
    return Hub(folder, f"http://127.0.0.1:{ports[0]}", password)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = configured(tmp_path_factory.mktemp("hub"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
        print((made.folder / "log").read_text(errors="replace")[-6000:])


@pytest.fixture
def learner(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Receipts:
    """A learner's lab, as the hub would have started it."""
    name = f"ada-{request.node.name.lower()}"[:40]
    monkeypatch.setenv("LABAPP_CLASS", hub.place)
    monkeypatch.setenv("JUPYTERHUB_USER", name)
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", hub.token(name))
    receipts = Receipts(State.open(tmp_path / "state"))
    receipts.note("00-tag", Attempt(tries=1), {})
    return receipts


def test_what_is_posted_is_seen_by_teachers_alone(hub: Hub, learner: Receipts) -> None:
    learner.note("00-run", Attempt(tries=2))
    learner.ask("<b>Which</b> port?")
    assert post.post(learner, "00-run", wait=20)
    name = learner.read().learner
    for teacher in ("grace", "head"):
        page = hub.browser(teacher).get(hub.place, timeout=20)
        assert page.status_code == 200 and "script-src" in page.headers["Content-Security-Policy"]
        assert name in page.text and "&lt;b&gt;Which&lt;/b&gt; port?" in page.text
    for other in ("bob", name):
        page = hub.browser(other).get(hub.place, timeout=20)
        assert page.status_code == 403 and "Which" not in page.text
    # A token that posts is no key to the page, and nobody at all is asked to log in.
    head = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    assert requests.get(f"{hub.place}/", headers=head, timeout=20).status_code == 403
    assert "login" in requests.get(hub.place, timeout=20).url


def test_a_teachers_browser_is_drawn_anew_and_clicks(hub: Hub, learner: Receipts) -> None:
    name = learner.read().learner
    learner.ask("what is a port?")
    assert post.post(learner, "00-run", wait=20)
    # A click from elsewhere, without the page's own token, does nothing.
    form = {"learner": name, "time": learner.read().question.time}
    forged = hub.browser("grace").post(f"{hub.place}/", data=form, timeout=20)
    assert forged.status_code == 403 and hub.kept(name)["posted"]["seen"] == ""
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(hub.place)
        page.fill("#username_input", "grace")
        page.fill("#password_input", hub.password)
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
        assert hub.kept(name)["posted"]["seen"] == form["time"]
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


def test_who_posts_is_told_by_the_token(hub: Hub, learner: Receipts, tmp_path: Path) -> None:
    assert post.post(learner, "00-tag", wait=20)
    name, own = learner.read().learner, learner.file.read_bytes()
    place = f"{hub.place}/receipts"
    mine = json.loads(own)
    service = mine | {"learner": "tests", "seed": 1}
    head = {"Authorization": f"token {hub.token('bob')}"}
    stranger = Receipts(State.open(tmp_path / "stranger"))
    stranger.rename("bob")
    cases = [
        (head, mine, 403, name),  # another's receipts, as they are
        (head, mine | {"learner": "bob"}, 403, "another"),  # under one's own name
        ({}, mine, 403, "Restart"),
        ({"Authorization": "token nonsense"}, mine, 403, "Restart"),
        ({"Authorization": f"token {hub.password}"}, service, 403, "Restart"),
        (head, {"format": 1, "learner": "bob"}, 400, "receipts"),
        (head, mine | {"learner": "bob", "seed": 1e999}, 400, "receipts"),
    ]
    for headers, body, status, word in cases:
        answer = requests.post(place, data=json.dumps(body), headers=headers, timeout=20)
        assert (answer.status_code, word in answer.text) == (status, True), answer.text
    answer = requests.post(place, data=b"[" * 200_000, headers=head, timeout=20)
    assert answer.status_code == 400
    assert requests.post(place, data=b" " * 300_000, headers=head, timeout=20).status_code >= 400
    before = (hub.folder / "class" / "key").read_bytes()
    assert requests.get(f"{hub.place}/key", timeout=20).status_code == 404
    # What bob says of himself counts, but not what he says in the service's name.
    said = {"where": "x", "last": "2020-01-01", "since": "", "seen": ""}
    document = json.loads(stranger.file.read_bytes() if stranger.read() else b"") | {"posted": said}
    answer = requests.post(f"{place}?where=03", data=json.dumps(document), headers=head, timeout=20)
    assert answer.status_code == 200 and answer.json() == {}
    kept = hub.kept("bob")
    assert kept["posted"]["where"] == "03" and kept["posted"]["last"] > "2026"
    assert (hub.folder / "class" / "key").read_bytes() == before


def test_receipts_are_signed_once_and_the_report_tells(hub: Hub, learner: Receipts) -> None:
    assert post.post(learner, "00-tag", wait=20)
    wait_until_signed(learner, 1)
    first = learner.read().signatures
    hub.stop()
    hub.start()
    learner.note("00-run", Attempt(tries=1), {})
    assert post.post(learner, "00-run", wait=20)
    wait_until_signed(learner, 2)
    both, name = learner.read().signatures, learner.read().learner
    assert first.items() < both.items() and {each.user for each in both.values()} == {name}
    assert learner.read().broken is None
    key = read_key(hub.folder / "class" / "key.pub")
    learner.save(hub.folder / "handed-in" / "ada.json")
    for folder in (hub.folder / "class", hub.folder / "handed-in"):
        rows = report(folder, list(all_exercises()), key=key).learners.set_index("learner")
        assert rows.loc[name, "signed"] == 2


def wait_until_signed(learner: Receipts, number: int) -> None:
    for _ in range(100):
        if len(learner.read().signatures) == number:
            return
        time.sleep(0.05)
    raise AssertionError(learner.read().signatures)


def test_what_could_not_be_posted_goes_with_the_next_post(
    hub: Hub, learner: Receipts, told: QuietFeedback, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setenv("LABAPP_CLASS", hub.place)
    assert post.post(learner, "00-run", wait=20)
    wait_until_signed(learner, 2)
    assert post.post(learner, "00", wait=20)
    kept = hub.kept(learner.read().learner)
    assert kept["posted"]["where"] == "00-run"
    assert kept["receipts"] == json.loads(learner.file.read_bytes())["receipts"]
