"""The private registry for real: its engine, its TLS, its accounts, its tokens, and their ends."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from labapp import cli, reset
from labapp.bench import Bench
from labapp.errors import InvalidReference, PullError, PushError, RegistryError
from labapp.feedback import QuietFeedback, using
from labapp.journey import transfer
from labapp.machine.engine import Engine, tar_of
from labapp.machine.ports import LOOPBACK
from labapp.private import registry as trust
from labapp.private import service
from labapp.private.registry import PrivateRegistry, make_certificates
from labapp.private.service import Scope, sign
from labapp.registry.client import Registry
from labapp.registry.server import STORAGE
from labapp.state import State

SECRET = "ann's own password"


def new(bench: Bench, folder: Path) -> PrivateRegistry:
    """A private registry of a lab of its own, on the engine of all."""
    state = State.open(folder)
    state.write("registry", {"image": bench.state.read("registry")["image"]})
    return PrivateRegistry(engine=bench.engine, state=state)


def at(private: PrivateRegistry) -> State:
    return State.open(private.authority.parents[2])


def remove(engine: Engine, state: State) -> None:
    """Remove all that such a lab made."""
    things = tuple(reset.things(engine, state))
    assert reset.carry_out(reset.Plan(state, engine, things, (state.folder / "private",))) == []


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    private = new(bench, tmp_path_factory.mktemp("private"))
    private.start()
    private.accounts.add("ann", SECRET, rights={"shop/*": ("pull", "push")})
    private.accounts.add("bob", "bob", rights={"shop/*": ("pull",)})
    yield private
    remove(bench.engine, at(private))


@pytest.fixture
def private(whole: PrivateRegistry) -> PrivateRegistry:
    """The registry with its engine's trust, and nobody logged in."""
    if service.find(at(whole)) is None or not whole.server.is_running():
        whole.start()
    if not trust.trusted(at(whole)):
        whole.trust()
    at(whole).write("private/docker-config/config", {})
    return whole


@pytest.fixture
def image(engine: Engine, private: PrivateRegistry) -> Iterator[str]:
    """An image on the engine, of bytes that no registry has, named for ``shop/web``."""
    reference = f"{private.address}/shop/web:1"
    image_of(engine, reference)
    yield reference
    transfer.remove(engine, reference)


def image_of(engine: Engine, reference: str) -> None:
    name, _, tag = reference.rpartition(":")
    content = tar_of({"data": os.urandom(200_000)})
    engine.client.api.import_image_from_data(content, repository=name, tag=tag)


def test_one_account_pushes_another_pulls(
    feedback: QuietFeedback, private: PrivateRegistry, engine: Engine, image: str
) -> None:
    private.log_in("ann", SECRET)
    # The login is for this registry alone.
    with pytest.raises(InvalidReference, match="'localhost:1'"):
        private.push("localhost:1/shop/web:1")
    pushed = private.push(image)
    assert list(pushed.layers["outcome"]) == ["sent"]
    assert pushed.digest == private.registry("bob", "bob").resolve("shop/web", "1")
    transfer.remove(engine, image)
    private.log_in("bob", "bob")
    pulled = private.pull(image)
    assert (pulled.digest, list(pulled.layers["outcome"])) == (pushed.digest, ["fetched"])
    config = at(private).folder / "private" / "docker-config"
    assert f"docker --config {config} push {image}" in feedback.commands

    rows = private.decisions()
    rows = rows[rows["repository"] == "shop/web"]
    granted = {(row.account, frozenset(row.granted.split(","))) for row in rows.itertuples()}
    assert {("ann", frozenset({"pull", "push"})), ("bob", frozenset({"pull"}))} <= granted
    # A password is written nowhere but for the login.
    at(private).write("private/docker-config/config", {})
    files = [file.read_bytes() for file in at(private).folder.rglob("*") if file.is_file()]
    written = [*files, private.server.logs(), "\n".join(feedback.commands).encode()]
    assert not [text for text in written if SECRET.encode() in text]


def test_the_docker_command_does_the_same(
    feedback: QuietFeedback, private: PrivateRegistry, engine: Engine, image: str, tmp_path: Path
) -> None:
    mine = tmp_path / "the user's own"
    environment = {**engine.environment(), "DOCKER_CONFIG": str(mine)}

    def docker(config: Path, *words: str, text: str = "") -> str:
        argv = ["docker", "--config", str(config), *words]
        ran = subprocess.run(argv, env=environment, input=text, capture_output=True, text=True)
        return ran.stderr if ran.returncode else ""

    login = ("login", "--username", "ann", "--password-stdin", private.address)
    assert docker(tmp_path, *login, text="wrong")
    # The line that is told can be run as it is, also in a cell.
    private.log_in("ann", SECRET)
    told = {**engine.environment(), "PASSWORD": SECRET}
    subprocess.run(feedback.commands[-1], shell=True, env=told, check=True)
    assert docker(tmp_path, *login, text=SECRET) == docker(tmp_path, "push", image) == ""
    # What the lab writes is read by docker, and the user's own configuration stays as it was.
    private.log_in("bob", "bob")
    config = at(private).folder / "private" / "docker-config"
    assert docker(config, "pull", image) == ""
    # The containerd store sends nothing where the tag is that already, and needs no right to.
    other = f"{image}.1"
    assert docker(config, "tag", image, other) == ""
    assert re.search("denied|insufficient_scope", docker(config, "push", other))
    transfer.remove(engine, other)
    assert not mine.exists()


def test_the_engine_pushes_nothing_without_the_right(private: PrivateRegistry, image: str) -> None:
    for name in ("", "bob"):
        if name:
            private.log_in(name, name)
        with pytest.raises(PushError, match=r"denied.*no right to that"):
            private.push(image)
        rows = private.decisions()
        asked = rows[rows["repository"] != ""].iloc[-1]
        assert asked["account"] == name
        assert "push" in asked["why"]


def test_an_engine_that_has_no_address_here_and_does_not_reach_the_token_service(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    # As in a virtual machine: published ports lead there, and nothing of it leads here.
    answer = service._Handler.do_GET

    def answer_this_side(asked: service._Handler) -> None:
        here = asked.headers["User-Agent"].startswith(("labapp", "python-requests"))
        answer(asked) if here else asked.connection.close()

    monkeypatch.setattr(service._Handler, "do_GET", answer_this_side)
    monkeypatch.setattr(trust, "bridge_address", lambda *_: LOOPBACK)
    private = new(bench, tmp_path / "state")
    with pytest.raises(RegistryError, match="labapp-private"):
        private.log_in("ann", "ann")
    with using(QuietFeedback()) as told:
        private.start()
    assert any("any certificate" in line for line in told.lines)
    with pytest.raises(RegistryError, match=private.address):
        Registry(private.address, secure=True).ping()
    image = f"{private.address}/shop/web:1"
    try:
        image_of(engine, image)
        for name, rights in {"ann": ("pull", "push"), "bob": ("pull",)}.items():
            private.accounts.add(name, name, rights={"shop/*": rights})
        with pytest.raises(RegistryError, match="does not let 'ann' do that"):
            private.registry("ann", "ann").upload_blob("team/web", [b"x"])
        private.log_in("ann", "ann")
        assert list(private.push(image).layers["outcome"]) == ["sent"]
        private.log_in("bob", "bob")
        assert private.pull(image).reference.tag == "1"
        image_of(engine, image)
        with pytest.raises(PushError, match="no right to that"):
            private.push(image)
    finally:
        transfer.remove(engine, image)
        remove(engine, at(private))


def test_a_wrong_login_is_told_at_once_and_not_kept(private: PrivateRegistry) -> None:
    for name, password in (("ann", "wrong"), ("eve", SECRET), ("ann", "")):
        with pytest.raises(RegistryError, match=f"'{name}' at '{private.address}'"):
            private.log_in(name, password)
        assert at(private).read("private/docker-config/config") == {}


def test_what_the_registry_says_to_a_token(private: PrivateRegistry, tmp_path: Path) -> None:
    make_certificates(tmp_path, private.host)
    mine, foreign = private.authority.with_name("tokens.pem"), tmp_path / "tokens.pem"
    url = f"https://{private.address}/v2/shop/web/manifests/none"
    for signer, action, seconds, status, error in [
        (mine, "pull", 300, 404, ""),
        (mine, "pull", -120, 401, "invalid_token"),
        (mine, "push", 300, 401, "insufficient_scope"),
        # Another certificate of the same authority, and one of an authority of another lab.
        (mine.with_name("server.pem"), "pull", 300, 401, "invalid_token"),
        (foreign, "pull", 300, 401, "invalid_token"),
    ]:
        token = sign(signer, "ann", [Scope("repository", "shop/web", (action,))], seconds=seconds)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(private.authority)
            answer = session.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10)
        assert answer.status_code == status
        assert (f'error="{error}"' in answer.headers.get("WWW-Authenticate", "")) == bool(error)


def test_an_engine_that_does_not_know_the_authority(
    feedback: QuietFeedback, private: PrivateRegistry, image: str
) -> None:
    private.log_in("ann", SECRET)
    private.push(image)
    private.distrust()
    for act, failure in ((private.push, PushError), (private.pull, PullError)):
        with pytest.raises(failure, match=r"certs\.d"):
            act(image)
    private.trust()
    [command] = [line for line in feedback.commands if "install" in line][-1:]
    assert command.endswith(f"{trust.SYSTEM}/{private.address}/ca.crt")
    assert private.pull(image).digest


def test_a_token_service_that_ended_with_its_kernel(
    private: PrivateRegistry, bench: Bench, image: str
) -> None:
    digest, _ = private.registry("ann", SECRET).upload_blob("shop/kept", [b"kept"])
    address = private.address
    service.stop(at(private))
    with pytest.raises(RegistryError, match="token service"):
        private.registry("ann", SECRET).tags("shop/web")
    for act in (private.push, private.pull):
        with pytest.raises(RegistryError, match="token service"):
            act(image)
    # Another kernel finds all of it, twice.
    again = new(bench, at(private).folder)
    for _ in range(2):
        again.start()
        assert (service.find(at(again)) is None, again.address) == (False, address)
    assert again.accounts.names() == private.accounts.names()
    again.log_in("ann", SECRET)
    again.push(image)

    private.stop()
    assert service.find(at(private)) is None
    assert not private.server.is_running()
    again.start()
    assert again.address == address
    assert again.registry("bob", "bob").blob_size("shop/kept", digest) == 4


def test_reset_takes_all_of_it_away(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    private = new(bench, tmp_path / "lab")
    private.start()
    private.trust()
    name, address, state = private.server.name, private.address, at(private)
    monkeypatch.setenv("DOCKER_HOST", bench.engine.host)
    monkeypatch.setenv("LABAPP_STATE", str(state.folder))
    cli.main(["status"])
    assert f"its token service is {service.find(state)}" in capsys.readouterr().out
    assert cli.main(["stop"]) == 0
    assert (service.find(state), private.server.is_running()) == (None, False)
    cli.main(["status"])
    assert "token service" not in capsys.readouterr().out
    private.start()

    made = {f"container {name}", f"volume {name}"}
    made.add(f"the engine's trust in '{trust.SYSTEM}/{address}/ca.crt'")
    plan = reset.plan(state)
    assert made <= set(plan.lines())
    assert reset.carry_out(plan) == []
    assert not made & set(reset.plan(state).lines())
    assert service.find(state) is None
    assert not (state.folder / "private").exists()
    assert address not in bench.server.storage(["ls", STORAGE], folder=trust.SYSTEM)
