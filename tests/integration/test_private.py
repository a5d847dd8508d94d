"""The private registry for real: its engine, its TLS, its accounts, its tokens, and their ends."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from servers import speaking_tls

from labapp import cli, reset
from labapp.bench import Bench
from labapp.errors import InvalidReference, LabError, PullError, PushError, RegistryError
from labapp.feedback import QuietFeedback, using
from labapp.journey import transfer
from labapp.machine.engine import Engine
from labapp.private import registry as trust
from labapp.private import service
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority, Issued
from labapp.private.registry import PrivateRegistry, bridge_address
from labapp.private.service import Scope, sign
from labapp.registry.client import Registry
from labapp.state import ROLE_LABEL, State

SECRET = "ann's own password"


def new(bench: Bench, folder: Path) -> PrivateRegistry:
    """A private registry of a lab of its own, on the engine of all."""
    state = State.open(folder)
    state.write("registry", {"image": bench.state.read("registry")["image"]})
    return PrivateRegistry(engine=bench.engine, state=state)


def at(private: PrivateRegistry) -> State:
    return State.open(private.authority.folder.parent)


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    private = new(bench, tmp_path_factory.mktemp("private"))
    private.start()
    try:
        private.accounts.add("ann", SECRET, rights={"shop/*": ("pull", "push")})
        private.accounts.add("bob", "bob", rights={"shop/*": ("pull",)})
        yield private
    finally:
        private.remove()


@pytest.fixture
def private(whole: PrivateRegistry) -> PrivateRegistry:
    """The registry with its engine's trust, and nobody logged in."""
    if service.find(at(whole)) is None or not whole.server.is_running():
        whole.start()
    if not trust.trusted(at(whole)):
        whole.trust()
    whole.log_out()
    return whole


@pytest.fixture
def image(engine: Engine, private: PrivateRegistry) -> Iterator[str]:
    """An image on the engine, of bytes that no registry has, named for ``shop/web``."""
    reference = f"{private.address}/shop/web:1"
    image_of(engine, reference)
    yield reference
    transfer.remove(engine, reference)


def image_of(engine: Engine, reference: str) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = 200_000
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    name, _, tag = reference.rpartition(":")
    engine.client.api.import_image_from_data(content.getvalue(), repository=name, tag=tag)


def client(private: PrivateRegistry, name: str = "", password: str = "") -> Registry:
    return private.registry(name, password)


# --- the right ways


def test_one_account_pushes_another_pulls(
    feedback: QuietFeedback, private: PrivateRegistry, engine: Engine, image: str
) -> None:
    private.log_in("ann", SECRET)
    pushed = private.push(image)
    assert list(pushed.layers["outcome"]) == ["sent"]
    assert pushed.digest == client(private, "bob", "bob").resolve("shop/web", "1")
    transfer.remove(engine, image)

    private.log_in("bob", "bob")
    pulled = private.pull(image)
    assert (pulled.digest, list(pulled.layers["outcome"])) == (pushed.digest, ["fetched"])
    config = at(private).folder / "private" / "docker-config"
    assert f"docker --config {config} push {image}" in feedback.commands
    assert not [line for line in feedback.commands if SECRET in line]

    rows = private.decisions()
    assert str(rows["time"].dt.tz) == "UTC"
    seen = rows[rows["repository"] == "shop/web"][["account", "granted"]].drop_duplicates()
    assert {("ann", "pull,push"), ("bob", "pull")} <= {
        (row.account, ",".join(sorted(row.granted.split(",")))) for row in seen.itertuples()
    }


def test_the_docker_command_does_the_same(
    private: PrivateRegistry, engine: Engine, image: str, tmp_path: Path
) -> None:
    environment = {**engine.environment(), "DOCKER_CONFIG": str(tmp_path / "the user's own")}
    config = tmp_path / "config"

    def docker(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        argv = ["docker", "--config", str(config), *words]
        return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True)

    assert "denied" in docker("push", image).stderr
    login = ("login", "--username", "ann", "--password-stdin", private.address)
    assert docker(*login, text="wrong").returncode != 0
    assert docker(*login, text=SECRET).returncode == 0
    assert docker("push", image).returncode == 0
    # What the lab writes is read by docker, and the user's own configuration stays as it was.
    private.log_in("bob", "bob")
    config = at(private).folder / "private" / "docker-config"
    assert docker("pull", image).returncode == 0
    assert "denied" in docker("push", image).stderr
    assert not (tmp_path / "the user's own").exists()


def test_a_plain_client_reads_what_the_anonymous_account_may(private: PrivateRegistry) -> None:
    digest, _ = client(private, "ann", SECRET).upload_blob("shop/public", [b"for everybody"])
    with pytest.raises(RegistryError, match="shop/public"):
        client(private).blob_size("shop/public", digest)
    private.accounts.add("", rights={"shop/public": ("pull",)})
    try:
        assert client(private).read_blob("shop/public", digest) == b"for everybody"
        with pytest.raises(RegistryError, match="shop/public"):
            client(private).upload_blob("shop/public", [b"by nobody"])
    finally:
        private.accounts.remove("")


def test_who_may_pull_all_may_list_all(private: PrivateRegistry) -> None:
    private.accounts.add("root", "root", rights={"*": ("pull", "delete")})
    client(private, "ann", SECRET).upload_blob("shop/listed", [b"x"])
    assert "shop/listed" in client(private, "root", "root").repositories()
    with pytest.raises(RegistryError, match="'ann' may not do that"):
        client(private, "ann", SECRET).repositories()


# --- who is not let in


@pytest.mark.parametrize(
    ("name", "password", "words"),
    [
        ("", "", "has no right to that, or nobody is logged in. Log in with 'docker login'"),
        ("bob", "bob", "has no right to that, or nobody is logged in. .* ask the repository's own"),
    ],
)
def test_the_engine_pushes_nothing_without_the_right(
    private: PrivateRegistry, image: str, name: str, password: str, words: str
) -> None:
    if name:
        private.log_in(name, password)
    with pytest.raises(PushError, match=words) as caught:
        private.push(image)
    assert "denied" in str(caught.value)
    rows = private.decisions()
    asked = rows[rows["repository"] != ""].iloc[-1]
    assert asked["account"] == name
    assert "no right to" in asked["why"]
    assert "push" in asked["why"]


@pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("eve", SECRET), ("ann", "")])
def test_a_wrong_login_is_told_at_once_and_not_kept(
    private: PrivateRegistry, name: str, password: str
) -> None:
    words = f"logging in as '{name}' at '{private.address}': there is no such account, or its pass"
    with pytest.raises(RegistryError, match=words):
        private.log_in(name, password)
    asked = private.decisions().iloc[-1]
    assert (asked["account"], asked["status"], asked["granted"]) == (name, 401, "")


@pytest.mark.parametrize(
    ("name", "password", "act", "words"),
    [
        (
            "ann",
            "wrong",
            "read shop/web",
            "does not take the login of 'ann': it knows no such account, or",
        ),
        ("eve", "x", "read shop/web", "does not take the login of 'eve'"),
        ("", "", "read shop/web", "wants a login for it, or does not have it"),
        ("bob", "bob", "write shop/web", "'bob' may not do that at .* or ask the repository's own"),
        ("bob", "bob", "read team/web", "'bob' may not do that at"),
        ("ann", SECRET, "write team/web", "'ann' may not do that at"),
        ("", "", "write shop/web", "wants a login for it"),
    ],
)
def test_the_client_says_why_it_is_not_let_in(
    private: PrivateRegistry, name: str, password: str, act: str, words: str
) -> None:
    registry = client(private, name, password)
    verb, repository = act.split()
    with pytest.raises(RegistryError, match=words) as caught:
        if verb == "read":
            registry.tags(repository)
        else:
            registry.upload_blob(repository, [b"x"])
    assert repository in str(caught.value)


def test_an_image_of_another_registry_gets_no_login(private: PrivateRegistry) -> None:
    with pytest.raises(InvalidReference, match=r"it is in 'localhost:1'. Write it as"):
        private.push("localhost:1/shop/web:1")


# --- tokens


def issued_in(folder: Path) -> Issued:
    """What the lab signs its tokens with."""
    return Issued(folder / "tokens.pem", folder / "tokens.key")


def ask(private: PrivateRegistry, token: str, path: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(
            f"https://{private.address}{path}",
            headers={"Authorization": f"Bearer {token}"},
            verify=str(private.authority.certificate),
            timeout=10,
        )


PULL = Scope("repository", "shop/web", ("pull",))


@pytest.mark.parametrize(
    ("case", "status", "error"),
    [
        ("good", 404, ""),
        ("expired", 401, "invalid_token"),
        ("for another repository", 401, "insufficient_scope"),
        ("to push only", 401, "insufficient_scope"),
        ("signed by another certificate of the same authority", 401, "invalid_token"),
        ("signed by an authority of another lab", 401, "invalid_token"),
        ("edited", 401, "invalid_token"),
    ],
)
def test_what_the_registry_says_to_a_token(
    private: PrivateRegistry, tmp_path: Path, case: str, status: int, error: str
) -> None:
    mine = issued_in(private.authority.folder)
    if case.startswith("signed by another"):
        issued = private.authority.issue(["tokens.labapp.invalid"], name="stolen")
        mine = issued
    elif case.startswith("signed by an authority"):
        issued = Authority.open(tmp_path).issue(["tokens.labapp.invalid"])
        mine = issued
    scope = {
        "for another repository": Scope("repository", "shop/other", ("pull",)),
        "to push only": Scope("repository", "shop/web", ("push",)),
    }.get(case, PULL)
    token = sign(mine, "ann", [scope], seconds=-120 if case == "expired" else 300)
    if case == "edited":
        head, claims, signature = token.split(".")
        token = ".".join(
            [head, claims[:-4] + ("AAAA" if claims[-4:] != "AAAA" else "BBBB"), signature]
        )
    answer = ask(private, token, f"/v2/shop/web/manifests/none-{case.split()[0]}")
    assert answer.status_code == status
    assert (f'error="{error}"' in answer.headers.get("WWW-Authenticate", "")) == bool(error)


# --- certificates, and the engine


def test_an_engine_that_does_not_know_the_authority(
    feedback: QuietFeedback, private: PrivateRegistry, image: str
) -> None:
    assert private.verified_by_engine
    private.log_in("ann", SECRET)
    private.push(image)
    private.distrust()
    for act, failure in ((private.push, PushError), (private.pull, PullError)):
        with pytest.raises(failure, match=r"certs\.d"):
            act(image)
    with pytest.raises(RegistryError, match=private.address):
        private.registry("ann", SECRET, trusted=False).ping()
    private.trust()
    [command] = [line for line in feedback.commands if "install" in line][-1:]
    assert command.endswith(f"{trust.SYSTEM}/{private.address}/ca.crt")
    assert private.pull(image).digest


@pytest.mark.parametrize(
    ("hosts", "days", "words"),
    [
        (None, -1, "has expired or is not yet valid.* renew its certificate"),
        (["192.0.2.9"], 30, "The certificate is for another host"),
    ],
)
def test_an_engine_refuses_a_certificate_of_another_time_or_host(
    private: PrivateRegistry,
    engine: Engine,
    hosts: list[str] | None,
    days: float,
    words: str,
) -> None:
    host = bridge_address(engine)
    issued = private.authority.issue(hosts or [host], name="another", days=days)
    with speaking_tls(issued, host=host) as address:
        trust.trust(engine, at(private), address, private.authority.certificate)
        with pytest.raises(PullError, match=words):
            transfer.pull(engine, None, f"{address}/shop/web:1")


# --- an upload that was cut off


# --- what dies, and comes back


def test_a_token_service_that_ended_with_its_kernel(private: PrivateRegistry, image: str) -> None:
    realm, address = service.find(at(private)), private.address
    service.stop(at(private))
    with pytest.raises(RegistryError, match="token service"):
        client(private, "ann", SECRET).tags("shop/web")
    for act in (private.push, private.pull):
        with pytest.raises(RegistryError, match="token service"):
            act(image)
    private.start()
    assert (service.find(at(private)), private.address) == (realm, address)
    private.log_in("ann", SECRET)
    private.push(image)


def test_another_kernel_finds_all_of_it(private: PrivateRegistry, bench: Bench) -> None:
    client(private, "ann", SECRET).upload_blob("shop/kept", [b"kept"])
    before = service.find(at(private)), private.address
    again = new(bench, at(private).folder)
    again.start()
    assert (service.find(at(again)), again.address) == before
    assert again.accounts.names() == private.accounts.names()

    private.stop()
    assert service.find(at(private)) is None
    assert not private.server.is_running()
    again.start()
    assert again.address == private.address
    assert client(again, "bob", "bob").blob_size("shop/kept", "sha256:" + KEPT) == 4


KEPT = "79f076abdd19a752db7267bfff2f9022161d120dea919fdaca2ffdfc24ca8c96"


def test_certificates_that_end_soon_are_replaced(private: PrivateRegistry) -> None:
    old = (private.authority.folder / "server.pem").read_bytes()
    hosts = [private.host, "127.0.0.1", "localhost"]
    private.authority.issue(hosts, name="server", days=-1)
    private.start()
    assert (private.authority.folder / "server.pem").read_bytes() != old
    client(private, "ann", SECRET).ping()


def test_a_new_authority_wants_new_trust(private: PrivateRegistry, tmp_path: Path) -> None:
    old = tmp_path / "old.pem"
    old.write_bytes(private.authority.certificate.read_bytes())
    (private.authority.folder / "authority.key").write_bytes(b"damaged")
    private.start()
    client(private, "ann", SECRET).ping()
    private.trust()
    with pytest.raises(RegistryError, match=private.address):
        Registry(private.address, secure=True, credentials=lambda _: None, certificates=old).ping()


# --- the accounts' file


def test_a_damaged_accounts_file_lets_nobody_in(private: PrivateRegistry) -> None:
    file = at(private).path("private", "accounts.json")
    kept = file.read_bytes()
    file.write_bytes(kept[:40])
    try:
        with pytest.raises(
            RegistryError, match=r"The accounts' file was damaged, and is now '.*': there are no"
        ):
            private.log_in("ann", SECRET)
        private.accounts.add("ann", "new", rights={})
        private.log_in("ann", "new")
    finally:
        file.write_bytes(kept)
    private.log_in("ann", SECRET)


def test_two_processes_add_accounts_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from labapp.private import accounts; from labapp.state import State\n"
        "from pathlib import Path\n"
        "accounts.ROUNDS = 4\n"
        "all = accounts.Accounts(State.open(Path(sys.argv[1])))\n"
        "for i in range(40): all.add(f'{sys.argv[2]}{i}', 'x', rights={})\n"
    )
    state = State.open(tmp_path)
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [one.wait(60) for one in running] == [0, 0]
    assert len(Accounts(state).names()) == 80


def test_the_password_is_written_nowhere_but_for_the_login(private: PrivateRegistry) -> None:
    private.log_in("ann", SECRET)
    private.log_out()
    folder = at(private).folder
    found = [file for file in folder.rglob("*") if file.is_file() and SECRET in text_of(file)]
    assert found == []
    assert SECRET not in private.server.logs().decode("utf-8", "replace")


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


# --- other engines


@pytest.mark.parametrize("store", ["classic", "containerd"])
def test_where_the_engine_has_no_address_here(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
) -> None:
    """As with an engine in a virtual machine; the containerd store asks for tokens without TLS."""
    monkeypatch.setattr("labapp.private.registry.bridge_address", lambda engine: "127.0.0.1")
    other = replace(bench, engine=replace(bench.engine, store=store))
    private = new(other, tmp_path)
    with pytest.raises(RegistryError, match="labapp-private"):
        private.log_in("ann", SECRET)
    try:
        with using(QuietFeedback()) as told:
            private.start()
        assert not private.verified_by_engine
        assert any("any certificate" in line for line in told.lines)
        assert any("without TLS" in line for line in told.lines) == (store == "containerd")
        realm = service.find(at(private)) or ""
        assert realm.startswith("http:" if store == "containerd" else "https:")
        private.accounts.add("ann", SECRET, rights={"shop/*": ("pull", "push")})
        with pytest.raises(RegistryError, match=private.address):
            private.registry("ann", SECRET, trusted=False).ping()
        client(private, "ann", SECRET).upload_blob("shop/web", [b"x"])
        with pytest.raises(RegistryError, match="'ann' may not do that"):
            client(private, "ann", SECRET).upload_blob("team/web", [b"x"])
        name = f"{private.address}/shop/web:1"
        image_of(bench.engine, name)
        private.log_in("ann", SECRET)
        private.push(name)
        transfer.remove(bench.engine, name)
        assert private.pull(name).digest
        transfer.remove(bench.engine, name)
    finally:
        private.remove()
    assert not (tmp_path / "private").exists()


# --- the end


def test_reset_takes_all_of_it_away(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DOCKER_HOST", bench.engine.host)
    private = new(bench, tmp_path / "lab")
    private.start()
    private.trust()
    private.accounts.add("ann", "x", rights={})
    address, name, state = private.address, private.server.name, at(private)
    realm = service.find(state)
    assert realm
    api = bench.engine.client.api
    ca = f"{trust.SYSTEM}/{address}/ca.crt"
    monkeypatch.setenv("LABAPP_STATE", str(state.folder))
    cli.main(["status"])
    assert f"private registry      lets accounts in; its token service is {realm}" in (
        capsys.readouterr().out
    )
    assert cli.main(["stop"]) == 0
    assert service.find(state) is None
    assert not private.server.is_running()
    cli.main(["status"])
    assert "private registry      is stopped" in capsys.readouterr().out
    private.start()
    realm = service.find(state)
    assert realm

    plan = reset.plan(state)
    lines = plan.lines()
    assert f"the engine's trust in '{ca}'" in lines
    assert {f"container {name}", f"volume {name}"} <= set(lines)
    assert reset.carry_out(plan) == []
    assert not api.containers(all=True, filters={"name": name})
    assert not api.volumes(filters={"name": name})["Volumes"]
    assert service.find(state) is None
    assert not (state.folder / "private").exists()
    with pytest.raises(LabError):
        transfer.pull(bench.engine, None, f"{address}/shop/web:1")
    volume = {trust.SYSTEM: {"bind": "/certs", "mode": "ro"}}
    listed = bench.engine.client.containers.run(
        bench.state.read("registry")["image"],
        entrypoint=["ls", "/certs"],
        labels={**bench.state.labels, ROLE_LABEL: "oneshot"},
        volumes=volume,
        remove=True,
    )
    assert address not in listed.decode()
