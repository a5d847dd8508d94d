"""A learner's browser, as far as tests need one: it logs in at a hub, and runs cells."""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import requests
import websocket


@dataclass
class Learner:
    """Somebody at a hub, by a name and a password."""

    hub: str
    name: str
    password: str
    session: requests.Session = field(default_factory=requests.Session, repr=False)
    kernel_id: str = ""
    channel: websocket.WebSocket | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.session.trust_env = False

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
        if self.channel is None:
            url = f"{self.base}api/kernels/{self.kernel_id}/channels".replace("http", "ws", 1)
            cookies = "; ".join(f"{each.name}={each.value}" for each in self._cookies())
            origin = self.hub.rstrip("/")
            self.channel = websocket.create_connection(
                url, cookie=cookies, origin=origin, timeout=600, http_no_proxy=["*"]
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
                return "\n".join(said)
