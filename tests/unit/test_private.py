"""The private registry's parts that need no engine: authority, accounts, tokens, log."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from labapp.errors import StateError
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.registry import Authority
from labapp.private.service import ISSUER, SERVICE, Issued, Scope, parse_scopes, sign
from labapp.state import State

HOSTS = ["127.0.0.1", "registry.example"]


@pytest.fixture
def lab(tmp_path: Path) -> State:
    return State.open(tmp_path / "state")


def verify(authority: Authority, issued: Issued, host: str) -> None:
    """Shake hands in memory, as strictly as Python can; raises ssl.SSLCertVerificationError."""
    mine = ssl.create_default_context(cafile=str(authority.certificate))
    mine.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(issued.certificate, issued.key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = mine.wrap_bio(back, there, server_hostname=host)
    server = theirs.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert client.getpeercert()


class TestAuthority:
    def test_a_certificate_is_good_for_its_hosts_and_no_other(self, tmp_path: Path) -> None:
        authority = Authority.open(tmp_path)
        issued = authority.issue(HOSTS)
        for host in HOSTS:
            verify(authority, issued, host)
        for other, host in [
            (issued, "127.0.0.2"),
            (Authority.open(tmp_path / "another").issue(HOSTS), HOSTS[0]),
            (authority.issue(HOSTS, days=-1, name="expired"), HOSTS[0]),
        ]:
            with pytest.raises(ssl.SSLCertVerificationError):
                verify(authority, other, host)
        for file in (issued.key, tmp_path / "authority.key"):
            assert file.stat().st_mode & 0o077 == 0, "somebody else may read a private key"

    def test_what_lasts_is_kept(self, tmp_path: Path) -> None:
        first = Authority.open(tmp_path)
        kept = first.issue(HOSTS).certificate.read_bytes()
        assert Authority.open(tmp_path).issue(HOSTS).certificate.read_bytes() == kept
        assert first.issue([*HOSTS, "localhost"]).certificate.read_bytes() != kept
        short = first.issue(HOSTS, days=1, name="short").certificate.read_bytes()
        assert first.issue(HOSTS, days=1.5, name="short").certificate.read_bytes() == short
        assert first.issue(HOSTS, days=3, name="short").certificate.read_bytes() != short

    @pytest.mark.parametrize("left", [None, 0, 150])
    def test_one_that_can_not_be_used_is_made_anew(self, tmp_path: Path, left: int | None) -> None:
        old = Authority.open(tmp_path)
        old.issue(HOSTS)
        before, key = old.certificate.read_bytes(), tmp_path / "authority.key"
        text = key.read_bytes()
        key.unlink()
        if left is not None:
            key.write_bytes(text[:left])
        new = Authority.open(tmp_path)
        assert new.certificate.read_bytes() != before
        verify(new, new.issue(HOSTS), HOSTS[0])


class TestAccounts:
    def test_an_account_is_known_by_its_password(self, lab: State) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "correct horse", rights={"shop/*": ("pull", "push")})
        accounts.add("bob", "b" * 100, rights={})
        assert Accounts(lab).names() == ["ann", "bob"]
        assert accounts.verify("ann", "correct horse")
        assert accounts.verify("bob", "b" * 100)
        for name, password in [
            *(("ann", "correct"), ("ann", ""), ("bob", "b" * 99)),
            *(("eve", "correct horse"), ("", ""), ("", "correct horse")),
        ]:
            assert not accounts.verify(name, password), (name, password)
        written = "".join(file.read_text() for file in lab.folder.rglob("*.json"))
        assert "correct horse" not in written
        accounts.add("ann", "another", rights={})
        assert not accounts.verify("ann", "correct horse")
        assert accounts.allowed("ann", "shop/web") == frozenset()
        accounts.remove("ann")
        assert not accounts.verify("ann", "another")
        with pytest.raises(StateError, match=r"'ann'.*bob"):
            accounts.remove("ann")
        lab.path("private", "accounts.json").write_text("{")
        assert not accounts.verify("bob", "b" * 100)

    def test_rights_are_by_repository(self, lab: State) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "x", rights={"shop/*": ("push", "pull")})
        accounts.add("bob", "x", rights={"*": ["pull"], "shop/web": ["delete"]})
        accounts.add("", rights={"shop/public": ("pull",)})
        for repository, *expected in [
            ("shop/web", "pull push", "delete pull", ""),
            ("shop/a/b", "pull push", "pull", ""),
            ("shop/public", "pull push", "pull", "pull"),
            ("shop", "", "pull", ""),
            ("shopping/web", "", "pull", ""),
            ("Shop/web", "", "pull", ""),
        ]:
            held = [accounts.allowed(name, repository) for name in ("ann", "bob", "", "eve")]
            assert [" ".join(sorted(each)) for each in held] == [*expected, ""], repository

    def test_one_that_can_not_be(self, lab: State) -> None:
        for name, password in (("a:b", "x"), ("-a", "x"), ("a" * 65, "x"), ("ann", ""), ("", "x")):
            with pytest.raises(StateError, match=f"'{name}'"):
                Accounts(lab).add(name, password, rights={})
        for pattern, actions in (("shop/*", ("pul",)), ("shop/*", "pull"), ("", ("pull",))):
            with pytest.raises(StateError, match="'ann'"):
                Accounts(lab).add("ann", "x", rights={pattern: actions})
        assert Accounts(lab).names() == []

    def test_two_at_once_lose_no_account(self, lab: State, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hashlib, "scrypt", lambda *_, **__: b"quick")

        def add(letter: str) -> None:
            for number in range(20):
                Accounts(lab).add(f"{letter}{number}", "x", rights={})

        threads = [threading.Thread(target=add, args=(letter,)) for letter in "ab"]
        for act in (threading.Thread.start, threading.Thread.join):
            for thread in threads:
                act(thread)
        assert len(Accounts(lab).names()) == 40


class TestTokens:
    def test_scopes(self) -> None:
        texts = ["repository:shop/web:push,pull,push registry:catalog:*", "", "repository:a:"]
        texts += ["repository(plugin):a/b:pull", "repository:host.example:5000/a:pull"]
        assert parse_scopes(texts) == [
            Scope("repository", "shop/web", ("push", "pull")),
            Scope("registry", "catalog", ("*",)),
            Scope("repository", "a", ()),
            Scope("repository(plugin)", "a/b", ("pull",)),
            Scope("repository", "host.example:5000/a", ("pull",)),
        ]
        for none in ("repository", "repository:a", "repository::pull"):
            assert parse_scopes([none])[0].name == ""

    def test_a_token_says_who_what_and_how_long(self, tmp_path: Path) -> None:
        issued = Authority.open(tmp_path).issue(["tokens.example"])
        token = sign(issued, "ann", [Scope("repository", "shop/web", ("pull",))], seconds=-120)
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert (claims["iss"], claims["aud"], claims["sub"]) == (ISSUER, SERVICE, "ann")
        assert claims["access"] == [{"type": "repository", "name": "shop/web", "actions": ["pull"]}]
        assert claims["exp"] - claims["iat"] == -120
        assert claims["nbf"] < claims["exp"]


class TestService:
    @pytest.fixture
    def realm(self, lab: State) -> Iterator[str]:
        Accounts(lab).add("ann", "x", rights={"shop/*": ("pull", "push")})
        signer = Authority.open(lab.path("private")).issue(["tokens.example"], name="tokens")
        yield service.start(lab, host="127.0.0.1", signer=signer, server=None)
        service.stop(lab)
        assert service.find(lab) is None

    def ask(self, realm: str, query: dict[str, str], **options: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(realm, params=query, timeout=10, **options)  # type: ignore[arg-type]

    def test_it_answers_as_the_specification_says(self, realm: str) -> None:
        ours = {"service": SERVICE}
        for query, login, status in [
            (ours, "", 200),
            (ours | {"scope": "nonsense%"}, "", 200),
            (ours, "Basic YW5uOng=", 200),  # ann:x
            ({"service": "another"}, "", 400),
            ({}, "", 400),
            (ours, "Basic ???", 400),
            (ours, "Bearer abc", 400),
            (ours, "Basic ZXZlOng=", 401),  # eve:x
        ]:
            answer = self.ask(realm, query, headers={"Authorization": login} if login else {})
            assert answer.status_code == status, (query, login)
            assert ("WWW-Authenticate" in answer.headers) == (status == 401)
            content = answer.json()
            if status == 200:
                assert (content["token"] != "", content["expires_in"]) == (True, 300)
            else:
                assert content["errors"][0]["message"]

    def test_it_keeps_a_log(self, lab: State, realm: str) -> None:
        assert service.decisions(lab) == []
        scope = "repository:shop/web:pull,push repository:team/web:push"
        self.ask(realm, {"service": SERVICE, "scope": scope}, auth=("ann", "x"))
        self.ask(realm, {"service": SERVICE, "scope": "registry:shop/web:pull"}, auth=("ann", "x"))
        with lab.path("private", "decisions.log").open("a") as log:
            log.write('{"account": "ann", "repos\n')
        self.ask(realm, {"service": SERVICE}, auth=("eve", "x"))
        found = [(d.account, d.repository, d.granted, d.status) for d in service.decisions(lab)]
        assert found == [
            ("ann", "shop/web", "pull,push", 200),
            ("ann", "team/web", "", 200),
            ("ann", "shop/web", "", 200),
            ("eve", "", "", 401),
        ]
        assert "push" in service.decisions(lab)[1].why
        assert datetime.fromisoformat(service.decisions(lab)[0].time).tzinfo == UTC

    def test_one_that_answers_is_left_alone(self, lab: State, realm: str) -> None:
        signer = Issued(lab.path("private", "tokens.pem"), lab.path("private", "tokens.key"))
        assert service.find(lab) == realm
        assert service.start(lab, host="127.0.0.1", signer=signer, server=None) == realm
        service.stop(lab)
        assert service.find(lab) is None
        again = service.start(lab, host="127.0.0.1", signer=signer, server=None)
        assert again == realm, "the registry was told another address"
        service.stop(lab)
        url = urlsplit(realm)
        with socket.create_server((str(url.hostname), url.port or 0)) as taken:
            threading.Thread(target=lambda: taken.accept()[0].close()).start()
            again = service.start(lab, host="127.0.0.1", signer=signer, server=None)
            assert service.find(lab) == again != realm
