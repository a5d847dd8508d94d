"""The exercises of chapter 06, what stops the attacks: right ways and wrong states.

The attacks are the chapter's own. What a learner builds on the full base image is built on the slim
one here: the shop's prices are then computed in Python. pip installs its wheels all the same.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import zstandard
from desk import (
    NOTE,
    Desk,
    Names,
    States,
    Steps,
    Tried,
    all_of,
    copied,
    made,
    nothing,
    run_cells,
    solved,
    step,
    write,
)
from made_images import OCI, Files

from labapp.attacks.journal import undo
from labapp.course import checks
from labapp.errors import LabError
from labapp.journey.bases import SLIM
from labapp.journey.build import build
from labapp.private import service
from labapp.private.service import SERVICE
from labapp.registry.manifests import digest_of

STATES: States = {}
CI, SERVER = "a-password-for-ci", "a-password-for-servers"
PULL, PUSH = ("pull",), ("pull", "push")


@dataclass(frozen=True)
class Guarded(Desk):
    """A desk with the lab's private registry beside it, and its accounts as they are at first."""

    accounts: Mapping[str, Any]

    @property
    def secured(self) -> str:
        return f"{self.lab.private.address}/shop/web:1.4"

    def cells(self, ids: str = "", **given: object) -> Names:
        """Run some of the notebook's cells, and return what they define."""
        names = {"lab": self.lab, "web": self.name("shop/web"), "team": self.name("team")}
        told = {"LabError": LabError, "print": lambda *_: None}
        return run_cells("06", ids, {**names, **told, **given})


@pytest.fixture(scope="module")
def shelf(bare: Desk) -> Iterator[Guarded]:
    """Images in the registry as ``kept/…``, and the private registry, with an image of its own."""
    bench, lab, private = bare.bench, bare.lab, bare.lab.private
    bare.noted("kept/page:tested", text="tested")
    bare.pushed("kept/page:other", text="other")
    app = bare.shop()
    (app / "requirements.txt").write_text(lab.hashed_requirements(app))
    bare.made(app, "kept/web:hashed")
    lab.attack("dependency", app)
    on_the_shop(bare, app, "install --force-reinstall --no-deps blinker")
    bare.made(app, "kept/web:swapped")
    undo(bench)
    private.start()
    private.trust()
    private.accounts.add("ci", CI, rights={"shop/*": PUSH})
    private.log_in("ci", CI)
    desk = Guarded(bench, bench.state.read("private/accounts"))
    lab.tag(desk.name("kept/page:tested"), desk.secured)
    private.push(desk.secured)
    yield desk
    undo(bench)
    private.distrust()
    private.server.remove()  # quicker than a stop
    private.stop()


@pytest.fixture
def desk(desk: Guarded) -> Guarded:
    """The lab as before the chapter: no account is there but ``ci``, and nobody has tried one."""
    desk.bench.state.write("private/accounts", desk.accounts)
    desk.bench.state.path("private", "decisions.log").unlink(missing_ok=True)
    return desk


# ---------------------------------------------------------------- 06-secret

STAGES = """# The password stays in the first stage.
FROM SLIM
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
    secret = (safe(desk) / ".env").read_bytes()
    word = secret.decode().strip().rpartition("=")[2]
    used = f"{hashlib.sha256(secret).hexdigest()}  /src/.env\n"
    for end in ("\r\n", ""):
        of_word = hashlib.sha256(f"{word}{end}".encode()).hexdigest()
        content = content.replace(f"OF-WORD{end}", of_word)
    return content.replace("WORD", word).replace("USE", used)


def staged(desk: Guarded, text: str = STAGES) -> None:
    write(safe(desk) / "Dockerfile", text, SLIM=desk.slim)


@step
def layers(desk: Guarded, *made: Files, annotation: str = "", **more: Any) -> None:
    """Upload the image layer by layer, beside a Dockerfile that could have made it."""
    staged(desk)
    annotations = {"with": told(desk, annotation)}
    desk.store("team/safe:1", *(told(desk, each) for each in made), annotations=annotations, **more)


LEAKY = "FROM SLIM\nCOPY .env /src/.env\nRUN sha256sum /src/.env > /src/used\n"
ZSTD = {"pack": zstandard.compress, "layer_type": f"{OCI}.layer.v1.tar+zstd"}
USED = {"src/used": "USE"}
solved_secret = solved("06-secret", lambda desk: desk.cells("exercise-secret-file"))


@step
def secret_typed(desk: Guarded, text: str = STAGES) -> None:
    """Build it in a terminal; ``COPY used`` copies what was computed outside."""
    staged(desk, told(desk, text))
    write(safe(desk) / "used", told(desk, "USE"))
    desk.typed(safe(desk), "team/safe:1")


def mounted(desk: Guarded) -> None:
    """Mount the password for one step, where the builder can."""
    if desk.bench.engine.builder == "classic":
        return secret_typed()(desk)
    use = "RUN --mount=type=secret,id=pw sha256sum /run/secrets/pw > used"
    staged(desk, f"FROM SLIM\nWORKDIR /src\n{use}\n")
    secrets = {"pw": safe(desk) / ".env"}
    write(safe(desk) / ".dockerignore", ".env\n")
    build(desk.bench.engine, safe(desk), tag=desk.name("team/safe:1"), secrets=secrets)
    desk.push("team/safe:1")


@step
def other_dockerfile(desk: Guarded, text: str, *made: Files) -> None:
    """A right image, of which the Dockerfile knows nothing."""
    layers(*made)(desk)
    staged(desk, told(desk, text))


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
    staged(desk)
    asked = desk.store("team/safe", told(desk, USED))
    others = [desk.store("team/safe", told(desk, each), **more) for each in images]
    desk.index("team/safe:1", asked, *others, annotations={"with": told(desk, annotation)})


# As buildx has it: build arguments in an attestation, beside the image.
PROVENANCE = in_index(
    b'{"predicate": {"build-arg:WITH": "WORD"}}',
    layer_type=NOTE,
    pack=bytes,
)


def no_password(desk: Guarded) -> None:
    solved_secret(desk)
    (desk.work / "safe" / ".env").write_text("DEPLOY_PASSWORD=\n")


STATES["06-secret"] = [
    solved_secret,
    secret_typed(),
    mounted,
    layers({"src/.env": "", **USED}),  # what ``RUN --mount=type=secret`` leaves
    layers({"./src/used": "USE"}, **ZSTD),
    layers({"src/used": "older"}, USED),
    layers({"src/used": "OF-WORD"}),
    layers({"src/used": "OF-WORD\r\n"}),  # of a file as Windows writes it
    in_index({"src/used": "another"}),
    (nothing, "NotYet"),
    (safe, "NotYet", "team/safe:1"),
    (lambda desk: desk.build(safe(desk), "team/safe:1"), "Wrong", "push"),
    (no_password, "NotYet", ".env"),
    (all_of(safe, made("safe", "team/safe:1")), "Wrong", "'/src/.env'"),
    (leak("ENV PASSWORD=WORD"), "Wrong", "history"),
    (leak("ARG WITH", "RUN mkdir /src", WITH="WORD"), "Wrong", "history"),
    (layers({"src/used": "USE", "etc/login": "a WORD b"}), "Wrong", "'/etc/login'"),
    (layers({"src/.env": "WORD"}, {"src/.wh..env": ""}), "Wrong", "'/src/.env'"),
    (layers({"src/used": "USE", "src/WORD": ""}), "Wrong", "name"),
    (layers({"src/used": "USE", "a": "WORD"}, **ZSTD), "Wrong", "'/a'"),
    (layers(USED, annotation="WORD"), "Wrong", "manifest"),
    (in_index({"src/.env": "WORD"}), "Wrong", "'/src/.env'"),
    (in_index(annotation="WORD"), "Wrong", "index"),
    (PROVENANCE, "Wrong", "provenance"),
    (layers({"src/other": "USE"}), "Wrong", "/src/used"),
    (layers(USED, {"src/.wh.used": ""}), "Wrong", "/src/used"),
    (layers(USED, {"src/.wh..wh..opq": ""}), "Wrong", "/src/used"),
    (layers({"src/used": hashlib.sha256(b"typed").hexdigest()}), "Wrong", "/src/used"),
    (secret_typed("FROM SLIM\nCOPY used /src/used\n"), "Wrong", "another password"),
    (
        secret_typed("FROM SLIM\nRUN mkdir /src; echo OF-WORD >/src/used\n"),
        "Wrong",
        "another password",
    ),
    (other_dockerfile(LEAKY, USED), "Wrong", "'/src/.env'"),
    (other_dockerfile("FROM SLIM\nRUN false\n", USED), "Wrong", "safe/Dockerfile"),
]


# ---------------------------------------------------------------- 06-base


@step
def dockerfile(desk: Guarded, text: str, *then: Steps) -> None:
    """Let the base's tag name the backdoor, and write the page's Dockerfile.

    ``BASE`` is the repository, ``GOOD`` and ``BAD`` are its digests before and after.
    """
    good = str(desk.lab.attack("base").evidence["digest before"])
    bad = desk.digest("team/base:1")
    desk.store("team/tools:1", {"etc/os-release": "none"})
    tools = f"{desk.name('team/tools')}@{desk.digest('team/tools:1')}"
    page, team = desk.work / "page" / "Dockerfile", desk.name("team/base")
    write(page, text, GOOD=good, BAD=bad, TOOLS=tools, LAB=desk.slim, BASE=team)
    all_of(*then)(desk)


def base_typed(desk: Guarded) -> None:
    platform = desk.bench.engine.platform
    text = f"# The page.\nfrom --platform={platform} BASE:1@GOOD as page\nRUN echo > /page\n"
    dockerfile(text)(desk)
    desk.typed(desk.work / "page", "team/page:safe")


SAFE = copied("kept/page:tested", "team/page:safe")
BACKDOOR = copied("team/base:1", "team/page:safe")
REVIEWED = copied(f"base/{SLIM}", "team/page:safe")


def elsewhere(desk: Guarded) -> None:
    desk.store("team/page:safe", {"page": "1"})


STATES["06-base"] = [
    solved("06-base", lambda desk: desk.cells("base-attack")),
    base_typed,
    dockerfile("ARG FOUNDATION=BASE@GOOD\nFROM ${FOUNDATION}\n", SAFE),
    dockerfile("FROM LAB AS one\nFROM one\n", SAFE),
    dockerfile("FROM TOOLS AS tools\nFROM BASE@GOOD\nCOPY --from=tools /etc/os-release /\n", SAFE),
    (nothing, "NotYet"),
    (lambda desk: desk.cells("base-attack"), "NotYet", "team/base:1"),
    (dockerfile("FROM BASE@BAD\n", BACKDOOR), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE@BAD\n", SAFE), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE:1\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM BASE:1 AS a\nFROM BASE@GOOD\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM BASE@GOOD\nCOPY --from=BASE:1 /etc /etc\n", SAFE), "Wrong", "team/base:1"),
    (dockerfile("FROM TOOLS\n", SAFE), "Wrong", "reviewed"),
    (dockerfile("# FROM BASE@GOOD\n", SAFE), "Wrong"),
    (dockerfile("FROM scratch\n", SAFE), "Wrong"),
    (dockerfile("FROM BASE@sha256:1234\n", SAFE), "Wrong"),
    (dockerfile("FROM ${WHICH}\n", SAFE), "Wrong", "WHICH"),
    (dockerfile("FROM BASE@GOOD\n"), "Wrong", "team/page:safe"),
    (dockerfile("FROM BASE@GOOD\n", BACKDOOR), "Wrong", "backdoor"),
    (dockerfile("FROM BASE@GOOD\n", REVIEWED), "Wrong", "base itself"),
    (dockerfile("FROM BASE@GOOD\n", elsewhere), "Wrong", "layers"),
]


# ---------------------------------------------------------------- 06-wheel


ON_TOP = """FROM SHOP
USER 0
WORKDIR /src
COPY . .
RUN pip --python /opt/venv PIP --no-index --find-links=wheels
WORKDIR /
USER 10001
"""


FETCH = "download --dest=/tmp --no-deps -r requirements.txt"
"""All that pip does of an installation before it writes a file, in a second or two."""


def on_the_shop(desk: Desk, app: Path, pip: str) -> None:
    """Write a Dockerfile that runs pip once more, on the shop as it should be."""
    write(app / "Dockerfile", ON_TOP, SHOP=desk.name("kept/web:hashed"), PIP=pip)


def wheel_attack(desk: Guarded) -> Path:
    app = desk.shop()
    desk.lab.attack("dependency")
    return app


def pinned(app: Path) -> dict[str, Path]:
    """The wheel of each requirement, by its line."""
    found = {}
    for line in (app / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            (found[line],) = (app / "wheels").glob(line.replace("==", "-") + "-*.whl")
    return found


def wheel_typed(desk: Guarded) -> None:
    """By hand, in other words: another algorithm, capitals, options and comments."""
    app = desk.shop()
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
    desk: Guarded,
    *then: Steps,
    edit: Callable[[list[str]], list[str]] = list,
    also: Callable[[Path], str] | None = None,
    end: str = "\n",
    install: str = FETCH,
) -> None:
    """Write hashed requirements, a line each, from the wheels that were tested, with a slip.

    It may be one more digest for each wheel, beside the right one.
    """
    app = desk.shop()
    on_the_shop(desk, app, install)
    wheels = pinned(app)
    lines = [f"{line} --hash={sha256(wheel)}" for line, wheel in wheels.items()]
    desk.lab.attack("dependency")
    if also:
        lines = [f"{line} --hash={also(wheels[line.split()[0]])}" for line in lines]
    text = "\n".join(edit(lines)) + "\n"
    (app / "requirements.txt").write_text(text, encoding="utf-8", newline=end)
    all_of(*then)(desk)


def sha256(file: Path) -> str:
    return digest_of(file.read_bytes())


def trusting(desk: Guarded) -> None:
    """Take the digests after the attack."""
    app = wheel_attack(desk)
    (app / "requirements.txt").write_text(desk.lab.hashed_requirements(app))
    SWAPPED(desk)


HASHED = copied("kept/web:hashed", "shop/web:hashed")
SWAPPED = copied("kept/web:swapped", "shop/web:hashed")


def bare(lines: list[str]) -> list[str]:
    return [line.partition(" ")[0] for line in lines]


def commented(lines: list[str]) -> list[str]:
    return [lines[0].replace(" ", " # "), *lines[1:]]


def of_another(lines: list[str]) -> list[str]:
    """The first requirement with the digest of the second one's wheel."""
    return [lines[0].split()[0] + " " + lines[1].split()[1], *lines[1:]]


STATES["06-wheel"] = [
    solved("06-wheel", lambda desk: desk.cells(app=wheel_attack(desk))),
    wheel_typed,
    hashed(HASHED),
    hashed(HASHED, also=lambda wheel: digest_of(b"of another platform")),
    hashed(HASHED, edit=lambda lines: [f"\ufeff{lines[0]}", *lines[1:]], end="\r\n"),
    (nothing, "NotYet"),
    (wheel_attack, "NotYet"),
    (hashed(HASHED, edit=lambda lines: [f"# {line}" for line in lines] + bare(lines)), "NotYet"),
    (hashed(HASHED, edit=lambda lines: lines[:3] + bare(lines)[3:]), "Wrong"),
    (hashed(HASHED, edit=commented), "Wrong", "blinker"),
    (trusting, "Wrong", "swapped"),
    (hashed(HASHED, also=sha256), "Wrong", "swapped"),
    (hashed(HASHED, edit=of_another), "Wrong", "blinker"),
    (hashed(HASHED, edit=lambda lines: [*lines[:-1], lines[-1][:-3] + "000"]), "Wrong", "no wheel"),
    (hashed(HASHED, edit=lambda lines: lines[:-1]), "Wrong", "werkzeug"),
    (hashed(), "Wrong", "shop/web:hashed"),
    (hashed(HASHED, install="download --dest=/tmp wheels/*.whl"), "Wrong", "swapped wheel"),
    (hashed(HASHED, install="download -r requirements.lock"), "Wrong", "app/Dockerfile"),
    (hashed(SWAPPED), "Wrong", "attacker"),
    (hashed(copied(f"base/{SLIM}", "shop/web:hashed")), "Wrong", "run"),
]


# ---------------------------------------------------------------- 06-rights


def account(name: str, password: str, rights: Mapping[str, tuple[str, ...]]) -> Steps:
    return lambda desk: desk.lab.private.accounts.add(name, password, rights=rights)


def server(rights: Mapping[str, tuple[str, ...]], *then: Steps) -> Steps:
    """Add the account, then do what it may or may not."""
    return all_of(account("server", SERVER, rights), *then)


@step
def pulls(desk: Guarded, name: str = "server", password: str = SERVER) -> None:
    """Read the shop, over HTTP, let it be refused or not."""
    with contextlib.suppress(LabError):
        desk.lab.private.registry(name, password).manifest("shop/web", "1.4")


@step
def pushes(
    desk: Guarded, name: str = "server", password: str = SERVER, to: str = "shop/web"
) -> None:
    """Send a blob, over HTTP, let it be refused or not."""
    with contextlib.suppress(LabError):
        desk.lab.private.registry(name, password).upload_blob(to, [b"pushed"])


@step
def asks(desk: Guarded, scope: str, password: str = SERVER) -> None:
    """Ask the token service itself, as ``curl -u server:… URL`` does."""
    found = service.find(desk.bench.state)
    assert found is not None
    with requests.Session() as session:
        session.trust_env = False
        session.verify = str(desk.lab.private.authority)
        wanted = {"service": SERVICE, "scope": scope}
        session.get(found, params=wanted, auth=("server", password), timeout=10)


def rights_typed(desk: Guarded) -> None:
    server({"shop/*": PULL})(desk)
    config = ("--config", str(desk.work / "login"))
    login = ("login", "-u", "server", "-p", SERVER, desk.lab.private.address)
    typed = (login, ("pull", desk.secured), ("push", desk.secured))
    assert [desk.docker(*config, *words).returncode for words in typed] == [0, 0, 1]


NARROW = {"shop/*": PULL}
TRIED = (pulls(), pushes())

STATES["06-rights"] = [
    solved("06-rights", lambda desk: desk.cells(private=desk.lab.private)),
    rights_typed,
    server({"shop/**": PULL, "shop/web": PULL, "team/*": ()}, *TRIED),
    server(NARROW, asks("repository:shop/web:pull"), asks("repository:shop/worker:push")),
    # First too much, which is seen and mended.
    server({"shop/*": PUSH}, *TRIED, server(NARROW, *TRIED)),
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
    (server(NARROW, *TRIED, lambda desk: desk.lab.private.accounts.remove("ci")), "Wrong", "'ci'"),
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


def gate_attack(desk: Guarded, tested: str = "") -> Names:
    """Push what is tested, if nothing is; then let the tag move, by the cell that writes a file."""
    if not tested:
        desk.copy("kept/page:tested", "shop/web:1.4")
        tested = desk.digest("shop/web:1.4")
    pushed = SimpleNamespace(digest=digest_of(b"a note"))
    return desk.cells("gate-attack", pushed=pushed, tested=SimpleNamespace(digest=tested))


def twice(desk: Guarded) -> Names:
    """The cell with the attack is run a second time."""
    return gate_attack(desk, gate_attack(desk)["tested"].digest)


def pushed_anew(desk: Guarded) -> Names:
    """Another image is tested and pushed as 1.4, and the tag moves again."""
    gate_attack(desk)
    desk.copy("kept/page:other", "shop/web:1.4")
    return gate_attack(desk, desk.digest("shop/web:1.4"))


def another_moved(desk: Guarded) -> Names:
    """Another tag was attacked before."""
    desk.copy("kept/page:other", "shop/web:1.3")
    desk.lab.attack("moved", desk.name("shop/web:1.3"))
    return gate_attack(desk)


def production(desk: Guarded) -> Path:
    return desk.work / "production.yaml"


@step
def written(desk: Guarded, text: str, *then: Steps) -> None:
    """Write the file; ``WEB`` is the repository, ``GOOD`` and ``BAD`` are digests."""
    good = str(gate_attack(desk)["tested"].digest)
    bad, team = desk.digest("shop/web:1.4"), desk.name("team")
    desk.copy("kept/page:other", "shop/web:other")
    other, web = desk.digest("shop/web:other"), desk.name("shop/web")
    child = desk.bench.registry.image(f"{web}@{good}").manifest.digest
    meant = {"GOOD": good, "CHILD": child, "BAD": bad, "OTHER": other, "WEB": web, "TEAM": team}
    write(production(desk), text, **meant)
    all_of(*then)(desk)


def deployed(desk: Guarded) -> None:
    desk.lab.deploy(production(desk))


def started(desk: Guarded) -> None:
    """Start what the file names, from the terminal."""
    image = production(desk).read_text(encoding="utf-8").split('"')[1]
    assert desk.docker("run", "-d", "-P", image).returncode == 0


def stopped(desk: Guarded) -> None:
    for container in checks.containers(desk.bench):
        if "shop/web" in container["Config"]["Image"]:
            desk.bench.engine.client.api.kill(container["Id"])


def pinned_by_the_lab(desk: Guarded) -> None:
    """Pin what the tag names now, with the lab's own command, and deploy."""
    desk.lab.pin_deployment(production(desk))
    deployed(desk)


def undone(desk: Guarded) -> None:
    undo(desk.bench)


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
LOCKED = """    restart: unless-stopped
    read_only: true
    tmpfs: /tmp
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
"""
BY_TAG = GOOD.replace("@GOOD", ":1.4")
FLOW = 'services: {web: {image: "WEB:1.4@GOOD", ports: ["127.0.0.1::8000"]}}  # pinned\n'

STATES["06-gate"] = [
    *(solved("06-gate", way) for way in (gate_attack, twice, pushed_anew, another_moved)),
    written(FLOW, deployed),
    written(FLOW, started),
    written(GOOD.replace("GOOD", "CHILD"), deployed),
    written(BY_TAG, undone, pinned_by_the_lab),
    written(GOOD + LOCKED, deployed),
    (nothing, "NotYet", "production.yaml"),
    (gate_attack, "NotYet", "'web'"),
    (lambda desk: production(desk).write_text(GOOD), "NotYet", "shop/web:1.4"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page\n"), "Wrong", "team/page"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page@GOOD\n"), "Wrong", "team/page"),
    (written(f"{GOOD}  cache:\n    image: WEB@BAD\n"), "Wrong", "'cache'"),
    (written(BY_TAG, pinned_by_the_lab), "Wrong", "'web'"),
    (written(GOOD.replace("GOOD", "OTHER"), deployed), "Wrong", "1.4"),
    (written(GOOD.replace("GOOD", f"sha256:{'1' * 64}")), "Wrong", "sha256:1"),
    (written(GOOD.replace("GOOD", "BAD"), undone), "Wrong", "sha256:"),
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
