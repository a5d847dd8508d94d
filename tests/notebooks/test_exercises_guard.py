"""The exercises of chapter 06, what stops the attacks: right ways and wrong states.

The attacks are the chapter's own. What a learner builds on the full base image is built on the slim
one here: the shop's prices are then computed in Python. pip installs its wheels all the same.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import zstandard
from desk import QUIET, Desk, Tried, empty

from labapp import attacks, images
from labapp.bench import Bench
from labapp.errors import LabError, NotInRegistry
from labapp.exercises import evidence, find_exercise
from labapp.exercises.coach import Coach
from labapp.lab import Lab
from labapp.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform, digest_of
from labapp.manifests.assembly import build_config, build_manifest
from labapp.private import accounts as private_accounts
from labapp.private import decisions, process
from labapp.private.registry import PrivateRegistry
from labapp.private.tokens import SERVICE
from labapp.state import LABEL, ROLE_LABEL
from labapp.workspace import copy_application

FILE = Path(__file__).parents[2] / "notebooks" / "06_what_can_go_wrong.ipynb"
REPOSITORIES = {"shop/web", "team/base", "team/page", "team/safe"}
"""Where learners push in this chapter."""
OCI = "application/vnd.oci.image."
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
PRICES = """def total(prices, counts, tax):
    net = sum(price * count for price, count in zip(prices, counts))
    return round(net * (100 + tax) / 100)
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
    def lab(self) -> Lab:
        return Lab(bench=self.bench, feedback=QUIET, coach=Coach(self.bench))

    @property
    def honest(self) -> str:
        return str(self.bench.base("python:3.13-slim").digest)

    @property
    def label(self) -> str:
        return f"{LABEL}={self.bench.state.lab_id}"

    def digest(self, short: str) -> str:
        return self.bench.registry.resolve(*short.split(":"))

    def cells(self, *ids: str, **given: object) -> Names:
        """Run some of the notebook's cells, and return what they define."""
        notebook = json.loads(FILE.read_text(encoding="utf-8"))
        sources = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
        names: Names = {"lab": self.lab, "web": self.name("shop/web"), "team": self.name("team")}
        names |= {**ERRORS, **given}
        for id in ids:
            exec(sources[id], names)
        return names

    def docker(self, *words: str, folder: Path | None = None) -> int:
        """Type a docker command."""
        argv = ["docker", *words]
        done = subprocess.run(
            argv, env=self.bench.engine.environment(), cwd=folder, capture_output=True, text=True
        )
        return done.returncode

    def typed(self, folder: Path, short: str, **args: str) -> None:
        """Build and push an image from the terminal."""
        words = [f"--build-arg={name}={value}" for name, value in args.items()]
        words += ["--label", self.label, "."]
        assert self.docker("build", "-t", self.name(short), *words, folder=folder) == 0
        assert self.docker("push", self.name(short)) == 0


Steps = Callable[[Guarded], object]


@pytest.fixture(scope="module")
def shelf(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Images in the registry as ``kept/…``, and the private registry, with an image of its own."""
    attacks.undo(bench, feedback=QUIET)
    empty(bench)
    private = PrivateRegistry(engine=bench.engine, state=bench.state, feedback=QUIET)
    desk = Guarded(replace(bench, work=tmp_path_factory.mktemp("guard")), private)
    # What bcrypt is slow for is not tried here.
    rounds, private_accounts.ROUNDS = private_accounts.ROUNDS, 4
    try:
        desk.pushed("kept/page:tested", text="tested")
        desk.pushed("kept/page:other", text="other")
        app = shop(desk)
        (app / "requirements.txt").write_text(desk.lab.hashed_requirements(app))
        desk.pushed_from(app, "kept/web:hashed")
        attacks.start(desk.bench, "dependency", target=app, feedback=QUIET)
        on_the_shop(desk, app, "install --force-reinstall --no-deps blinker")
        desk.pushed_from(app, "kept/web:swapped")
        attacks.undo(bench, feedback=QUIET)
        private.start()
        private.trust()
        private.accounts.add("ci", CI, rights={"shop/*": PUSH})
        private.log_in("ci", CI)
        images.tag(bench.engine, desk.name("kept/page:tested"), private_shop(desk), feedback=QUIET)
        private.push(private_shop(desk))
        yield replace(desk, accounts=bench.state.read("private/accounts"))
    finally:
        private_accounts.ROUNDS = rounds
        attacks.undo(bench, feedback=QUIET)
        with contextlib.suppress(LabError):
            images.remove(bench.engine, private_shop(desk))
        private.remove()
        decisions.log_file(bench.state).unlink(missing_ok=True)


@pytest.fixture
def desk(shelf: Guarded, tmp_path: Path) -> Guarded:
    """The lab as before the chapter: no attack is on, no account is there but ``ci``."""
    bench, private = shelf.bench, shelf.private
    attacks.undo(bench, feedback=QUIET)
    api = bench.engine.client.api
    for container in api.containers(all=True, filters={"label": shelf.label}):
        if container["Labels"].get(ROLE_LABEL) not in ("registry", "private"):
            api.remove_container(container["Id"], force=True)
    for repository in REPOSITORIES & set(bench.registry.repositories()):
        for tag in bench.registry.tags(repository):
            with contextlib.suppress(NotInRegistry):
                digest = bench.registry.resolve(repository, tag)
                bench.registry.delete_manifest(repository, digest)
    # As they were when the module began.
    bench.state.write("private/accounts", shelf.accounts)
    private.log_out()
    decisions.log_file(bench.state).unlink(missing_ok=True)
    return replace(shelf, bench=replace(bench, work=tmp_path))


def nothing(desk: Desk) -> None:
    """As at first."""


def all_of(*steps: Steps) -> Steps:
    """One after the other; the last one's answer counts."""

    def together(desk: Guarded) -> None:
        for step in steps:
            step(desk)

    return together


def named(kept: str, short: str) -> Steps:
    """Give an image that is there the name that the exercise asks for."""
    return lambda desk: desk.copy(kept, short)


def slim_as(short: str) -> Steps:
    """Give the base image itself the name that the exercise asks for."""
    return lambda desk: desk.copy(str(desk.bench.base("python:3.13-slim")), short)


def tar(files: Mapping[str, str]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return target.getvalue()


def store(
    desk: Guarded,
    short: str,
    *layers: Mapping[str, str],
    zstd: bool = False,
    annotations: Mapping[str, str] | None = None,
) -> Descriptor:
    """Upload an image that stands on nothing, over HTTP."""
    registry, (repository, _, tag) = desk.bench.registry, short.partition(":")
    pack: Callable[[bytes], bytes] = zstandard.ZstdCompressor().compress if zstd else gzip.compress
    kind = "zstd" if zstd else "gzip"
    plain = [tar(layer) for layer in layers]
    platform = Platform.parse(desk.bench.engine.platform)
    config = build_config(platform=platform, diff_ids=[digest_of(layer) for layer in plain])
    blobs = [registry.upload_blob(repository, [pack(layer)]) for layer in plain]
    below = [Descriptor(f"{OCI}layer.v1.tar+{kind}", *blob) for blob in blobs]
    top = Descriptor(f"{OCI}config.v1+json", *registry.upload_blob(repository, [config]))
    manifest = build_manifest(top, below, annotations=annotations)
    digest = registry.put_manifest(repository, tag or digest_of(manifest), manifest, OCI_MANIFEST)
    return Descriptor(OCI_MANIFEST, digest, len(manifest), platform)


def index(desk: Guarded, short: str, *entries: Descriptor, **more: object) -> None:
    """Upload an index: its first image is for this platform, the others are for another one."""
    listed = []
    for number, entry in enumerate(entries):
        assert entry.platform is not None
        cpu = entry.platform.architecture if number == 0 else "s390x"
        platform = {"os": "linux", "architecture": cpu}
        described = {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
        listed.append({**described, "platform": platform})
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed, **more}
    repository, _, tag = short.partition(":")
    desk.bench.registry.put_manifest(repository, tag, json.dumps(content).encode(), OCI_INDEX)


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


def word(desk: Guarded) -> str:
    return f"swordfish-{desk.bench.state.lab_id}"


def use(desk: Guarded) -> str:
    """What the password's use writes."""
    content = (safe(desk) / ".env").read_bytes()
    return f"{hashlib.sha256(content).hexdigest()}  /src/.env\n"


def solved_secret(desk: Guarded) -> None:
    exec(find_exercise("06-secret").solution, desk.cells("exercise-secret-file"))


def secret_typed(desk: Guarded) -> None:
    (safe(desk) / "Dockerfile").write_text(STAGES)
    desk.typed(safe(desk), "team/safe:1", BASE=str(desk.bench.base("python:3.13-slim")))


def secret_mounted(desk: Guarded) -> None:
    """What ``RUN --mount=type=secret`` leaves: a mount point at most."""
    store(desk, "team/safe:1", {"src/.env": "", "src/used": use(desk)})


def secret_zstd(desk: Guarded) -> None:
    store(desk, "team/safe:1", {"./src/used": use(desk)}, zstd=True)


def secret_second_time(desk: Guarded) -> None:
    """The file of an older password is replaced by a later layer."""
    store(desk, "team/safe:1", {"src/used": "older"}, {"src/used": use(desk)})


def leak(*lines: str, **args: str) -> Steps:
    """Build the image in one stage, with some lines."""

    def steps(desk: Guarded) -> None:
        slim = str(desk.bench.base("python:3.13-slim"))
        text = "\n".join([f"FROM {slim}", *lines]).replace("WORD", word(desk))
        (safe(desk) / "Dockerfile").write_text(text)
        values = {name: value.replace("WORD", word(desk)) for name, value in args.items()}
        desk.lab.build(safe(desk), tag=desk.name("team/safe:1"), args=values)
        desk.push("team/safe:1")

    return steps


def layers(*made: Mapping[str, str], **more: Any) -> Steps:
    """Upload layers; ``WORD`` is the password and ``USE`` what its use writes."""

    def steps(desk: Guarded) -> None:
        def filled(text: str) -> str:
            return text.replace("WORD", word(desk)).replace("USE", use(desk))

        filled_in = [{filled(path): filled(text) for path, text in each.items()} for each in made]
        if "annotations" in more:
            more["annotations"] = {name: filled(text) for name, text in more["annotations"].items()}
        safe(desk)
        store(desk, "team/safe:1", *filled_in, **more)

    return steps


def leak_for_another_platform(desk: Guarded) -> None:
    good = store(desk, "team/safe", {"src/used": use(desk)})
    bad = store(desk, "team/safe", {"src/used": use(desk)}, {"src/.env": word(desk)})
    index(desk, "team/safe:1", good, bad)


def leak_in_an_index(desk: Guarded) -> None:
    good = store(desk, "team/safe", {"src/used": use(desk)})
    index(desk, "team/safe:1", good, annotations={"built.with": word(desk)})


def leak_in_provenance(desk: Guarded) -> None:
    """As buildx has it: build arguments in an attestation, beside the image."""
    registry = desk.bench.registry
    good = store(desk, "team/safe", {"src/used": use(desk)})
    told = json.dumps({"predicate": {"build-arg:WITH": word(desk)}}).encode()
    config = build_config(platform=Platform("unknown", "unknown"), diff_ids=[digest_of(told)])
    top = Descriptor(f"{OCI}config.v1+json", *registry.upload_blob("team/safe", [config]))
    below = Descriptor("application/vnd.in-toto+json", *registry.upload_blob("team/safe", [told]))
    manifest = build_manifest(top, [below])
    digest = registry.put_manifest("team/safe", digest_of(manifest), manifest, OCI_MANIFEST)
    index(desk, "team/safe:1", good, replace(good, digest=digest, size=len(manifest)))


def clean_index(desk: Guarded) -> None:
    good = store(desk, "team/safe", {"src/used": use(desk)})
    index(desk, "team/safe:1", good, store(desk, "team/safe", {"src/used": "another"}))


def naive(desk: Guarded) -> None:
    desk.pushed_from(safe(desk), "team/safe:1")


def no_password(desk: Guarded) -> None:
    solved_secret(desk)
    (desk.work / "safe" / ".env").write_text("DEPLOY_PASSWORD=\n")


SECRET_RIGHT = (
    solved_secret,
    secret_typed,
    secret_mounted,
    secret_zstd,
    secret_second_time,
    clean_index,
)

IN_ONE = "RUN mkdir /src && echo USED > /src/used"
SECRET_WRONG: list[tuple[Steps, str, str]] = [
    (nothing, "NotYet", "is not there yet"),
    (lambda desk: safe(desk) and None, "NotYet", "no 'team/safe:1' yet"),
    (lambda desk: desk.build(safe(desk), "team/safe:1"), "NotYet", "no 'team/safe:1' yet"),
    (no_password, "NotYet", "holds no password any more"),
    (naive, "Wrong", "in a layer: '/src/.env'"),
    (leak("ENV PASSWORD=WORD"), "Wrong", "settings or history"),
    (leak("LABEL made.with=WORD"), "Wrong", "settings or history"),
    (leak("ARG WITH", "RUN mkdir /src", WITH="WORD"), "Wrong", "settings or history"),
    (layers({"src/used": "USE", "etc/login": "a WORD b"}), "Wrong", "in a layer: '/etc/login'"),
    (layers({"src/.env": "WORD"}, {"src/.wh..env": ""}), "Wrong", "can only hide it"),
    (layers({"src/used": "USE", "src/WORD": ""}), "Wrong", "the name of a file"),
    (layers({"src/used": "USE", "a": "WORD"}, zstd=True), "Wrong", "in a layer: '/a'"),
    (layers({"src/used": "USE"}, annotations={"with": "WORD"}), "Wrong", "the image's manifest"),
    (leak_for_another_platform, "Wrong", "in a layer: '/src/.env'"),
    (leak_in_an_index, "Wrong", "the image's index"),
    (leak_in_provenance, "Wrong", "the image's provenance"),
    (layers({"src/other": "USE"}), "Wrong", "no '/src/used' either"),
    (layers({"src/used": "USE"}, {"src/.wh.used": ""}), "Wrong", "no '/src/used' either"),
    (layers({"src/used": "USE"}, {"src/.wh..wh..opq": ""}), "Wrong", "no '/src/used' either"),
    (layers({"src/used": hashlib.sha256(b"typed").hexdigest()}), "Wrong", "was not made from"),
]


# ---------------------------------------------------------------- 06-base


def base_attack(desk: Guarded) -> str:
    """Let the base's tag name the backdoor, and return the digest that it named before."""
    happened = attacks.start(desk.bench, "base", feedback=QUIET)
    (desk.work / "page").mkdir(exist_ok=True)
    return str(happened.evidence["digest before"])


def dockerfile(text: str, *then: Steps) -> Steps:
    """Write the page's Dockerfile; ``BASE`` is the repository, ``GOOD`` and ``BAD`` digests."""

    def steps(desk: Guarded) -> None:
        good = base_attack(desk)
        assert good == desk.honest
        written = text.replace("GOOD", good).replace("BAD", desk.digest("team/base:1"))
        written = written.replace("FULL", str(desk.bench.base("python:3.13")))
        written = written.replace("LAB", str(desk.bench.base("python:3.13-slim")))
        written = written.replace("BASE", desk.name("team/base"))
        (desk.work / "page" / "Dockerfile").write_text(written)
        all_of(*then)(desk)

    return steps


def solved_base(desk: Guarded) -> None:
    names = desk.cells("base-attack")
    exec(find_exercise("06-base").solution, names)


def base_typed(desk: Guarded) -> None:
    platform = desk.bench.engine.platform
    text = f"# The page.\nfrom --platform={platform} BASE:1@GOOD as page\nRUN echo > /page\n"
    dockerfile(text)(desk)
    desk.typed(desk.work / "page", "team/page:safe")


def hollow(desk: Guarded) -> None:
    store(desk, "team/page:safe", {"page": "1"})


SAFE = named("kept/page:tested", "team/page:safe")
BACKDOOR = named("team/base:1", "team/page:safe")

BASE_RIGHT = (
    solved_base,
    base_typed,
    dockerfile("ARG FOUNDATION=BASE@GOOD\nFROM ${FOUNDATION}\n", SAFE),
    dockerfile("FROM LAB AS one\nFROM one\n", SAFE),
    dockerfile("FROM FULL AS tools\nFROM BASE@GOOD\nCOPY --from=tools /etc/os-release /\n", SAFE),
)

BASE_WRONG: list[tuple[Steps, str, str]] = [
    (nothing, "NotYet", "not there yet"),
    (lambda desk: desk.cells("base-attack") and None, "NotYet", "still trusts a tag"),
    (dockerfile("FROM BASE@BAD\n", BACKDOOR), "Wrong", "pinned the backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE@BAD\n", SAFE), "Wrong", "pinned the backdoor"),
    (dockerfile("FROM BASE@GOOD AS a\nFROM BASE:1\n", SAFE), "Wrong", "still trusted by its tag"),
    (dockerfile("FROM BASE:1 AS a\nFROM BASE@GOOD\n", SAFE), "Wrong", "still trusted by its tag"),
    (
        dockerfile("FROM BASE@GOOD\nCOPY --from=BASE:1 /etc /etc\n", SAFE),
        "Wrong",
        "still trusted by its tag",
    ),
    (dockerfile("FROM FULL\n", SAFE), "Wrong", "not the base that was reviewed"),
    (dockerfile("# FROM BASE@GOOD\n", SAFE), "Wrong", "no FROM line"),
    (dockerfile("FROM scratch\n", SAFE), "Wrong", "no FROM line"),
    (dockerfile("FROM BASE@sha256:1234\n", SAFE), "Wrong", "can't be read"),
    (dockerfile("FROM ${WHICH}\n", SAFE), "Wrong", "can't be read"),
    (dockerfile("FROM BASE@GOOD\n"), "Wrong", "Now build"),
    (dockerfile("FROM BASE@GOOD\n", BACKDOOR), "Wrong", "built before the FROM line"),
    (dockerfile("FROM BASE@GOOD\n", slim_as("team/page:safe")), "Wrong", "is the base itself"),
    (dockerfile("FROM BASE@GOOD\n", hollow), "Wrong", "stands on other layers"),
]


# ---------------------------------------------------------------- 06-wheel


def shop(desk: Guarded) -> Path:
    """A copy of the application that builds on the slim base."""
    app = copy_application(desk.bench)
    slim = desk.bench.base("python:3.13-slim")
    (app / "Dockerfile").write_text(SHOP.format(slim=slim))
    (app / "shop" / "_prices.c").unlink()
    (app / "shop" / "_prices.py").write_text(PRICES)
    return app


def on_the_shop(desk: Guarded, app: Path, pip: str) -> None:
    """Write a Dockerfile that runs pip once more, on the shop as it should be."""
    lines = [f"FROM {desk.name('kept/web:hashed')}", "WORKDIR /src", "COPY wheels wheels"]
    lines += ["COPY requirements.txt ."]
    lines += [f"RUN pip --python /opt/venv {pip} --no-index --find-links=wheels", "WORKDIR /"]
    (app / "Dockerfile").write_text("\n".join(lines))


def wheel_attack(desk: Guarded) -> Path:
    app = shop(desk)
    attacks.start(desk.bench, "dependency", feedback=QUIET)
    return app


def solved_wheel(desk: Guarded) -> None:
    app = wheel_attack(desk)
    names = {"lab": desk.lab, "app": app, "web": desk.name("shop/web")}
    exec(find_exercise("06-wheel").solution, {**names, **ERRORS})


def pinned(app: Path) -> dict[str, Path]:
    """The wheel of each requirement, by its line."""
    lines = (app / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
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


def hashed(edit: Callable[[list[str]], list[str]] = lambda lines: lines, *then: Steps) -> Steps:
    """Write hashed requirements, a line each, from the wheels that were tested, with a slip."""

    def steps(desk: Guarded) -> None:
        app = shop(desk)
        lines = [f"{line} --hash={sha256(wheel)}" for line, wheel in pinned(app).items()]
        attacks.start(desk.bench, "dependency", feedback=QUIET)
        (app / "requirements.txt").write_text("\n".join(edit(lines)) + "\n")
        all_of(*then)(desk)

    return steps


def sha256(file: Path) -> str:
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def trusting(desk: Guarded) -> None:
    """Take the digests after the attack."""
    app = wheel_attack(desk)
    (app / "requirements.txt").write_text(desk.lab.hashed_requirements(app))
    desk.copy("kept/web:swapped", "shop/web:hashed")


def trusting_both(desk: Guarded) -> None:
    """Take the digests before and after it."""
    app = shop(desk)
    both = [desk.lab.hashed_requirements(app)]
    attacks.start(desk.bench, "dependency", feedback=QUIET)
    both.append(desk.lab.hashed_requirements(app))
    found = [text.replace("\\\n", "").splitlines() for text in both]
    lines = [
        f"{one} {other.partition(' ')[2]}" if "==" in one else one
        for one, other in zip(*found, strict=True)
    ]
    (app / "requirements.txt").write_text("\n".join(lines))


HASHED = named("kept/web:hashed", "shop/web:hashed")
SWAPPED = named("kept/web:swapped", "shop/web:hashed")


def bare(lines: list[str]) -> list[str]:
    return [line.partition(" ")[0] for line in lines]


WHEEL_RIGHT = (solved_wheel, wheel_typed, hashed(lambda lines: lines, HASHED))

WHEEL_WRONG: list[tuple[Steps, str, str]] = [
    (nothing, "NotYet", "is not there yet"),
    (lambda desk: wheel_attack(desk) and None, "NotYet", "names versions, and no digest"),
    (
        hashed(lambda lines: [f"# {line}" for line in lines] + bare(lines), HASHED),
        "NotYet",
        "names versions, and no digest",
    ),
    (hashed(lambda lines: lines[:3] + bare(lines)[3:], HASHED), "Wrong", "has no digest"),
    (
        hashed(lambda lines: [lines[0].replace(" ", " # "), *lines[1:]], HASHED),
        "Wrong",
        "'blinker' has no digest",
    ),
    (trusting, "Wrong", "digest of the swapped wheel"),
    (trusting_both, "Wrong", "digest of the swapped wheel"),
    (
        hashed(lambda lines: [lines[0].split()[0] + " " + lines[1].split()[1], *lines[1:]], HASHED),
        "Wrong",
        "of another wheel than 'blinker'",
    ),
    (
        hashed(lambda lines: [*lines[:-1], lines[-1][:-3] + "000"], HASHED),
        "Wrong",
        "the digest of no wheel",
    ),
    (hashed(lambda lines: lines[:-1], HASHED), "Wrong", "does not name 'werkzeug' any more"),
    (hashed(), "Wrong", "Now build 'shop/web:hashed'"),
    (hashed(lambda lines: lines, SWAPPED), "Wrong", "has the attacker's code in it"),
    (
        hashed(lambda lines: lines, slim_as("shop/web:hashed")),
        "Wrong",
        "'shop/web:hashed' is not the shop",
    ),
]


# ---------------------------------------------------------------- 06-rights


def private_shop(desk: Guarded) -> str:
    return f"{desk.private.address}/shop/web:1.4"


def server(rights: Mapping[str, tuple[str, ...]], *then: Steps) -> Steps:
    """Add the account, then do what it may or may not."""

    def steps(desk: Guarded) -> None:
        desk.private.accounts.add("server", SERVER, rights=rights)
        all_of(*then)(desk)

    return steps


def account(name: str, password: str, rights: Mapping[str, tuple[str, ...]]) -> Steps:
    return lambda desk: desk.private.accounts.add(name, password, rights=rights)


def pulls(name: str = "server", password: str = SERVER) -> Steps:
    """Read the shop, over HTTP, let it be refused or not."""

    def steps(desk: Guarded) -> None:
        with contextlib.suppress(LabError):
            desk.private.registry(name, password).manifest("shop/web", "1.4")

    return steps


def pushes(name: str = "server", password: str = SERVER, to: str = "shop/web") -> Steps:
    """Send a blob, over HTTP, let it be refused or not."""

    def steps(desk: Guarded) -> None:
        with contextlib.suppress(LabError):
            desk.private.registry(name, password).upload_blob(to, [b"pushed"])

    return steps


def asks(scope: str, password: str = SERVER) -> Steps:
    """Ask the token service itself, as ``curl -u server:… URL`` does."""

    def steps(desk: Guarded) -> None:
        found = process.find(desk.bench.state)
        assert found is not None
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(desk.private.authority.certificate)
            wanted = {"service": SERVICE, "scope": scope}
            session.get(found.realm, params=wanted, auth=("server", password), timeout=10)

    return steps


def solved_rights(desk: Guarded) -> None:
    exec(find_exercise("06-rights").solution, {"private": desk.private, **ERRORS})


def rights_typed(desk: Guarded) -> None:
    server({"shop/*": PULL})(desk)
    config = ("--config", str(desk.work / "login"))
    login = ("login", "-u", "server", "-p", SERVER, desk.private.address)
    assert desk.docker(*config, *login) == 0
    assert desk.docker(*config, "pull", private_shop(desk)) == 0
    assert desk.docker(*config, "push", private_shop(desk)) != 0


RIGHTS_RIGHT = (
    solved_rights,
    rights_typed,
    server({"shop/**": PULL, "shop/web": PULL, "team/*": ()}, pulls(), pushes()),
    server(
        {"shop/*": PULL},
        asks("repository:shop/web:pull"),
        asks("repository:shop/worker:push"),
    ),
    # First too much, which is seen and mended.
    server({"shop/*": PUSH}, pulls(), pushes(), server({"shop/*": PULL}, pulls(), pushes())),
)

NARROW = {"shop/*": PULL}
TRIED = (pulls(), pushes())
RIGHTS_WRONG: list[tuple[Steps, str, str]] = [
    (nothing, "NotYet", "no account 'server' yet"),
    (server({}, *TRIED), "Wrong", "may not pull in 'shop/web'"),
    (server({"shop/*": PUSH}, *TRIED), "Wrong", "may also push in 'shop/*'"),
    (server({**NARROW, "shop/web": PUSH}, *TRIED), "Wrong", "may also push in 'shop/web'"),
    (server({"shop/*": ("pull", "delete")}, *TRIED), "Wrong", "may also delete in 'shop/*'"),
    (server({"*": PULL}, *TRIED), "Wrong", "in '*', which reaches beyond"),
    (server({"shop*": PULL}, *TRIED), "Wrong", "in 'shop*', which reaches beyond"),
    (server({**NARROW, "team/leak": PULL}, *TRIED), "Wrong", "in 'team/leak', which reaches"),
    (server({"shop/web": PULL}, *TRIED), "Wrong", "may not pull in 'shop/worker'"),
    (server({"shop/w*": PULL}, *TRIED), "Wrong", "may not pull in 'shop/made/tomorrow'"),
    (server(NARROW, *TRIED, account("ci", CI, NARROW)), "Wrong", "'ci' may not push"),
    (server(NARROW, *TRIED, account("ci", CI, {"*": PUSH})), "Wrong", "'ci' has rights in '*'"),
    (
        server(NARROW, *TRIED, lambda desk: desk.private.accounts.remove("ci")),
        "Wrong",
        "'ci' may not pull and push",
    ),
    (
        server(NARROW, *TRIED, lambda desk: desk.private.accounts.add("", rights=NARROW)),
        "Wrong",
        "Somebody who does not log in has rights",
    ),
    (server(NARROW, *TRIED, account("ann", "ann", NARROW)), "Wrong", "'ann' has rights"),
    (server(NARROW), "Wrong", "Now try them"),
    (server(NARROW, pulls("ci", CI), pushes("ci", CI)), "Wrong", "Now try them"),
    (server(NARROW, pulls()), "Wrong", "refuse its push"),
    (server(NARROW, pushes()), "Wrong", "pull 'shop/web:1.4'"),
    (server(NARROW, pulls(), pushes(to="team/page")), "Wrong", "refuse its push"),
    (
        server(NARROW, pulls(), asks("repository:shop/web:pull,push", "guessed")),
        "Wrong",
        "refuse its push",
    ),
    (server({"shop/*": PUSH}, *TRIED, server(NARROW)), "Wrong", "does not count"),
    (server({"shop/*": PUSH}, *TRIED, server(NARROW, pulls())), "Wrong", "refuse its push"),
    (server({"*": PULL}, *TRIED, server(NARROW)), "Wrong", "does not count"),
    (server(NARROW, *TRIED, server(NARROW, pushes())), "Wrong", "does not count"),
]


# ---------------------------------------------------------------- 06-gate


def gate_attack(desk: Guarded) -> Names:
    """Push what is tested, then run the cell that lets the tag move, and writes a file."""
    desk.copy("kept/page:tested", "shop/web:1.4")
    return attacked_again(desk, desk.digest("shop/web:1.4"))


def attacked_again(desk: Guarded, tested: str) -> Names:
    pushed = SimpleNamespace(digest=digest_of(b"a note"))
    return desk.cells("gate-attack", pushed=pushed, tested=SimpleNamespace(digest=tested))


def solved_gate(desk: Guarded) -> None:
    exec(find_exercise("06-gate").solution, gate_attack(desk))


def production(desk: Guarded) -> Path:
    return desk.work / "production.yaml"


def written(text: str, *then: Steps) -> Steps:
    """Write the file; ``WEB`` is the repository, ``GOOD`` and ``BAD`` are digests."""

    def steps(desk: Guarded) -> None:
        good = str(gate_attack(desk)["tested"].digest)
        filled = text.replace("GOOD", good).replace("BAD", desk.digest("shop/web:1.4"))
        if "OTHER" in text:
            desk.copy("kept/page:other", "shop/web:other")
            filled = filled.replace("OTHER", desk.digest("shop/web:other"))
        filled = filled.replace("WEB", desk.name("shop/web")).replace("TEAM", desk.name("team"))
        production(desk).write_text(filled)
        all_of(*then)(desk)

    return steps


def deployed(desk: Guarded) -> None:
    desk.deploy(production(desk))


def started(desk: Guarded) -> None:
    """Start what the file names, from the terminal."""
    image = find_image(desk)
    assert desk.docker("run", "-d", "--label", desk.label, "-P", image) == 0


def find_image(desk: Guarded) -> str:
    text = production(desk).read_text(encoding="utf-8")
    return desk.name(text.partition(f"{desk.bench.registry.address}/")[2].split('"')[0])


def stopped(desk: Guarded) -> None:
    for container in evidence.containers(desk.bench):
        if "shop/web" in container["Config"]["Image"]:
            desk.bench.engine.client.api.kill(container["Id"])


def undone(desk: Guarded) -> None:
    """Undo the attack; only then pin the tag, with the lab's own command."""
    gate_attack(desk)
    attacks.undo(desk.bench, feedback=QUIET)
    production(desk).write_text(f"services:\n  web:\n    image: {desk.name('shop/web:1.4')}\n")
    desk.lab.pin_deployment(production(desk))
    deployed(desk)


def twice(desk: Guarded) -> None:
    """The cell with the attack is run a second time."""
    tested = gate_attack(desk)["tested"]
    exec(find_exercise("06-gate").solution, attacked_again(desk, tested.digest))


def pushed_anew(desk: Guarded) -> None:
    """Another image is tested and pushed as 1.4, and the tag moves again."""
    gate_attack(desk)
    desk.copy("kept/page:other", "shop/web:1.4")
    names = attacked_again(desk, desk.digest("shop/web:1.4"))
    exec(find_exercise("06-gate").solution, names)


def another_moved(desk: Guarded) -> None:
    """Another tag was attacked before."""
    desk.copy("kept/page:other", "shop/web:1.3")
    target = desk.name("shop/web:1.3")
    attacks.start(desk.bench, "moved", target=target, feedback=QUIET)
    solved_gate(desk)


def pinned_now(desk: Guarded) -> None:
    """Pin what the tag names after the attack."""
    written("services:\n  web:\n    image: WEB:1.4\n")(desk)
    desk.lab.pin_deployment(production(desk))
    deployed(desk)


def tag_deployed(desk: Guarded) -> None:
    """Deploy by tag, before the attack; then only the file is pinned."""
    desk.copy("kept/page:tested", "shop/web:1.4")
    production(desk).write_text(f"services:\n  web:\n    image: {desk.name('shop/web:1.4')}\n")
    deployed(desk)
    written(GOOD)(desk)


def moved_deployed(desk: Guarded) -> None:
    """Deploy what nobody tested; then start beside it what was tested."""
    digest = gate_attack(desk)["tested"].digest
    web = desk.name("shop/web")
    production(desk).write_text(f"services:\n  web:\n    image: {web}:1.4\n")
    deployed(desk)
    production(desk).write_text(f'services:\n  web:\n    image: "{web}@{digest}"\n')
    started(desk)


GOOD = "services:\n  web:\n    image: WEB@GOOD\n"
FLOW = 'services: {web: {image: "WEB:1.4@GOOD", ports: ["127.0.0.1::8000"]}}  # pinned\n'

GATE_RIGHT = (
    solved_gate,
    written(FLOW, deployed),
    written(FLOW, started),
    undone,
    twice,
    pushed_anew,
    another_moved,
)

GATE_WRONG: list[tuple[Steps, str, str]] = [
    (nothing, "NotYet", "is not there yet"),
    (lambda desk: gate_attack(desk) and None, "NotYet", "is not pinned yet"),
    (lambda desk: production(desk).write_text(GOOD) and None, "NotYet", "has no 'shop/web:1.4'"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page\n"), "Wrong", "The gate refuses"),
    (written(f"{GOOD}  cache:\n    image: TEAM/page@GOOD\n"), "Wrong", "not allowed"),
    (written(f"{GOOD}  cache:\n    image: WEB@BAD\n"), "Wrong", "'cache' is pinned to"),
    (pinned_now, "Wrong", "'web' is pinned to"),
    (written(GOOD.replace("GOOD", "OTHER"), deployed), "Wrong", "is not what was tested"),
    (written(GOOD.replace("GOOD", f"sha256:{'1' * 64}")), "Wrong", "no such digest"),
    (
        written(GOOD.replace("GOOD", "BAD"), lambda desk: attacks.undo(desk.bench, feedback=QUIET)),
        "Wrong",
        "no such digest",
    ),
    (written(GOOD.replace("web:", "shop:")), "Wrong", "no service 'web' any more"),
    (written("services:\n  web: [\n"), "Wrong", "can't be used as it is"),
    (written("web:\n  image: WEB@GOOD\n"), "Wrong", "can't be used as it is"),
    (written(GOOD), "Wrong", "Now deploy it: nothing runs"),
    (written(GOOD, deployed, stopped), "Wrong", "it has stopped"),
    (tag_deployed, "Wrong", "nothing runs from the file as it is now"),
    (moved_deployed, "Wrong", "was started from"),
]


# ---------------------------------------------------------------- all of them

RIGHT: list[tuple[str, Steps]] = [
    *(("06-secret", steps) for steps in SECRET_RIGHT),
    *(("06-base", steps) for steps in BASE_RIGHT),
    *(("06-wheel", steps) for steps in WHEEL_RIGHT),
    *(("06-rights", steps) for steps in RIGHTS_RIGHT),
    *(("06-gate", steps) for steps in GATE_RIGHT),
]

WRONG: list[tuple[str, Steps, str, str]] = [
    *(("06-secret", *case) for case in SECRET_WRONG),
    *(("06-base", *case) for case in BASE_WRONG),
    *(("06-wheel", *case) for case in WHEEL_WRONG),
    *(("06-rights", *case) for case in RIGHTS_WRONG),
    *(("06-gate", *case) for case in GATE_WRONG),
]


class TestExercises(Tried):
    chapters = ("06",)
