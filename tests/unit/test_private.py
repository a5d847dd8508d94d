"""The private registry's parts that need no engine: authority, accounts, tokens, log."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from joserfc import jwt
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry

from labapp.errors import StateError
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority, Issued
from labapp.private.service import ISSUER, SERVICE, Scope, parse_scopes, sign
from labapp.state import State

HOSTS = ["127.0.0.1", "registry.example"]


@pytest.fixture
def lab(tmp_path: Path) -> State:
    return State.open(tmp_path / "state")


def read(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


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
        left = read(first.issue(HOSTS).certificate).not_valid_after_utc - datetime.now(UTC)
        assert timedelta(days=29) < left < timedelta(days=31)
        short = first.issue(HOSTS, days=1, name="short").certificate.read_bytes()
        assert first.issue(HOSTS, days=3, name="short").certificate.read_bytes() != short

    @pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
    def test_one_that_can_not_be_used_is_made_anew(self, tmp_path: Path, damage: str) -> None:
        old = Authority.open(tmp_path)
        old.issue(HOSTS)
        before, key = old.certificate.read_bytes(), tmp_path / "authority.key"
        if damage == "gone":
            key.unlink()
        else:
            key.write_bytes(key.read_bytes()[: 0 if damage == "empty" else 150])
        new = Authority.open(tmp_path)
        assert new.certificate.read_bytes() != before
        verify(new, new.issue(HOSTS), HOSTS[0])

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StateError, match=str(tmp_path / "file")):
            Authority.open(tmp_path / "file")


class TestAccounts:
    def test_an_account_is_known_by_its_password(self, lab: State) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "correct horse", rights={"shop/*": ("pull", "push")})
        accounts.add("bob", "b" * 100, rights={})
        assert Accounts(lab).names() == ["ann", "bob"]
        assert accounts.verify("ann", "correct horse")
        assert accounts.verify("bob", "b" * 100)
        for name, password in [
            ("ann", "correct"),
            ("ann", ""),
            ("bob", "b" * 99),
            ("eve", "correct horse"),
            ("", ""),
            ("", "correct horse"),
        ]:
            assert not accounts.verify(name, password), (name, password)
        written = "".join(file.read_text() for file in lab.folder.rglob("*.json"))
        assert "correct horse" not in written
        accounts.add("ann", "another", rights={})
        assert not accounts.verify("ann", "correct horse")
        assert accounts.allowed("ann", "shop/web") == frozenset()
        accounts.remove("ann")
        assert not accounts.verify("ann", "another")

    @pytest.mark.parametrize(
        ("repository", "ann", "bob", "nobody"),
        [
            ("shop/web", {"pull", "push"}, {"pull"}, set()),
            ("shop/a/b", {"pull", "push"}, {"pull"}, set()),
            ("shop/public", {"pull", "push"}, {"pull"}, {"pull"}),
            ("shop", set(), {"pull"}, set()),
            ("shopping/web", set(), {"pull"}, set()),
            ("Shop/web", set(), {"pull"}, set()),
        ],
    )
    def test_rights_are_by_repository(
        self, lab: State, repository: str, ann: set[str], bob: set[str], nobody: set[str]
    ) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "x", rights={"shop/*": ("push", "pull")})
        accounts.add("bob", "x", rights={"*": ["pull"]})
        accounts.add("", rights={"shop/public": ("pull",)})
        for name, rights in {"ann": ann, "bob": bob, "": nobody, "eve": set()}.items():
            assert accounts.allowed(name, repository) == rights, name
        assert [name for name in ("ann", "bob", "", "eve") if accounts.may_list(name)] == ["bob"]

    @pytest.mark.parametrize(
        ("name", "password", "rights"),
        [
            ("a:b", "x", {}),
            ("-a", "x", {}),
            ("a" * 65, "x", {}),
            ("ann", "", {}),
            ("", "x", {}),
            ("ann", "x", {"shop/*": ("pul",)}),
            ("ann", "x", {"shop/*": "pull"}),
            ("ann", "x", {"": ("pull",)}),
        ],
    )
    def test_one_that_can_not_be(
        self, lab: State, name: str, password: str, rights: dict[str, tuple[str, ...]]
    ) -> None:
        with pytest.raises(StateError, match=f"'{name}'"):
            Accounts(lab).add(name, password, rights=rights)
        assert Accounts(lab).names() == []

    def test_one_that_is_not_there(self, lab: State) -> None:
        Accounts(lab).add("ann", "x", rights={})
        with pytest.raises(StateError, match=r"'eve'.*ann"):
            Accounts(lab).remove("eve")

    @pytest.mark.parametrize("content", ["", '{"ann": {"passw', "[]", "\x00\x01"])
    def test_a_damaged_file_opens_nothing_and_is_kept(self, lab: State, content: str) -> None:
        accounts = Accounts(lab)
        accounts.add("ann", "x", rights={"*": ("pull",)})
        assert accounts.damaged() == ""
        file = lab.path("private", "accounts.json")
        file.write_text(content)
        assert not accounts.verify("ann", "x")
        assert accounts.allowed("ann", "shop/web") == frozenset()
        if content != "[]":
            assert str(file) + ".damaged" in accounts.damaged()
            assert file.with_name("accounts.json.damaged").read_text() == content
        accounts.add("bob", "x", rights={})
        assert accounts.names() == ["bob"]
        assert accounts.damaged() == ""


class TestTokens:
    @pytest.mark.parametrize(
        ("texts", "expected"),
        [
            ([], []),
            ([""], []),
            (["repository:shop/web:pull"], [Scope("repository", "shop/web", ("pull",))]),
            (
                ["repository:shop/web:push,pull,push registry:catalog:*"],
                [
                    Scope("repository", "shop/web", ("push", "pull")),
                    Scope("registry", "catalog", ("*",)),
                ],
            ),
            (["repository(plugin):a/b:pull"], [Scope("repository(plugin)", "a/b", ("pull",))]),
            (
                ["repository:host.example:5000/a:pull"],
                [Scope("repository", "host.example:5000/a", ("pull",))],
            ),
            (["repository:a:"], [Scope("repository", "a", ())]),
        ],
    )
    def test_scopes(self, texts: list[str], expected: list[Scope]) -> None:
        assert parse_scopes(texts) == expected

    @pytest.mark.parametrize(
        "text", ["repository", "repository:a", ":a:pull", "repository::pull", "repository:A B:pull",
                 "repository:a:pull,", "repository:a:PULL", "repository:a;b:pull", "x" * 5000]
    )  # fmt: skip
    def test_scopes_that_are_none(self, text: str) -> None:
        with pytest.raises(ValueError, match="type:name:actions"):
            parse_scopes([text])

    def test_a_grant_is_never_more_than_was_asked(self) -> None:
        asked = Scope("repository", "shop/web", ("push", "pull"))
        assert asked.granted({"pull", "delete"}).actions == ("pull",)
        assert asked.granted(()).actions == ()

    @pytest.mark.parametrize("seconds", [300, -120])
    def test_a_token_says_who_what_and_how_long(self, tmp_path: Path, seconds: int) -> None:
        issued = Authority.open(tmp_path).issue(["tokens.example"])
        token = sign(issued, "ann", [Scope("repository", "shop/web", ("pull",))], seconds=seconds)
        pem = (
            read(issued.certificate)
            .public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        registry = JWSRegistry(algorithms=["ES256"])
        registry.max_header_length = 4096  # the certificate is in the header
        found = jwt.decode(token, ECKey.import_key(pem), registry=registry)
        claims = found.claims
        assert (claims["iss"], claims["aud"], claims["sub"]) == (ISSUER, SERVICE, "ann")
        assert claims["access"] == [{"type": "repository", "name": "shop/web", "actions": ["pull"]}]
        assert claims["exp"] - claims["iat"] == seconds
        assert claims["nbf"] < min(claims["exp"], claims["iat"])
        der = base64.b64decode(found.header["x5c"][0])
        assert x509.load_der_x509_certificate(der) == read(issued.certificate)


class TestService:
    @pytest.fixture
    def realm(self, lab: State) -> Iterator[str]:
        accounts = Accounts(lab)
        accounts.add("ann", "x", rights={"shop/*": ("pull", "push")})
        signer = Authority.open(lab.path("private")).issue(["tokens.example"], name="tokens")
        yield service.start(lab, host="127.0.0.1", signer=signer, server=None)
        service.stop(lab)
        assert service.find(lab) is None

    def ask(self, realm: str, query: dict[str, str], **options: object) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(realm, params=query, timeout=10, **options)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("query", "login", "status"),
        [
            ({"service": SERVICE}, None, 200),
            ({"service": SERVICE}, "Basic YW5uOng=", 200),  # ann:x
            ({"service": "another"}, None, 400),
            ({}, None, 400),
            ({"service": SERVICE, "scope": "nonsense%"}, None, 400),
            ({"service": SERVICE}, "Basic ???", 400),
            ({"service": SERVICE}, "Bearer abc", 400),
            ({"service": SERVICE}, "Basic ZXZlOng=", 401),  # eve:x
        ],
    )
    def test_it_answers_as_the_specification_says(
        self, realm: str, query: dict[str, str], login: str | None, status: int
    ) -> None:
        headers = {"Authorization": login} if login else {}
        answer = self.ask(realm, query, headers=headers)
        assert answer.status_code == status
        assert (answer.headers.get("WWW-Authenticate", "")[:5] == "Basic") == (status == 401)
        content = answer.json()
        if status == 200:
            assert content["token"] == content["access_token"]
            assert content["expires_in"] == 300
            assert datetime.fromisoformat(content["issued_at"]).utcoffset() == timedelta()
        else:
            assert content["errors"][0]["message"]

    def test_it_keeps_a_log(self, lab: State, realm: str) -> None:
        assert service.decisions(lab) == []
        scope = "repository:shop/web:pull,push repository:team/web:push"
        self.ask(realm, {"service": SERVICE, "scope": scope}, auth=("ann", "x"))
        self.ask(realm, {"service": SERVICE, "scope": "registry:catalog:*"})
        with lab.path("private", "decisions.log").open("a") as log:
            log.write('{"account": "ann", "repos\n{"other": 1}\n')
        self.ask(realm, {"service": SERVICE}, auth=("eve", "x"))
        found = [(d.account, d.repository, d.granted, d.status) for d in service.decisions(lab)]
        assert found == [
            ("ann", "shop/web", "pull,push", 200),
            ("ann", "team/web", "", 200),
            ("", "catalog", "", 200),
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
