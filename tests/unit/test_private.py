"""The private registry's parts that need no engine: certificates, accounts, tokens, log."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import requests

from labapp.errors import StateError
from labapp.machine.ports import LOOPBACK, free_port, wait_until
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.registry import make_certificates
from labapp.state import State

HOST = "192.0.2.7"


@pytest.fixture
def lab(tmp_path: Path) -> State:
    return State.open(tmp_path / "state")


def test_certificates_are_made_once_and_their_keys_are_nobody_elses(tmp_path: Path) -> None:
    make_certificates(tmp_path, HOST)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert not [file for file in files if file.stat().st_mode & 0o077]
    assert sum(b"PRIVATE KEY" in content for content in files.values()) == 2
    make_certificates(tmp_path, HOST)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


class TestAccounts:
    def test_an_account_is_known_by_its_password(self, lab: State) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "correct horse", rights={"shop/*": ("pull", "push")})
        accounts.add("bob", "b" * 100, rights={})
        assert Accounts(lab).names() == ["ann", "bob"]
        for name, password, expected in [
            ("ann", "correct horse", True),
            ("bob", "b" * 99, False),
            ("eve", "correct horse", False),
            ("", "", False),
        ]:
            assert accounts.verify(name, password) is expected
        written = "".join(file.read_text() for file in lab.folder.rglob("*.json"))
        assert "correct horse" not in written
        accounts.add("ann", "another", rights={})
        assert not accounts.verify("ann", "correct horse")
        assert accounts.allowed("ann", "shop/web") == frozenset()
        accounts.remove("ann")
        with pytest.raises(StateError, match=r"'ann'.*bob"):
            accounts.remove("ann")

    def test_one_that_can_not_be(self, lab: State) -> None:
        for name, password in (("a:b", "x"), ("-a", "x"), ("a" * 65, "x"), ("ann", ""), ("", "x")):
            with pytest.raises(StateError, match=f"'{name}'"):
                Accounts(lab).add(name, password, rights={})
        for pattern, actions in (("shop/*", ("pul",)), ("shop/*", "pull"), ("", ("pull",))):
            with pytest.raises(StateError, match="'ann'"):
                Accounts(lab).add("ann", "x", rights={pattern: actions})
        assert Accounts(lab).names() == []


class TestService:
    @pytest.fixture
    def realm(self, lab: State) -> Iterator[str]:
        Accounts(lab).add("ann", "x", rights={"shop/*": ("pull", "push")})
        make_certificates(lab.folder / "private", HOST)
        yield self.start(lab)
        service.stop(lab)
        assert service.find(lab) is None

    def start(self, lab: State) -> str:
        return service.start(lab, lab.folder / "private" / "tokens.pem")

    def ask(self, realm: str, *scopes: str, **options: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(realm, params={"scope": scopes}, timeout=10, **options)  # type: ignore[arg-type]

    def test_who_may_pull_everything_may_list_it(self, lab: State, realm: str) -> None:
        Accounts(lab).add("tea", "x", rights={"*": ("pull",)})
        for name in ("ann", "tea"):
            self.ask(realm, "registry:catalog:* other:catalog:*", auth=(name, "x"))
        assert [each.granted for each in service.decisions(lab)] == ["", "", "*", ""]

    @pytest.fixture
    def served(self, lab: State) -> str:
        """The service as a room has it: with TLS, and for good."""
        folder, port = lab.folder / "private" / LOOPBACK, free_port()
        make_certificates(folder, LOOPBACK)
        realm = f"https://{LOOPBACK}:{port}/token"
        told = {"place": (LOOPBACK, port), "realm": realm}
        Thread(target=service.serve, args=(lab, folder), kwargs=told, daemon=True).start()
        assert wait_until(lambda: service.find(lab) == realm, seconds=10)
        return realm

    def trusted(self, lab: State, realm: str, **options: object) -> requests.Response:
        authority = lab.folder / "private" / LOOPBACK / "authority.pem"
        return self.ask(realm, verify=str(authority), **options)

    def test_with_tls_a_silent_client_keeps_nobody_waiting(self, lab: State, served: str) -> None:
        with socket.create_connection((LOOPBACK, urlsplit(served).port or 0)):
            assert self.trusted(lab, served).json()["token"]
            with pytest.raises(requests.exceptions.SSLError):
                self.ask(served)

    def test_many_silent_clients_take_no_more_than_the_places(
        self, lab: State, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> None:
        monkeypatch.setattr(service, "AT_ONCE", 3)
        served = request.getfixturevalue("served")
        place = (LOOPBACK, urlsplit(served).port or 0)
        silent = [socket.create_connection(place) for _ in range(4)]
        with pytest.raises(requests.ConnectionError):
            self.trusted(lab, served)
        for each in silent:
            each.close()
        assert wait_until(lambda: service.find(lab) == served, seconds=5)

    def test_a_wrong_password_costs_a_second(self, lab: State, served: str) -> None:
        Accounts(lab).add("ann", "x", rights={})
        began = time.monotonic()
        with ThreadPoolExecutor(4) as clients:
            guesses = [("ann", "y"), ("ann", "z"), ("eve", "x")]
            told = clients.map(lambda auth: self.trusted(lab, served, auth=auth), guesses)
            assert [each.status_code for each in told] == [401, 401, 401]
        assert time.monotonic() - began >= 2, "two guesses at one name wait for each other"
        assert self.trusted(lab, served, auth=("ann", "x")).json()["token"]
