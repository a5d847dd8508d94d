"""The private registry's parts that need no engine: authority, accounts, tokens, words."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from joserfc import jwt
from joserfc.jwk import ECKey
from joserfc.jws import JWSRegistry
from servers import speaking_tls

from labapp.errors import RegistryUnreachable, StateError
from labapp.images.transfer import refusal_advice
from labapp.private import accounts as accounts_module
from labapp.private import decisions, process
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority, Issued
from labapp.private.decisions import Decision
from labapp.private.tokens import ISSUER, SERVICE, Scope, Signer, parse_scopes
from labapp.registry import Registry
from labapp.state import State

HOSTS = ["127.0.0.1", "registry.example"]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setattr(accounts_module, "ROUNDS", 4)  # bcrypt is slow on purpose
    return State.open(tmp_path / "state")


# --- the authority


def read(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def verify(authority: Authority, issued: Issued, host: str) -> None:
    """Verify as browsers do; raises VerificationError."""
    try:
        subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    store = Store([read(authority.certificate)])
    verifier = PolicyBuilder().store(store).build_server_verifier(subject)  # type: ignore[arg-type]
    verifier.verify(read(issued.certificate), [])


def test_a_certificate_is_good_for_its_hosts_and_no_other(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    issued = authority.issue(HOSTS)
    for host in HOSTS:
        verify(authority, issued, host)
    with pytest.raises(VerificationError):
        verify(authority, issued, "127.0.0.2")
    with pytest.raises(VerificationError):
        verify(Authority.open(tmp_path / "another"), issued, HOSTS[0])
    with pytest.raises(VerificationError):
        verify(authority, authority.issue(HOSTS, days=-1), HOSTS[0])
    for file in (issued.key, tmp_path / "authority.key"):
        assert file.stat().st_mode & 0o077 == 0, "somebody else may read a private key"


def test_what_lasts_is_kept(tmp_path: Path) -> None:
    first = Authority.open(tmp_path)
    issued = first.issue(HOSTS)
    kept = issued.certificate.read_bytes()
    issued.certificate.write_bytes(b"damaged")  # the file with the key has it too
    assert Authority.open(tmp_path).issue(HOSTS).certificate.read_bytes() == kept
    assert first.issue([*HOSTS, "localhost"]).certificate.read_bytes() != kept
    left = read(first.issue(HOSTS, days=30).certificate).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < left < timedelta(days=31)
    short = first.issue(HOSTS, days=1, name="short").certificate.read_bytes()
    assert first.issue(HOSTS, days=3, name="short").certificate.read_bytes() != short


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "key of another", "expired"])
def test_an_authority_that_can_not_be_used_is_made_anew(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "authority.key"
    if damage == "expired":
        monkeypatch.setattr("labapp.private.authority.AUTHORITY_DAYS", -0.01)
    old = Authority.open(tmp_path)
    monkeypatch.undo()
    issued = old.issue(HOSTS)
    before = old.certificate.read_bytes()
    if damage == "gone":
        key.unlink()
    elif damage == "key of another":
        key.write_bytes(issued.key.read_bytes())
    elif damage != "expired":
        key.write_bytes(key.read_bytes()[: 0 if damage == "empty" else 150])
    new = Authority.open(tmp_path)
    assert new.certificate.read_bytes() != before
    verify(new, new.issue(HOSTS), HOSTS[0])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"opening the certificate authority in '.*file'"):
        Authority.open(tmp_path / "file")


@pytest.mark.parametrize(
    ("hosts", "days", "trusted", "words"),
    [
        (HOSTS, 30, False, "is not from an authority that is trusted here. Trust that authority"),
        (HOSTS, -1, True, "has expired, or is not valid yet. Look at this machine's clock"),
        (["192.0.2.9"], 30, True, "is for another host. Use the name that it was made for"),
        (["registry.example"], 30, True, "is for another host"),
    ],
)
def test_the_client_says_what_is_wrong_with_a_certificate(
    tmp_path: Path, hosts: list[str], days: float, trusted: bool, words: str
) -> None:
    authority = Authority.open(tmp_path)
    with speaking_tls(authority.issue(hosts, days=days)) as address:
        bundle = authority.certificate if trusted else None
        registry = Registry(address, secure=True, credentials=lambda _: None, certificates=bundle)
        with pytest.raises(RegistryUnreachable, match=words) as caught:
            registry.ping()
    assert address in str(caught.value)


# --- accounts


def test_an_account_is_known_by_its_password(lab: State) -> None:
    accounts = Accounts(lab)
    accounts.add("ann", "correct horse", rights={"shop/*": ("pull", "push")})
    accounts.add("bob", "b" * 72, rights={})
    assert Accounts(lab).names() == ["ann", "bob"]
    assert accounts.verify("ann", "correct horse")
    assert accounts.verify("bob", "b" * 72)
    for name, password in [
        ("ann", "correct"),
        ("ann", ""),
        ("ann", "correct horse\0"),
        ("bob", "b" * 71),
        ("bob", "b" * 73),
        ("eve", "correct horse"),
        ("", ""),
        ("", "correct horse"),
    ]:
        assert not accounts.verify(name, password), (name, password)
    written = "".join(file.read_text() for file in lab.folder.rglob("*.json"))
    assert "correct horse" not in written
    assert "$2b$" in written
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
    lab: State, repository: str, ann: set[str], bob: set[str], nobody: set[str]
) -> None:
    accounts = Accounts(lab)
    accounts.add("ann", "x", rights={"shop/*": ("push", "pull")})
    accounts.add("bob", "x", rights={"*": ["pull"]})
    accounts.add("", rights={"shop/public": ("pull",)})
    for name, rights in {"ann": ann, "bob": bob, "": nobody, "eve": set()}.items():
        assert accounts.allowed(name, repository) == rights, name
    assert [name for name in ("ann", "bob", "", "eve") if accounts.may_list(name)] == ["bob"]


@pytest.mark.parametrize(
    ("name", "password", "rights", "words"),
    [
        ("a:b", "x", {}, "a name has letters, digits"),
        ("-a", "x", {}, "begins with a letter or a digit"),
        ("a" * 65, "x", {}, "64 at most"),
        ("ann", "", {}, "a password can't be empty"),
        ("ann", "a\0b", {}, "a zero byte"),
        ("ann", "ä" * 37, {}, "has 74 bytes, and bcrypt, which keeps it, reads no more than 72"),
        ("", "x", {}, "who does not log in has no password"),
        ("ann", "x", {"shop/*": ("pul",)}, r"\['pul'\] is no right"),
        ("ann", "x", {"shop/*": "pull"}, r"\['pull'\] is no right. Rights are written as"),
        ("ann", "x", {"": ("pull",)}, r"\[''\] is no right"),
    ],
)
def test_an_account_that_can_not_be(
    lab: State, name: str, password: str, rights: dict[str, tuple[str, ...]], words: str
) -> None:
    with pytest.raises(StateError, match=words):
        Accounts(lab).add(name, password, rights=rights)
    assert Accounts(lab).names() == []


def test_an_account_that_is_not_there(lab: State) -> None:
    Accounts(lab).add("ann", "x", rights={})
    with pytest.raises(StateError, match=r"removing the account 'eve': there is none. .*: ann."):
        Accounts(lab).remove("eve")


@pytest.mark.parametrize("content", ["", '{"ann": {"passw', "[]", "\x00\x01"])
def test_a_damaged_file_opens_nothing(lab: State, content: str) -> None:
    accounts = Accounts(lab)
    accounts.add("ann", "x", rights={"*": ("pull",)})
    assert accounts.damaged() == ""
    lab.path("private", "accounts.json").write_text(content)
    assert not accounts.verify("ann", "x")
    assert accounts.allowed("ann", "shop/web") == frozenset()
    accounts.add("bob", "x", rights={})
    assert accounts.names() == ["bob"]


def test_a_damaged_file_is_kept_and_told(lab: State) -> None:
    file = lab.path("private", "accounts.json")
    file.write_text('{"ann": ')
    accounts = Accounts(lab)
    assert accounts.damaged().startswith(f"The accounts' file was damaged, and is now '{file}.d")
    accounts.add("ann", "x", rights={})
    assert accounts.damaged() == ""
    assert file.with_name("accounts.json.damaged").read_text() == '{"ann": '


@pytest.mark.parametrize(
    "entry",
    [
        "x",
        {},
        {"password": 5, "rights": 5},
        {"password": "x", "rights": {"*": 5}},
        {"password": "$2b$04$short", "rights": {"*": "pull", "shop/*": ["fly", 3]}},
        {"password": None, "rights": None},
    ],
)
def test_an_edited_entry_opens_nothing(lab: State, entry: object) -> None:
    lab.write("private/accounts", {"ann": entry})
    accounts = Accounts(lab)
    assert not accounts.verify("ann", "x")
    assert accounts.allowed("ann", "shop/web") == frozenset()
    assert not accounts.may_list("ann")


# --- tokens


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
def test_scopes(texts: list[str], expected: list[Scope]) -> None:
    assert parse_scopes(texts) == expected


@pytest.mark.parametrize(
    "text", ["repository", "repository:a", ":a:pull", "repository::pull", "repository:A B:pull",
             "repository:a:pull,", "repository:a:PULL", "repository:a;b:pull", "x" * 5000]
)  # fmt: skip
def test_scopes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form 'type:name:actions'"):
        parse_scopes([text])


def test_a_grant_is_never_more_than_was_asked() -> None:
    asked = Scope("repository", "shop/web", ("push", "pull"))
    assert asked.granted({"pull", "delete"}).actions == ("pull",)
    assert asked.granted(()).actions == ()


@pytest.mark.parametrize("seconds", [300, -120])
def test_a_token_says_who_what_and_how_long(tmp_path: Path, seconds: float) -> None:
    issued = Authority.open(tmp_path).issue(["tokens.example"])
    signer = Signer(issued.certificate, issued.key)
    access = [Scope("repository", "shop/web", ("pull",))]
    token = signer.sign("ann", access, seconds=seconds)
    public = read(issued.certificate).public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    registry = JWSRegistry(algorithms=["ES256"])
    registry.max_header_length = 4096  # the certificate is in the header
    found = jwt.decode(token.text, ECKey.import_key(pem), registry=registry)
    claims = found.claims
    assert (claims["iss"], claims["aud"], claims["sub"]) == (ISSUER, SERVICE, "ann")
    assert claims["access"] == [{"type": "repository", "name": "shop/web", "actions": ["pull"]}]
    assert claims["exp"] - claims["iat"] == seconds
    assert claims["nbf"] < min(claims["exp"], claims["iat"])
    der = base64.b64decode(found.header["x5c"][0])
    assert x509.load_der_x509_certificate(der) == read(issued.certificate)
    assert token.text not in repr(token)


def test_a_key_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"that signs tokens: .* Start the registry again"):
        Signer(tmp_path / "no.pem", tmp_path / "no.key")


# --- the service's log, and its process


def test_the_log_is_read_back(lab: State, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decisions.read(lab) == []
    decisions.write(lab, Decision("ann", "shop/web", "pull,push", "pull", why="no right to push"))
    with decisions.log_file(lab).open("a") as log:
        log.write('{"account": "ann", "repos\n{"other": 1}\n')
    decisions.write(lab, Decision("a\nb", status=401))
    first, second = decisions.read(lab)
    assert (first.account, first.asked, first.granted) == ("ann", "pull,push", "pull")
    assert datetime.fromisoformat(first.time).tzinfo == UTC
    assert second.account == "a\nb"
    monkeypatch.setattr(decisions, "KEPT_BYTES", 10)
    decisions.write(lab, Decision("bob"))
    assert [one.account for one in decisions.read(lab)] == ["bob"]
    assert "a\\nb" in decisions.log_file(lab).with_name("decisions.log.1").read_text()


@pytest.mark.parametrize("told", [{}, {"pid": "x"}, {"pid": 2**31 - 2}, {"pid": None}])
def test_a_service_that_does_not_run(lab: State, told: dict[str, object]) -> None:
    lab.write(process.SETTINGS, {"host": "127.0.0.1", "port": 1, "tls": False})
    lab.write(process.RUNNING, told)
    assert process.find(lab) is None
    assert process.stop(lab) is False


# --- what an engine says


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ('Get "https://x/v2/": x509: certificate signed by unknown authority', "'certs.d'"),
        ("tls: failed to verify certificate: x509: certificate has expired or is not yet valid: "
         "current time 2026 is after 2025", "renew its certificate"),
        ("x509: certificate is valid for 192.0.2.9, not 10.0.0.1", "is for another host"),
        ("x509: cannot validate certificate for 10.0.0.1 because it doesn't contain any IP SANs",
         "is for another host"),
        ("denied: requested access to the resource is denied", "has no right to that"),
        ("failed to authorize: insufficient_scope: authorization failed", "has no right to that"),
        ("unauthorized: there is no such account", "Log in anew"),
        ('Get "https://x/v2/": dial tcp: lookup x: no such host', "Check the registry's name"),
        ("dial tcp 127.0.0.1:9: connect: connection refused", "no registry listens"),
        ("manifest unknown", ""),
    ],
)  # fmt: skip
def test_an_engines_refusal_comes_with_what_to_do(cause: str, words: str) -> None:
    advice = refusal_advice(cause)
    assert words in advice
    assert bool(advice) == bool(words)
