"""The exercises of chapter 06, what stops the attacks: right ways and wrong states.

The attacks are the chapter's own. What a learner builds on the full base image is built on the slim
one here: the shop's prices are then computed in Python. pip installs its wheels all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import zstandard
from desk import (
    Desk,
    Files,
    Right,
    Steps,
    Tried,
    Wrong,
    all_of,
    base,
    cells,
    empty,
    forget,
    named,
    nothing,
    step,
    stop,
    write,
)

from labapp.attacks import attacks
from labapp.attacks.journal import undo
from labapp.bench import Bench
from labapp.course import checks
from labapp.course.exercises import find_exercise
from labapp.errors import LabError
from labapp.journey import transfer
from labapp.journey.bases import SLIM
from labapp.private import service
from labapp.private.registry import PrivateRegistry
from labapp.private.service import SERVICE
from labapp.registry.manifests import digest_of
from labapp.state import LABEL

CELLS = cells("06")
RIGHT: Right = {}
WRONG: Wrong = {}
CI, SERVER = "a-password-for-ci", "a-password-for-servers"
PULL, PUSH = ("pull",), ("pull", "push")

SHOP = """FROM {slim}
WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_COMPILE=1
COPY wheels wheels
COPY requirements.txt .
RUN pip --python /opt/venv install --no-index --find-links=wheels -r requirements.txt
COPY shop /opt/venv/lib/python3.13/site-packages/shop
WORKDIR /
EXPOSE 8000
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--no-control-socket", "shop.app:app"]
"""

Names = dict[str, Any]
ERRORS: Names = {"LabError": LabError, "print": lambda *_: None}
"""What a cell needs that tells of an error."""


@dataclass(frozen=True)
class Guarded(Desk):
    """A desk with the lab's private registry beside it, and its accounts as they are at first."""

    private: PrivateRegistry
    accounts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{LABEL}={self.bench.state.lab_id}"

    @property
    def secured(self) -> str:
        return f"{self.private.address}/shop/web:1.4"

    def cells(self, *ids: str, **given: object) -> Names:
        """Run some of the notebook's cells, and return what they define."""
        names: Names = {"lab": self.lab, "web": self.name("shop/web"), "team": self.name("team")}
        names |= {**ERRORS, **given}
        for id in ids:
            exec(CELLS[id], names)
        return names

    def attack(self, id: str, target: str | Path | None = None) -> attacks.Happened:
        return attacks.start(self.bench, id, target=target)

    def docker(self, *words: str, folder: Path | None = None) -> int:
        """Type a docker command."""
        environment = self.bench.engine.environment()
        argv = ["docker", *words]
        return subprocess.run(argv, env=environment, cwd=folder, capture_output=True).returncode

    def typed(self, folder: Path, short: str, **args: str) -> None:
        """Build and push an image from the terminal."""
        words = [f"--build-arg={name}={value}" for name, value in args.items()]
        words += ["--label", self.label, "."]
        assert self.docker("build", "-t", self.name(short), *words, folder=folder) == 0
        assert self.docker("push", self.name(short)) == 0


@pytest.fixture(scope="module")
def shelf(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Images in the registry as ``kept/…``, and the private registry, with an image of its own."""
    empty(bench)
    private = PrivateRegistry(engine=bench.engine, state=bench.state)
    desk = Guarded(replace(bench, work=tmp_path_factory.mktemp("guard")), private)
    try:
        desk.pushed("kept/page:tested", text="tested")
        desk.pushed("kept/page:other", text="other")
        app = shop(desk)
        (app / "requirements.txt").write_text(desk.lab.hashed_requirements(app))
        desk.made(app, "kept/web:hashed")
        desk.attack("dependency", app)
        on_the_shop(desk, app, "install --force-reinstall --no-deps blinker")
        desk.made(app, "kept/web:swapped")
        undo(bench)
        private.start()
        private.trust()
        private.accounts.add("ci", CI, rights={"shop/*": PUSH})
        private.log_in("ci", CI)
        transfer.tag(bench.engine, desk.name("kept/page:tested"), desk.secured)
        private.push(desk.secured)
        yield replace(desk, accounts=bench.state.read("private/accounts"))
    finally:
        undo(bench)
        with contextlib.suppress(LabError):
            transfer.remove(bench.engine, desk.secured)
        private.distrust()
        private.server.remove(volume=True)
        private.stop()
        bench.state.path("private", "decisions.log").unlink(missing_ok=True)


@pytest.fixture
def desk(shelf: Guarded, tmp_path: Path) -> Guarded:
    """The lab as before the chapter: no attack is on, no account is there but ``ci``."""
    bench = shelf.bench
    undo(bench)
    stop(bench)
    forget(bench, "shop/web", "team/base", "team/page", "team/safe")
    bench.state.write("private/accounts", shelf.accounts)
    bench.state.write("private/docker-config/config", {})
    bench.state.path("private", "decisions.log").unlink(missing_ok=True)
    return replace(shelf, bench=replace(bench, work=tmp_path))


def solved(id: str, names: Callable[[Guarded], Names]) -> Steps:
    """Run the chapter's own solution, with what the cells above it define."""
    return lambda desk: exec(find_exercise(id).solution, names(desk))


# ---------------------------------------------------------------- 06-secret

STAGES = """# The password stays in the first stage.
ARG BASE=python:3.13-slim
FROM ${BASE}
COPY .env /src/
RUN sha256sum < /src/.env > /tmp/used

FROM scratch
COPY --from=0 /tmp/used /src/used
"""


def safe(desk: Guarded) -> Path:
    return Path(desk.cells("exercise-secret-file")["safe"])


def told(desk: Guarded, content: Any) -> Any:
    """Put the password for ``WORD`` in a text, or in what holds texts, and its use for ``USE``."""
    if isinstance(content, Mapping):
        return {told(desk, name): told(desk, each) for name, each in content.items()}
    if isinstance(content, bytes):
        return told(desk, content.decode()).encode()
    if not isinstance(content, str):
        return content
    secret = (safe(desk) / ".env").read_bytes()
    word = secret.decode().strip().rpartition("=")[2]
    used = f"{hashlib.sha256(secret).hexdigest()}  /src/.env\n"
    of_word = hashlib.sha256(word.encode()).hexdigest()
    return content.replace("OF-WORD", of_word).replace("WORD", word).replace("USE", used)


@step
def layers(desk: Guarded, *made: Files, **more: Any) -> None:
    """Upload the image layer by layer."""
    desk.store("team/safe:1", *(told(desk, each) for each in made), **told(desk, more))


ZSTD = {"pack": zstandard.ZstdCompressor().compress, "kind": "layer.v1.tar+zstd"}
USED = {"src/used": "USE"}


solved_secret = solved("06-secret", lambda desk: desk.cells("exercise-secret-file"))


def secret_typed(desk: Guarded) -> None:
    (safe(desk) / "Dockerfile").write_text(STAGES)
    desk.typed(safe(desk), "team/safe:1", BASE=desk.slim)


@step
def leak(desk: Guarded, *lines: str, **args: str) -> None:
    """Build the image in one stage, with some lines."""
    text = told(desk, "\n".join([f"FROM {desk.slim}", *lines]))
    (safe(desk) / "Dockerfile").write_text(text)
    desk.lab.build(safe(desk), tag=desk.name("team/safe:1"), args=told(desk, args))
    desk.push("team/safe:1")


@step
def in_index(desk: Guarded, *images: Files | bytes, annotation: str = "", **more: Any) -> None:
    """Upload an index: of the image that was asked for, and others beside it."""
    asked = desk.store("team/safe", told(desk, USED))
    others = [desk.store("team/safe", told(desk, each), **more) for each in images]
    desk.index("team/safe:1", asked, *others, annotations={"with": told(desk, annotation)})


# As buildx has it: build arguments in an attestation, beside the image.
PROVENANCE = in_index(
    b'{"predicate": {"build-arg:WITH": "WORD"}}', kind="application/vnd.in-toto+json", pack=bytes
)


def naive(desk: Guarded) -> None:
    desk.made(safe(desk), "team/safe:1")


def no_password(desk: Guarded) -> None:
    solved_secret(desk)
    (desk.work / "safe" / ".env").write_text("DEPLOY_PASSWORD=\n")


RIGHT["06-secret"] = [
    solved_secret,
    secret_typed,
    layers({"src/.env": "", **USED}),  # what ``RUN --mount=type=secret`` leaves
    layers({"./src/used": "USE"}, **ZSTD),
    layers({"src/used": "older"}, USED),
    layers({"src/used": "OF-WORD"}),
    in_index({"src/used": "another"}),
]

WRONG["06-secret"] = [
    (nothing, "NotYet"),
    (lambda desk: safe(desk) and None, "NotYet", "team/safe:1"),
    (lambda desk: desk.build(safe(desk), "team/safe:1"), "Wrong", "push"),
    (no_password, "NotYet", ".env"),
    (naive, "Wrong", "'/src/.env'"),
    (leak("ENV PASSWORD=WORD"), "Wrong", "history"),
    (leak("ARG WITH", "RUN mkdir /src", WITH="WORD"), "Wrong", "history"),
    (layers({"src/used": "USE", "etc/login": "a WORD b"}), "Wrong", "'/etc/login'"),
    (layers({"src/.env": "WORD"}, {"src/.wh..env": ""}), "Wrong", "'/src/.env'"),
    (layers({"src/used": "USE", "src/WORD": ""}), "Wrong", "name"),
    (layers({"src/used": "USE", "a": "WORD"}, **ZSTD), "Wrong", "'/a'"),
    (layers(USED, annotations={"with": "WORD"}), "Wrong", "manifest"),
    (in_index({"src/.env": "WORD"}), "Wrong", "'/src/.env'"),
    (in_index(annotation="WORD"), "Wrong", "index"),
    (PROVENANCE, "Wrong", "provenance"),
    (layers({"src/other": "USE"}), "Wrong", "/src/used"),
    (layers(USED, {"src/.wh.used": ""}), "Wrong", "/src/used"),
    (layers(USED, {"src/.wh..wh..opq": ""}), "Wrong", "/src/used"),
    (layers({"src/used": hashlib.sha256(b"typed").hexdigest()}), "Wrong", "/src/used"),
]


# ---------------------------------------------------------------- 06-base


@step
def dockerfile(desk: Guarded, text: str, *then: Steps) -> None:
    """Let the base's tag name the backdoor, and write the page's Dockerfile.

    ``BASE`` is the repository, ``GOOD`` and ``BAD`` are its digests before and after.
    """
    good = str(desk.attack("base").evidence["digest before"])
    bad, full = desk.digest("team/base:1"), str(desk.bench.base("python:3.13"))
    page, team = desk.work / "page" / "Dockerfile", desk.name("team/base")
    write(page, text, GOOD=good, BAD=bad, FULL=full, LAB=desk.slim, BASE=team)
    all_of(*then)(desk)


def base_typed(desk: Guarded) -> None:
    platform = desk.bench.engine.platform
    text = f"# The page.\nfrom --platform={platform} BASE:1@GOOD as page\nRUN echo > /page\n"
    dockerfile(text)(desk)
    desk.typed(desk.work / "page", "team/page:safe")


SAFE = named("page:tested", "team/page:safe")


def elsewhere(desk: Guarded) -> None:
    desk.store("team/page:safe", {"page": "1"})


def backdoor(desk: Guarded) -> None:
    desk.copy("team/base:1", "team/page:safe")


RIGHT["06-base"] = [
    solved("06-base", lambda desk: desk.cells("base-attack")),
    base_typed,
    dockerfile("ARG FOUNDATION=BASE@GOOD\nFROM ${FOUNDATION}\n", SAFE),
    dockerfile("FROM LAB AS one\nFROM one\n", SAFE),
    dockerfile("FROM FULL AS tools\nFROM BASE@GOOD\nCOPY --from=tools /etc/os-release /\n", SAFE),
]

WRONG["06-base"] = [
    (nothing, "NotYet"),
    (lambda desk: desk.cells("base-attack") and None, "NotYet", "team/base:1"),
    (dockerfile("FROM BASE@BAD\n", backdoor), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE@BAD\n", SAFE), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE:1\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM BASE:1 AS a\nFROM BASE@GOOD\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM BASE@GOOD\nCOPY --from=BASE:1 /etc /etc\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM FULL\n", SAFE), "Wrong", "reviewed"),
    (dockerfile("# FROM BASE@GOOD\n", SAFE), "Wrong"),
    (dockerfile("FROM scratch\n", SAFE), "Wrong"),
    (dockerfile("FROM BASE@sha256:1234\n", SAFE), "Wrong"),
    (dockerfile("FROM ${WHICH}\n", SAFE), "Wrong", "WHICH"),
    (dockerfile("FROM BASE@GOOD\n"), "Wrong", "team/page:safe"),
    (dockerfile("FROM BASE@GOOD\n", backdoor), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD\n", base(SLIM, "team/page:safe")), "Wrong", "base itself"),
    (dockerfile("FROM BASE@GOOD\n", elsewhere), "Wrong", "layers"),
]


# ---------------------------------------------------------------- 06-wheel


def shop(desk: Guarded) -> Path:
    return desk.shop(SHOP.format(slim=desk.slim))


def on_the_shop(desk: Guarded, app: Path, pip: str) -> None:
    """Write a Dockerfile that runs pip once more, on the shop as it should be."""
    lines = [f"FROM {desk.name('kept/web:hashed')}", "WORKDIR /src", "COPY wheels wheels"]
    lines += ["COPY requirements.txt ."]
    lines += [f"RUN pip --python /opt/venv {pip} --no-index --find-links=wheels", "WORKDIR /"]
    (app / "Dockerfile").write_text("\n".join(lines))


def wheel_attack(desk: Guarded) -> Path:
    app = shop(desk)
    desk.attack("dependency")
    return app


def wheel_cells(desk: Guarded) -> Names:
    return desk.cells(app=wheel_attack(desk))


def pinned(app: Path, wanted: list[str] | None = None) -> dict[str, Path]:
    """The wheel of each requirement, by its line."""
    lines = (app / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = wanted or [line for line in lines if line and not line.startswith("#")]
    found = {}
    for line in wanted:
        name, _, version = line.partition("==")
        (found[line],) = (app / "wheels").glob(f"{name}-{version}-*.whl")
    return found


def wheel_typed(desk: Guarded) -> None:
    """By hand, in other words: another algorithm, capitals, options and comments."""
    app = shop(desk)
    lines = ["--require-hashes  # none without", "# What the shop needs."]
    for number, (line, wheel) in enumerate(pinned(app).items()):
        kind = ("sha256", "sha384", "sha512")[number % 3]
        digits = hashlib.new(kind, wheel.read_bytes()).hexdigest()
        lines.append(f"{line.capitalize()} \\\n  --hash {kind}:{digits} # {wheel.name}")
    (app / "requirements.txt").write_text("\n".join(lines))
    on_the_shop(desk, app, "download --dest=/tmp --require-hashes -r requirements.txt")
    desk.typed(app, "shop/web:hashed")


@step
def hashed(
    desk: Guarded, edit: Callable[[list[str]], list[str]] = lambda lines: lines, *then: Steps
) -> None:
    """Write hashed requirements, a line each, from the wheels that were tested, with a slip."""
    app = shop(desk)
    lines = [f"{line} --hash={sha256(wheel)}" for line, wheel in pinned(app).items()]
    desk.attack("dependency")
    (app / "requirements.txt").write_text("\n".join(edit(lines)) + "\n")
    all_of(*then)(desk)


def sha256(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def trusting(desk: Guarded) -> None:
    """Take the digests after the attack."""
    app = wheel_attack(desk)
    (app / "requirements.txt").write_text(desk.lab.hashed_requirements(app))
    desk.copy("kept/web:swapped", "shop/web:hashed")


HASHED = named("web:hashed", "shop/web:hashed")
SWAPPED = named("web:swapped", "shop/web:hashed")


def bare(lines: list[str]) -> list[str]:
    return [line.partition(" ")[0] for line in lines]


def of_another(lines: list[str]) -> list[str]:
    """The first requirement with the digest of the second one's wheel."""
    return [lines[0].split()[0] + " " + lines[1].split()[1], *lines[1:]]


@step
def also(desk: Guarded, extra: Callable[[Path], str]) -> None:
    """Name one more digest for each wheel, beside the right one."""
    hashed()(desk)
    HASHED(desk)
    app = desk.work / "app"
    lines = (app / "requirements.txt").read_text().splitlines()
    wheels = pinned(app, [line.split()[0] for line in lines]).values()
    more = [f"{line} --hash={extra(w)}" for line, w in zip(lines, wheels, strict=True)]
    (app / "requirements.txt").write_text("\n".join(more))


RIGHT["06-wheel"] = [
    solved("06-wheel", wheel_cells),
    wheel_typed,
    hashed(lambda lines: lines, HASHED),
    also(lambda wheel: f"sha256:{hashlib.sha256(b'of another platform').hexdigest()}"),
]

WRONG["06-wheel"] = [
    (nothing, "NotYet"),
    (lambda desk: wheel_attack(desk) and None, "NotYet"),
    (hashed(lambda lines: [f"# {line}" for line in lines] + bare(lines), HASHED), "NotYet"),
    (hashed(lambda lines: lines[:3] + bare(lines)[3:], HASHED), "Wrong"),
    (hashed(lambda lines: [lines[0].replace(" ", " # "), *lines[1:]], HASHED), "Wrong", "blinker"),
    (trusting, "Wrong", "swapped"),
    (also(sha256), "Wrong", "swapped"),
    (hashed(of_another, HASHED), "Wrong", "blinker"),
    (hashed(lambda lines: [*lines[:-1], lines[-1][:-3] + "000"], HASHED), "Wrong", "no wheel"),
    (hashed(lambda lines: lines[:-1], HASHED), "Wrong", "werkzeug"),
    (hashed(), "Wrong", "shop/web:hashed"),
    (hashed(lambda lines: lines, SWAPPED), "Wrong", "attacker"),
    (hashed(lambda lines: lines, base(SLIM, "shop/web:hashed")), "Wrong", "run"),
]


# ---------------------------------------------------------------- 06-rights


def account(name: str, password: str, rights: Mapping[str, tuple[str, ...]]) -> Steps:
    return lambda desk: desk.private.accounts.add(name, password, rights=rights)


def server(rights: Mapping[str, tuple[str, ...]], *then: Steps) -> Steps:
    """Add the account, then do what it may or may not."""
    return all_of(account("server", SERVER, rights), *then)


@step
def pulls(desk: Guarded, name: str = "server", password: str = SERVER) -> None:
    """Read the shop, over HTTP, let it be refused or not."""
    with contextlib.suppress(LabError):
        desk.private.registry(name, password).manifest("shop/web", "1.4")


@step
def pushes(
    desk: Guarded, name: str = "server", password: str = SERVER, to: str = "shop/web"
) -> None:
    """Send a blob, over HTTP, let it be refused or not."""
    with contextlib.suppress(LabError):
        desk.private.registry(name, password).upload_blob(to, [b"pushed"])


@step
def asks(desk: Guarded, scope: str, password: str = SERVER) -> None:
    """Ask the token service itself, as ``curl -u server:… URL`` does."""
    found = service.find(desk.bench.state)
    assert found is not None
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(desk.private.authority.certificate)
        wanted = {"service": SERVICE, "scope": scope}
        session.get(found, params=wanted, auth=("server", password), timeout=10)


def rights_typed(desk: Guarded) -> None:
    server({"shop/*": PULL})(desk)
    config = ("--config", str(desk.work / "login"))
    login = ("login", "-u", "server", "-p", SERVER, desk.private.address)
    assert desk.docker(*config, *login) == 0
    assert desk.docker(*config, "pull", desk.secured) == 0
    assert desk.docker(*config, "push", desk.secured) != 0


NARROW = {"shop/*": PULL}
TRIED = (pulls(), pushes())

RIGHT["06-rights"] = [
    solved("06-rights", lambda desk: desk.cells(private=desk.private)),
    rights_typed,
    server({"shop/**": PULL, "shop/web": PULL, "team/*": ()}, *TRIED),
    server(NARROW, asks("repository:shop/web:pull"), asks("repository:shop/worker:push")),
    # First too much, which is seen and mended.
    server({"shop/*": PUSH}, *TRIED, server(NARROW, *TRIED)),
]

WRONG["06-rights"] = [
    (nothing, "NotYet", "server"),
    (server({}, *TRIED), "Wrong", "shop/web"),
    (server({"shop/*": PUSH}, *TRIED), "Wrong", "push in 'shop/*'"),
    (server({**NARROW, "shop/web": PUSH}, *TRIED), "Wrong", "push in 'shop/web'"),
    (server({"shop/*": ("pull", "delete")}, *TRIED), "Wrong", "delete in 'shop/*'"),
    (server({"*": PULL}, *TRIED), "Wrong", "'*'"),
    (server({"shop*": PULL}, *TRIED), "Wrong", "'shop*'"),
    (server({**NARROW, "team/leak": PULL}, *TRIED), "Wrong", "'team/leak'"),
    (server({"shop/web": PULL}, *TRIED), "Wrong", "'shop/worker'"),
    (server({"shop/w*": PULL}, *TRIED), "Wrong", "'shop/made/tomorrow'"),
    (server(NARROW, *TRIED, account("ci", CI, NARROW)), "Wrong", "'ci'"),
    (server(NARROW, *TRIED, account("ci", CI, {"*": PUSH})), "Wrong", "'ci'"),
    (server(NARROW, *TRIED, lambda desk: desk.private.accounts.remove("ci")), "Wrong", "'ci'"),
    (server(NARROW, *TRIED, account("", "", NARROW)), "Wrong", "log in"),
    (server(NARROW, *TRIED, account("ann", "ann", NARROW)), "Wrong", "'ann'"),
    (server(NARROW), "Wrong", "shop/web:1.4"),
    (server(NARROW, pulls("ci", CI), pushes("ci", CI)), "Wrong", "shop/web:1.4"),
    (server(NARROW, pulls()), "Wrong", "push"),
    (server(NARROW, pushes()), "Wrong", "shop/web:1.4"),
    (server(NARROW, pulls(), pushes(to="team/page")), "Wrong", "push"),
    (server(NARROW, pulls(), asks("repository:shop/web:pull,push", "guessed")), "Wrong", "push"),
    (server({"shop/*": PUSH}, *TRIED, server(NARROW)), "Wrong", "before"),
    (server({"shop/*": PUSH}, *TRIED, server(NARROW, pulls())), "Wrong", "push"),
    (server({"*": PULL}, *TRIED, server(NARROW)), "Wrong", "before"),
    (server(NARROW, *TRIED, server(NARROW, pushes())), "Wrong", "before"),
]


# ---------------------------------------------------------------- 06-gate


def gate_attack(desk: Guarded) -> Names:
    """Push what is tested, then run the cell that lets the tag move, and writes a file."""
    desk.copy("kept/page:tested", "shop/web:1.4")
    return attacked_again(desk, desk.digest("shop/web:1.4"))


def attacked_again(desk: Guarded, tested: str) -> Names:
    pushed = SimpleNamespace(digest=digest_of(b"a note"))
    return desk.cells("gate-attack", pushed=pushed, tested=SimpleNamespace(digest=tested))


solved_gate = solved("06-gate", gate_attack)


def production(desk: Guarded) -> Path:
    return desk.work / "production.yaml"


@step
def written(desk: Guarded, text: str, *then: Steps) -> None:
    """Write the file; ``WEB`` is the repository, ``GOOD`` and ``BAD`` are digests."""
    good = str(gate_attack(desk)["tested"].digest)
    bad, team = desk.digest("shop/web:1.4"), desk.name("team")
    desk.copy("kept/page:other", "shop/web:other")
    other, web = desk.digest("shop/web:other"), desk.name("shop/web")
    write(production(desk), text, GOOD=good, BAD=bad, OTHER=other, WEB=web, TEAM=team)
    all_of(*then)(desk)


def deployed(desk: Guarded) -> None:
    desk.deploy(production(desk))


def started(desk: Guarded) -> None:
    """Start what the file names, from the terminal."""
    text = production(desk).read_text(encoding="utf-8")
    image = desk.name(text.partition(f"{desk.bench.registry.address}/")[2].split('"')[0])
    assert desk.docker("run", "-d", "--label", desk.label, "-P", image) == 0


def stopped(desk: Guarded) -> None:
    for container in checks.containers(desk.bench):
        if "shop/web" in container["Config"]["Image"]:
            desk.bench.engine.client.api.kill(container["Id"])


def pinned_by_the_lab(desk: Guarded) -> None:
    """Pin what the tag names now, with the lab's own command, and deploy."""
    desk.lab.pin_deployment(production(desk))
    deployed(desk)


def undone(desk: Guarded) -> None:
    """Undo the attack; only then pin the tag."""
    written(BY_TAG)(desk)
    undo(desk.bench)
    pinned_by_the_lab(desk)


def twice(desk: Guarded) -> None:
    """The cell with the attack is run a second time."""
    tested = gate_attack(desk)["tested"].digest
    solved("06-gate", lambda desk: attacked_again(desk, tested))(desk)


def pushed_anew(desk: Guarded) -> None:
    """Another image is tested and pushed as 1.4, and the tag moves again."""
    gate_attack(desk)
    desk.copy("kept/page:other", "shop/web:1.4")
    solved("06-gate", lambda desk: attacked_again(desk, desk.digest("shop/web:1.4")))(desk)


def another_moved(desk: Guarded) -> None:
    """Another tag was attacked before."""
    desk.copy("kept/page:other", "shop/web:1.3")
    desk.attack("moved", desk.name("shop/web:1.3"))
    solved_gate(desk)


def tag_deployed(desk: Guarded) -> None:
    """Deploy by tag, before the attack; then only the file is pinned."""
    desk.copy("kept/page:tested", "shop/web:1.4")
    write(production(desk), BY_TAG, WEB=desk.name("shop/web"))
    deployed(desk)
    written(GOOD)(desk)


def moved_deployed(desk: Guarded) -> None:
    """Deploy what nobody tested; then start beside it what was tested."""
    written(BY_TAG, deployed)(desk)
    tested = desk.digest("kept/page:tested")
    write(production(desk), FLOW, GOOD=tested, WEB=desk.name("shop/web"))
    started(desk)


GOOD = "services:\n  web:\n    image: WEB@GOOD\n"
BY_TAG = GOOD.replace("@GOOD", ":1.4")
FLOW = 'services: {web: {image: "WEB:1.4@GOOD", ports: ["127.0.0.1::8000"]}}  # pinned\n'

RIGHT["06-gate"] = [
    solved_gate,
    written(FLOW, deployed),
    written(FLOW, started),
    undone,
    twice,
    pushed_anew,
    another_moved,
]

WRONG["06-gate"] = [
    (nothing, "NotYet", "production.yaml"),
    (lambda desk: gate_attack(desk) and None, "NotYet", "'web'"),
    (lambda desk: production(desk).write_text(GOOD) and None, "NotYet", "shop/web:1.4"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page\n"), "Wrong", "team/page"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page@GOOD\n"), "Wrong", "team/page"),
    (written(f"{GOOD}  cache:\n    image: WEB@BAD\n"), "Wrong", "'cache'"),
    (written(BY_TAG, pinned_by_the_lab), "Wrong", "'web'"),
    (written(GOOD.replace("GOOD", "OTHER"), deployed), "Wrong", "1.4"),
    (written(GOOD.replace("GOOD", f"sha256:{'1' * 64}")), "Wrong", "sha256:1"),
    (written(GOOD.replace("GOOD", "BAD"), lambda desk: undo(desk.bench)), "Wrong", "sha256:"),
    (written(GOOD.replace("web:", "shop:")), "Wrong", "'web'"),
    (written("services:\n  web: [\n"), "Wrong", "production.yaml"),
    (written("web:\n  image: WEB@GOOD\n"), "Wrong", "production.yaml"),
    (written(GOOD), "Wrong", "deploy"),
    (written(GOOD, deployed, stopped), "Wrong", "stopped"),
    (tag_deployed, "Wrong", "deploy"),
    (moved_deployed, "Wrong", "'web'"),
]


class TestExercises(Tried):
    chapters = ("06",)
