"""The private registry for real: its engine, its TLS, its accounts, its tokens, and their ends."""

from __future__ import annotations

import io
import os
import re
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
from servers import speaking_tls

from labapp import cli, images, removal
from labapp.bench import Bench
from labapp.engine import Engine
from labapp.errors import InvalidReference, LabError, PullError, PushError, RegistryError
from labapp.feedback import QuietFeedback
from labapp.private import process, trust
from labapp.private.accounts import Accounts
from labapp.private.authority import Authority
from labapp.private.registry import PrivateRegistry
from labapp.private.server import bridge_address
from labapp.private.tokens import SERVICE, Scope, Signer
from labapp.registry import Registry
from labapp.state import ROLE_LABEL, State

SECRET = "ann's own password"


def new(bench: Bench, folder: Path) -> PrivateRegistry:
    """A private registry of a lab of its own, on the engine of all."""
    state = State.open(folder)
    state.write("registry", {"image": bench.state.read("registry")["image"]})
    return PrivateRegistry(engine=bench.engine, state=state, feedback=QuietFeedback())


def at(private: PrivateRegistry) -> State:
    return private._state


def told(private: PrivateRegistry) -> QuietFeedback:
    feedback = private._feedback
    assert isinstance(feedback, QuietFeedback)
    return feedback


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
    if process.find(at(whole)) is None or not whole.server.is_running():
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
    images.remove(engine, reference)


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
    private: PrivateRegistry, engine: Engine, image: str
) -> None:
    private.log_in("ann", SECRET)
    assert private.logged_in == "ann"
    pushed = private.push(image)
    assert list(pushed.layers["outcome"]) == ["sent"]
    assert pushed.digest == client(private, "bob", "bob").resolve("shop/web", "1")
    images.remove(engine, image)

    private.log_in("bob", "bob")
    pulled = private.pull(image)
    assert (pulled.digest, list(pulled.layers["outcome"])) == (pushed.digest, ["fetched"])
    config = at(private).folder / "private" / "docker-config"
    assert f"docker --config {config} push {image}" in told(private).commands
    assert not [line for line in told(private).commands if SECRET in line]

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
    with pytest.raises(RegistryError, match="wants a login for it, or does not have it"):
        client(private).blob_size("shop/public", digest)
    private.accounts.add("", rights={"shop/public": ("pull",)})
    try:
        assert client(private).read_blob("shop/public", digest) == b"for everybody"
        with pytest.raises(RegistryError, match="wants a login"):
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
    asked = private.decisions().iloc[-1]
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
    assert private.logged_in == ""
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


def signer(private: PrivateRegistry) -> Signer:
    folder = private.authority.folder
    return Signer(folder / "tokens.pem", folder / "tokens.key")


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
    mine = signer(private)
    if case.startswith("signed by another"):
        issued = private.authority.issue(["tokens.labapp.invalid"], name="stolen")
        mine = Signer(issued.certificate, issued.key)
    elif case.startswith("signed by an authority"):
        issued = Authority.open(tmp_path).issue(["tokens.labapp.invalid"])
        mine = Signer(issued.certificate, issued.key)
    scope = {
        "for another repository": Scope("repository", "shop/other", ("pull",)),
        "to push only": Scope("repository", "shop/web", ("push",)),
    }.get(case, PULL)
    token = mine.sign("ann", [scope], seconds=-120 if case == "expired" else 300).text
    if case == "edited":
        head, claims, signature = token.split(".")
        token = ".".join(
            [head, claims[:-4] + ("AAAA" if claims[-4:] != "AAAA" else "BBBB"), signature]
        )
    answer = ask(private, token, f"/v2/shop/web/manifests/none-{case.split()[0]}")
    assert answer.status_code == status
    assert (f'error="{error}"' in answer.headers.get("WWW-Authenticate", "")) == bool(error)


def test_a_token_whose_time_is_over(private: PrivateRegistry) -> None:
    registry = client(private, "ann", SECRET)
    private.let_tokens_last(-120)
    try:
        with pytest.raises(RegistryError, match="does not take the token that came with it: its"):
            registry.upload_blob("shop/late", [b"x"])
    finally:
        private.let_tokens_last(300)
    # The client throws it away, and asks for another one.
    assert registry.upload_blob("shop/late", [b"x"])[1] == 1


@pytest.mark.parametrize(
    ("query", "headers", "status", "words"),
    [
        ({"service": SERVICE}, {}, 200, None),
        ({"service": "another"}, {}, 400, "gives tokens for"),
        ({}, {}, 400, "gives tokens for"),
        ({"service": SERVICE, "scope": "nonsense%"}, {}, 400, "the scope 'nonsense%' is not of"),
        ({"service": SERVICE}, {"Authorization": "Basic ???"}, 400, "not of the form 'Basic"),
        ({"service": SERVICE}, {"Authorization": "Bearer abc"}, 400, "not of the form 'Basic"),
        ({"service": SERVICE}, {"Authorization": "Basic ZXZlOng="}, 401, "no such account"),
    ],
)
def test_the_service_answers_as_the_specification_says(
    private: PrivateRegistry,
    query: dict[str, str],
    headers: dict[str, str],
    status: int,
    words: str | None,
) -> None:
    found = process.find(at(private))
    assert found is not None
    with requests.Session() as session:
        session.trust_env = False
        verify = str(private.authority.certificate)
        # An empty one, so that requests looks for none in .netrc.
        answer = session.get(found.realm, params=query, headers=headers, verify=verify, timeout=10)
        assert session.post(found.realm, verify=verify, timeout=10).status_code == 405
    assert answer.status_code == status
    content = answer.json()
    if words is None:
        assert content["token"] == content["access_token"]
        assert content["expires_in"] == 300
        assert re.match(r"\d{4}-\d\d-\d\dT.*\+00:00$", content["issued_at"])
    else:
        assert words in content["errors"][0]["message"]
    assert (answer.headers.get("WWW-Authenticate", "")[:5] == "Basic") == (status == 401)


# --- certificates, and the engine


def test_an_engine_that_does_not_know_the_authority(private: PrivateRegistry, image: str) -> None:
    assert private.verified_by_engine
    private.log_in("ann", SECRET)
    private.push(image)
    private.distrust()
    for act, failure in ((private.push, PushError), (private.pull, PullError)):
        with pytest.raises(failure, match="The engine does not trust the authority that signed"):
            act(image)
    with pytest.raises(RegistryError, match="not from an authority that is trusted here"):
        private.registry("ann", SECRET, trusted=False).ping()
    private.trust()
    [command] = [line for line in told(private).commands if "install" in line][-1:]
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
        trust.add(engine, at(private), address, private.authority.certificate)
        with pytest.raises(PullError, match=words):
            images.pull(engine, None, f"{address}/shop/web:1", feedback=QuietFeedback())


# --- an upload that was cut off


def uploading(private: PrivateRegistry) -> requests.Session:
    """A client of its own, with a token of its own, to upload to ``shop/cut``."""
    access = [Scope("repository", "shop/cut", ("pull", "push"))]
    session = requests.Session()
    session.trust_env = False
    session.verify = str(private.authority.certificate)
    session.headers["Authorization"] = f"Bearer {signer(private).sign('ann', access).text}"
    return session


def test_an_upload_is_resumed_by_another_client_with_another_token(
    private: PrivateRegistry,
) -> None:
    first, rest = os.urandom(3_000_000), os.urandom(2_000_000)
    url = f"https://{private.address}"
    with uploading(private) as one:
        begun = one.post(f"{url}/v2/shop/cut/blobs/uploads/", timeout=10)
        sent = one.patch(
            url + begun.headers["Location"],
            data=first,
            headers={"Content-Range": f"0-{len(first) - 1}"},
            timeout=10,
        )
        assert sent.status_code == 202
    with uploading(private) as other:
        # A new kernel knows the upload's address only.
        asked = other.get(url + sent.headers["Location"], timeout=10)
        assert (asked.status_code, asked.headers["Range"]) == (204, f"0-{len(first) - 1}")
        here = url + asked.headers["Location"]
        more = other.patch(here, data=rest, timeout=10)
        assert more.status_code == 202
    registry = client(private, "ann", SECRET)
    # The blob that it makes is the one that a client makes that was never cut off.
    digest, size = registry.upload_blob("shop/whole", [first, rest])
    with uploading(private) as other:
        end = other.put(url + more.headers["Location"], params={"digest": digest}, timeout=10)
        assert end.status_code == 201
    assert registry.blob_size("shop/cut", digest) == size == 5_000_000


def test_an_upload_that_breaks_off_within_a_piece_has_to_begin_anew(
    private: PrivateRegistry,
) -> None:
    """Distribution 2.8 gives such an upload up; what it has whole is not sent again."""
    host, _, port = private.address.rpartition(":")
    url, content = f"https://{private.address}", os.urandom(1_000_000)
    with uploading(private) as session:
        begun = session.post(f"{url}/v2/shop/cut/blobs/uploads/", timeout=10)
        location = begun.headers["Location"]
        head = (
            f"PATCH {location} HTTP/1.1\r\nHost: {private.address}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n"
            f"Authorization: {session.headers['Authorization']!s}\r\n\r\n"
        )
        tls = ssl.create_default_context(cafile=str(private.authority.certificate))
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            tls.wrap_socket(plain, server_hostname=host) as wire,
        ):
            wire.sendall(head.encode() + content[:400_000])
        wait_for(lambda: session.get(url + location, timeout=10).status_code == 404)
    registry = client(private, "ann", SECRET)
    digest, size = registry.upload_blob("shop/cut", [content])
    assert registry.blob_size("shop/cut", digest) == size == len(content)


def test_an_upload_that_is_cut_off_can_be_done_again_and_leaves_nothing(
    private: PrivateRegistry,
) -> None:
    registry = client(private, "ann", SECRET)
    content = [os.urandom(9_000_000), os.urandom(1_000)]

    def cut() -> Iterator[bytes]:
        yield content[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.upload_blob("shop/again", cut())
    digest, size = registry.upload_blob("shop/again", content)
    assert registry.blob_size("shop/again", digest) == size
    # To cancel an upload is to delete, which this account may not; the next start does it.
    repository = "/var/lib/registry/docker/registry/v2/repositories/shop/again"
    find = ["find", repository, "-name", "startedat"]
    assert len(private.server.storage(find).splitlines()) == 1
    private.stop()
    private.start()
    assert private.server.storage(find) == ""


# --- what dies, and comes back


def test_a_token_service_that_was_killed(private: PrivateRegistry, image: str) -> None:
    found = process.find(at(private))
    assert found is not None
    psutil.Process(found.pid).kill()
    wait_for(lambda: process.find(at(private)) is None)
    with pytest.raises(RegistryError, match=r"asking the token service of .*: connection refused"):
        client(private, "ann", SECRET).tags("shop/web")
    for act in (private.push, private.pull):
        with pytest.raises(RegistryError, match=r"is down \(its token service does not run\)"):
            act(image)
    address = private.address
    private.start()
    again = process.find(at(private))
    assert again is not None
    assert (again.realm, private.address) == (found.realm, address)
    private.log_in("ann", SECRET)
    private.push(image)


def test_another_kernel_finds_all_of_it(private: PrivateRegistry, bench: Bench) -> None:
    client(private, "ann", SECRET).upload_blob("shop/kept", [b"kept"])
    before = process.find(at(private)), private.address
    again = new(bench, at(private).folder)
    again.start()
    assert (process.find(at(again)), again.address) == before
    assert again.accounts.names() == private.accounts.names()

    private.stop()
    assert process.find(at(private)) is None
    assert not private.server.is_running()
    again.start()
    assert again.address == private.address
    assert client(again, "bob", "bob").blob_size("shop/kept", "sha256:" + KEPT) == 4


KEPT = "79f076abdd19a752db7267bfff2f9022161d120dea919fdaca2ffdfc24ca8c96"


def test_a_number_that_another_process_has_by_now(private: PrivateRegistry) -> None:
    told = at(private).read(process.RUNNING)
    at(private).write(process.RUNNING, {**told, "pid": os.getpid()})
    assert process.find(at(private)) is None
    assert process.stop(at(private)) is False, "it would have ended this very process"
    private.start()
    assert process.find(at(private)) is not None
    # The one that nobody knows of any more ends by itself.
    wait_for(lambda: not psutil.pid_exists(told["pid"]) or is_dead(told["pid"]), seconds=15)


def test_certificates_that_end_soon_are_replaced(private: PrivateRegistry) -> None:
    old = (private.authority.folder / "server.pem").read_bytes()
    hosts = [bridge_address(private._engine), "127.0.0.1", "localhost"]
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
    with pytest.raises(RegistryError, match="not from an authority that is trusted here"):
        Registry(private.address, secure=True, credentials=lambda _: None, certificates=old).ping()


def wait_for(holds: Callable[[], bool], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """As with an engine in a virtual machine; the containerd store asks for tokens without TLS."""
    monkeypatch.setattr("labapp.private.server.bridge_address", lambda engine: "127.0.0.1")
    other = replace(bench, engine=replace(bench.engine, store=store))
    private = new(other, tmp_path)
    with pytest.raises(RegistryError, match="the private registry: it has never been started"):
        private.log_in("ann", SECRET)
    try:
        private.start()
        assert not private.verified_by_engine
        assert any("Docker takes any certificate" in line for line in told(private).lines)
        assert any("without TLS" in line for line in told(private).lines) == (store == "containerd")
        found = process.find(at(private))
        assert found is not None
        assert found.realm.startswith("http:" if store == "containerd" else "https:")
        private.accounts.add("ann", SECRET, rights={"shop/*": ("pull", "push")})
        with pytest.raises(RegistryError, match="not from an authority that is trusted here"):
            private.registry("ann", SECRET, trusted=False).ping()
        client(private, "ann", SECRET).upload_blob("shop/web", [b"x"])
        with pytest.raises(RegistryError, match="'ann' may not do that"):
            client(private, "ann", SECRET).upload_blob("team/web", [b"x"])
        name = f"{private.address}/shop/web:1"
        image_of(bench.engine, name)
        private.log_in("ann", SECRET)
        private.push(name)
        images.remove(bench.engine, name)
        assert private.pull(name).digest
        images.remove(bench.engine, name)
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
    found = process.find(state)
    assert found is not None
    api = bench.engine.client.api
    ca = f"{trust.SYSTEM}/{address}/ca.crt"
    monkeypatch.setenv("LABAPP_STATE", str(state.folder))
    cli.main(["status"])
    assert f"private registry      lets accounts in; its token service is {found.realm}" in (
        capsys.readouterr().out
    )
    assert cli.main(["stop"]) == 0
    assert is_dead(found.pid)
    assert not private.server.is_running()
    cli.main(["status"])
    assert "private registry      is stopped" in capsys.readouterr().out
    private.start()
    found = process.find(state)
    assert found is not None

    plan = removal.plan(state, feedback=QuietFeedback())
    lines = plan.lines()
    assert f"the engine's trust in '{ca}'" in lines
    assert {f"container {name}", f"volume {name}"} <= set(lines)
    assert removal.carry_out(plan, feedback=QuietFeedback()) == []
    assert not api.containers(all=True, filters={"name": name})
    assert not api.volumes(filters={"name": name})["Volumes"]
    assert is_dead(found.pid)
    assert not (state.folder / "private").exists()
    with pytest.raises(LabError):
        images.pull(bench.engine, None, f"{address}/shop/web:1", feedback=QuietFeedback())
    volume = {trust.SYSTEM: {"bind": "/certs", "mode": "ro"}}
    listed = bench.engine.client.containers.run(
        bench.state.read("registry")["image"],
        entrypoint=["ls", "/certs"],
        labels={**bench.state.labels, ROLE_LABEL: "oneshot"},
        volumes=volume,
        remove=True,
    )
    assert address not in listed.decode()
