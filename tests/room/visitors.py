"""A learner's browser, as far as tests need one: it logs in at a hub, and runs cells."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests
import websocket

from labapp import room as rooms
from labapp.machine.ports import wait_until
from labapp.registry.server import RegistryServer
from labapp.room import Room

CLASS = "the word of the class"


@dataclass
class Learner:
    """Somebody at a hub, by a name and a password."""

    hub: str
    name: str
    password: str
    authority: Path | None = None
    """Whom its browser trusts besides, where the hub serves HTTPS."""

    session: requests.Session = field(default_factory=requests.Session, repr=False)
    kernel_id: str = ""
    channel: websocket.WebSocket | None = field(default=None, repr=False)
    used: float = 0.0
    """When the channel was used last: who answers no ping is cut off."""

    def __post_init__(self) -> None:
        self.session.trust_env = False
        self.session.verify = str(self.authority) if self.authority else True

    def log_in(self, class_password: str = "", *, password: str = "") -> requests.Response:
        """Send the form of the log-in page; what comes back is the page after it."""
        page = urljoin(self.hub, "hub/login")
        self.session.get(page, timeout=30)
        words = {
            "username": self.name,
            "password": password or self.password,
            "otp": class_password,
            "_xsrf": self.session.cookies.get("_xsrf", path="/hub/"),
        }
        return self.session.post(page, data=words, timeout=60, allow_redirects=False)

    @property
    def base(self) -> str:
        """The address of this learner's server."""
        return urljoin(self.hub, f"user/{quote(self.name.lower())}/")

    def spawn(self, *, seconds: float = 120) -> float:
        """Start the server as the browser does, and return after how many seconds it answered."""
        began = time.monotonic()
        self.session.get(urljoin(self.hub, "hub/spawn"), timeout=60)
        while time.monotonic() < began + seconds:
            with contextlib.suppress(requests.RequestException):
                answer = self.session.get(f"{self.base}lab", timeout=30)
                if answer.ok and "/lab" in urlsplit(answer.url).path and "user" in answer.url:
                    return time.monotonic() - began
            time.sleep(0.3)
        raise AssertionError(f"the server of '{self.name}' did not start in {seconds:.0f} s")

    def api(self, method: str, path: str, **options: Any) -> Any:
        """Ask this learner's server."""
        token = self.session.cookies.get("_xsrf", path=urlsplit(self.base).path)
        headers = {"X-XSRFToken": token or ""}
        url = urljoin(self.base, f"api/{path}")
        answer = self.session.request(method, url, headers=headers, timeout=60, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def kernel(self) -> websocket.WebSocket:
        """Return the way to a kernel of this learner's, which is started first."""
        if not self.kernel_id:
            found = self.api("POST", "kernels", json={"name": "python3", "path": "x.ipynb"})
            self.kernel_id = found["id"]
        if self.channel is None or time.monotonic() > self.used + 15:
            url = f"{self.base}api/kernels/{self.kernel_id}/channels".replace("http", "ws", 1)
            cookies = "; ".join(f"{each.name}={each.value}" for each in self._cookies())
            origin = self.hub.rstrip("/")
            self.channel = websocket.create_connection(
                url,
                cookie=cookies,
                origin=origin,
                timeout=600,
                http_no_proxy=["*"],
                sslopt={"ca_certs": str(self.authority)} if self.authority else None,
            )
        return self.channel

    def _cookies(self) -> list[Any]:
        path = urlsplit(self.base).path
        return [each for each in self.session.cookies if path.startswith(each.path)]

    def run(self, code: str, *, may_fail: bool = False) -> str:
        """Run a cell, and return what it printed and showed; an AssertionError if it failed."""
        kernel, number = self.kernel(), uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "version": "5.3"}
        header |= {"username": "", "session": number, "date": ""}
        content = {"code": code, "silent": False, "store_history": True}
        content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        kernel.send(json.dumps({**message, "channel": "shell"}))
        said: list[str] = []
        while True:
            answer = json.loads(kernel.recv())
            if answer["parent_header"].get("msg_id") != number:
                continue
            kind, told = answer["msg_type"], answer["content"]
            if kind == "stream":
                said.append(told["text"])
            elif kind in {"display_data", "execute_result", "update_display_data"}:
                said.append(told["data"].get("text/html") or told["data"].get("text/plain", ""))
            elif kind == "error":
                text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(told["traceback"]))
                said.append(text)
                assert may_fail, text
            elif kind == "status" and told["execution_state"] == "idle":
                self.used = time.monotonic()
                return "\n".join(said)


def emptied(room: Room) -> None:
    """Close a room, and take away what its learners made."""
    rooms.stop(room)
    client = room.engine.client
    mine: list[str] = [f"{name}={value}" for name, value in room.labels.items()]
    wait_until(
        lambda: not client.containers.list(all=True, filters={"label": mine}, ignore_removed=True),
        seconds=20,
    )
    RegistryServer(engine=room.engine, state=room.state, kind=rooms.CLASS).remove()
    for volume in client.volumes.list(filters={"label": mine}):
        volume.remove(force=True)
    for name in ("room.json", "hub.sqlite", "private", "cookie_secret", "class"):
        place = room.state.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


@dataclass
class View:
    """The live view of a room, and the browsers of those who come to it."""

    room: Room
    came: dict[str, Learner] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        return f"{self.room.settings()['address']}services/class"

    @property
    def folder(self) -> Path:
        return self.room.state.folder / "class"

    @property
    def teacher(self) -> str:
        return str(self.room.settings()["teacher"])

    def password(self, user: str) -> str:
        told = self.room.settings()
        return str(told["teacher_password"]) if user == told["teacher"] else f"the word of {user}"

    def browser(self, user: str) -> requests.Session:
        """Somebody who has logged in."""
        if user not in self.came:
            learner = Learner(self.room.settings()["address"], user, self.password(user))
            assert learner.log_in(CLASS).status_code == 302
            self.came[user] = learner
        return self.came[user].session

    def asks(self, user: str, path: str, words: object) -> requests.Response:
        """Post to the hub's API as somebody's browser does."""
        session = self.browser(user)
        url = urljoin(self.room.settings()["address"], f"hub/api/{path}")
        token = {"_xsrf": session.cookies.get("_xsrf", path="/hub/") or ""}
        return session.post(url, params=token, json=words, timeout=20)

    def token(self, user: str) -> str:
        """A user's token, with the rights of one that the hub puts into a server."""
        rights = {"scopes": ["users:activity!user", "access:servers!user"]}
        self.browser(user)
        return str(self.asks(user, f"users/{quote(user)}/tokens", rights).json()["token"])

    def kept(self, name: str) -> dict[str, Any]:
        """What the class has in its folder of somebody."""
        documents = [json.loads(file.read_bytes()) for file in self.folder.glob("*.json")]
        (found,) = (each for each in documents if each["learner"] == name)
        return dict(found)

    def crash(self) -> None:
        """End the hub as a power cut does, and start it anew."""
        hub = self.room.hub()
        assert hub is not None
        hub.kill()
        hub.start()
        assert wait_until(self._answers, seconds=60, every=0.25)

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.place}/key.pub", timeout=5).ok
        return False
