"""Deployment files and Dockerfiles: pinned, where only the references change; read, or refused."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registries import Reply, Seen, error, serving

from labapp.errors import DeploymentError, InvalidReference, NotInRegistry, StateError
from labapp.feedback import QuietFeedback, using
from labapp.journey.deploy import read_deployment
from labapp.journey.pin import pin, pin_deployment, pin_dockerfile
from labapp.reference import Reference
from labapp.registry.client import Registry

Act = Callable[[Path, Registry], object]

D = "sha256:" + "0123456789abcdef" * 4
OLD = "sha256:" + "fedcba9876543210" * 4


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """A registry that knows 'base/python' and 'shop/web', and nothing else."""

    def answer(request: Seen) -> Reply:
        if not request.path.startswith(("/v2/base/python/", "/v2/shop/web/")):
            return error(404, "MANIFEST_UNKNOWN")
        return Reply(headers={"Docker-Content-Digest": D})

    with serving(answer) as server:
        yield Registry(server.address)


# Pinned; without the '@D' it is what stood there before.
DOCKERFILES = {
    "no tag": "FROM R/base/python@D\n",
    "comments, spaces and case": (
        "# syntax=docker/dockerfile:1\n#FROM R/a:1\n  from   R/base/python:3@D   as\tx  \n"
    ),
    "continued line": (
        "FROM --platform=$BUILDPLATFORM \\\n  # why\n\n    R/base/python:3@D \\\n    AS b\n"
    ),
    "another escape": "# escape=`\nFROM `\n R/base/python:3@D\nRUN dir C:\\\nFROM R/shop/web:1@D\n",
    "byte order mark, windows line ends": "\ufeffFROM R/base/python:3@D\r\nRUN a \\\r\n  b",
    "stages are left alone": (
        "FROM R/base/python:3@D AS Build\nFROM build AS test\nFROM test\nFROM scratch\n"
    ),
    "argument": "ARG BASE=R/base/python:3@D\nFROM ${BASE} AS a\nFROM $BASE\n",
    "quoted argument among others": 'ARG A=1 BASE="R/base/python:3@D" C=\'x y\'\nFROM "${BASE}"\n',
    "default of an empty argument": "ARG BASE=\nFROM ${BASE:-R/base/python:3@D}\n",
    "here-document": (
        "FROM R/base/python:3@D\nRUN <<EOF\nFROM R/base/python:no\nEOF\nCOPY <<-'A' <<B /x\n"
        "\tFROM R/a:1\n\tA\nFROM R/b:1\nB\nFROM R/shop/web:1@D\n"
    ),
    "shift operator is no here-document": (
        "FROM R/base/python:3@D\nRUN echo $((1<<2)) <<x\nFROM R/shop/web:1@D\n"
    ),
    "copied from an image": (
        "FROM R/base/python:3@D AS a\nCOPY --from=a /x /x\nCOPY --from=0 /y /y\n"
        "COPY --chown=1:1 --from=R/shop/web:1@D /z /z\n"
    ),
    "mounted from an image": (
        "FROM R/base/python:3@D AS a\n"
        "RUN --mount=from=R/shop/web:1@D,target=/x --mount=type=cache,target=/c "
        "echo --mount=from=R/none/such:1\nRUN --mount=type=bind,from=a,target=/a "
        "--mount=type=bind,target=/b,from=R/shop/web:2@D x\n"
    ),
    "at the build of another": (
        "FROM R/base/python:3@D\nONBUILD COPY --from=R/shop/web:1@D /x /y\n"
        "ONBUILD RUN --mount=type=bind,from=R/shop/web:2@D,target=/z <<EOF\n"
        "FROM R/base/python:no\nEOF\nONBUILD RUN true\n"
    ),
    "bytes that are no UTF-8": "# caf\udce9\nFROM R/base/python:3@D\n",
}


def as_notepad(text: str) -> str:
    """Return a text as an editor on Windows may write it."""
    return "\ufeff" + re.sub("\r?\n", "\r\n", text.removeprefix("\ufeff"))


WRITTEN = pytest.mark.parametrize("written", [str, as_notepad])


def _write(path: Path, text: str, registry: Registry) -> bytes:
    data = text.replace("R/", f"{registry.address}/").replace("@D", f"@{D}")
    raw = data.encode("utf-8", errors="surrogateescape")
    path.write_bytes(raw)
    return raw


def pinned(act: Act, before: str, after: str, registry: Registry, path: Path) -> None:
    """A file becomes what it should be, each change is told, a second time makes no more."""
    _write(path, before, registry)
    with using(QuietFeedback()) as told:
        act(path, registry)
        found = path.read_bytes()
        act(path, registry)
    assert path.read_bytes() == found == _write(path, after, registry)
    lines = found.decode("utf-8", errors="surrogateescape").split("\n")
    changes = re.findall(r"line (\d+): (\S+) → (\S+)", "\n".join(told.lines))
    for line, old, new in changes:
        assert new in lines[int(line) - 1]
        assert Reference.parse(old).name == Reference.parse(new).name
    assert len(changes) == after.count("@D")


@WRITTEN
@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(
    name: str, written: Callable[[str], str], registry: Registry, tmp_path: Path
) -> None:
    after = written(DOCKERFILES[name])
    pinned(pin_dockerfile, after.replace("@D", ""), after, registry, tmp_path / "Dockerfile")


# What is in brackets stands there before; the digest instead of it afterwards.
DEPLOYMENTS = {
    "plain, comments kept": (
        "# Top.\nservices:\n  web:   # the shop\n    image:   R/shop/web«:1.4»   # tested?\n"
        "    ports:\n    - '8000'\n"
    ),
    "quotes and windows line ends": (
        "services:\r\n  a: {image: \"R/shop/web«:1»\"}\r\n  b:\r\n    image: 'R/base/python«»'\r\n"
    ),
    "anchor and merge": (
        "x-web: &web\n  image: &i R/shop/web«:1»\nservices:\n  a: {<<: *web}\n  b:\n    image: *i\n"
    ),
    "what deploy would not run": (
        "version: 3\nservices:\n  a:\n    build: .\n"
        "  b:\n    image: R/shop/web«:1»\n    restart: always\n"
        "    deploy: {resources: {limits: {cpus: 0.5}}}\n    environment: {A: $B}\n"
        "    ports: [{target: 80}]\nvolumes:\n  data:\nnetworks: {x: {driver: bridge}}\n"
    ),
    "built, and by a variable": (
        "services:\n  a:\n    build: .\n    image: R/shop/web:1\n  b: {image: 'x:${TAG:-2}'}\n"
        "  c:\n    image: R/shop/web«:2»\n"
    ),
    "one of two is pinned already": (
        f"services:\n  a:\n    image: R/shop/web@{OLD}\n  b:\n    image: R/shop/web«:2»\n"
    ),
}


@WRITTEN
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment(
    name: str, written: Callable[[str], str], registry: Registry, tmp_path: Path
) -> None:
    text = written(DEPLOYMENTS[name])
    before, after = re.sub("«(.*?)»", r"\1", text), re.sub("«.*?»", "@D", text)
    pinned(pin_deployment, before, after, registry, tmp_path / "deployment.yaml")


@pytest.mark.parametrize(
    ("act", "text", "named"),
    [
        (
            pin_dockerfile,
            "# syntax=docker/dockerfile:1\nFROM scratch\n",
            {1: "docker/dockerfile:1"},
        ),
        (pin_dockerfile, "FROM scratch\nCOPY --from=nginx /a /b\n", {2: "nginx"}),
        (pin_dockerfile, "FROM scratch\nONBUILD RUN --mount=from=${X} a\n", {2: "${X}"}),
        (pin_dockerfile, "FROM scratch AS a\nFROM a\nCOPY --from=A /a /b\nCOPY --from=0 /a /b", {}),
        (
            pin_deployment,
            "services:\n  a: {image: $X, build: .}\n  b: {image: 'c:$D'}",
            {2: "$X", 3: "c:$D"},
        ),
    ],
)
def test_what_is_left_alone_is_told(
    act: Act, text: str, named: dict[int, str], registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with using(QuietFeedback()) as told:
        act(path, registry)
    assert path.read_text() == text
    lines = "\n".join(told.lines).splitlines()
    assert len(lines) == len(named)
    for line, (number, name) in zip(lines, named.items(), strict=True):
        assert line.startswith(f"line {number}: '{name}' ")


def read(path: Path, registry: Registry) -> object:
    return read_deployment(path)


# What is in the file, the line that is named, and the fact.
BAD: list[tuple[Act, str, int | None, str]] = [
    (pin_dockerfile, "ARG V=3\nFROM R/base/python:${V}\n", 2, "V"),
    (pin_dockerfile, "ARG V=3\nARG BASE=R/base/python:${V}\nFROM $BASE\n", 2, "BASE"),
    (pin_dockerfile, "# x\nARG BASE\nFROM $BASE\n", 3, "BASE"),
    (pin_dockerfile, "ARG BASE=\nFROM $BASE\n", 2, "BASE"),
    (pin_dockerfile, "FROM python:3.13\n", 1, "'docker.io'"),
    (pin_dockerfile, "FROM R/Base/python:3\n", 1, "Base"),
    (pin_dockerfile, "FROM R/base/python:3\nFROM R/none/such:1\n", 2, "none/such"),
    (
        pin_deployment,
        "services:\n  a: {image: R/shop/web:1}\n  b: {image: R/no/such:2}",
        3,
        "no/such",
    ),
    (pin_deployment, "services:\n  a:\n    image: >-\n      R/x\n      y\n", 3, "image"),
    (read, "", 1, "services"),
    (read, "name: x\nservices: {a: {image: b}}\n", 1, "name"),
    (read, "services:\n  web: x\n", 2, "web"),
    (read, "services:\n  web:\n    image:\n", 3, "image"),
    (read, "services:\n  web:\n    image: ${A}/b\n", 3, "$"),
    (read, "services:\n  web:\n    image: a\n    build: .\n", 4, "build"),
    (read, "services:\n  web:\n    image: a\n    image: b\n", 4, "image"),
    (read, "services:\n  'we b': {image: a}\n", 2, "we b"),
    (read, "services:\n  a: {image: b}\n  c:\n   ports: [1]\n", 4, "image"),
    (read, "services: {a: {image: b, ports: ['x']}}\n", 1, "'x'"),
    (read, "services: {a: {image: b, ports: ['53/udp']}}\n", 1, "53/udp"),
    (read, "services: {a: {image: b, ports: ['70000']}}\n", 1, "70000"),
    (read, "services: {a: {image: b, ports: ['" + "1" * 5000 + "']}}\n", 1, "ports"),
    (read, "services: {a: {image: b, ports: [{target: 1}]}}\n", 1, "ports"),
    (read, "services: {a: {image: b, environment: x}}\n", 1, "environment"),
    (read, "services: {a: {image: b, read_only: yes}}\n", 1, "true, false"),
    (read, "services: {a: {image: b, restart: often}}\n", 1, "'often'"),
    (read, "services: {a: {image: b, privileged: true}}\n", 1, "privileged"),
    (read, "services: {a: {image: b, environment: [=x]}}\n", 1, "NAME=value"),
    (read, "services:\n  a: {image: b, environment: {X: }}\n", 2, ".X'"),
    (read, "services:\n  web:\n   image: a\n  x: [\n", 5, ""),
    (read, "a: 1\n---\nb: 1\n", 2, "document"),
    (read, "services: &s\n  a: *s\n", None, ""),
    (read, "x-b: &b {image: b}\nservices:\n  a: {<<: *b}\n", 1, "<<"),
    (read, "services: {a: {image: b}}\x07\n", None, "YAML"),
]


@pytest.mark.parametrize(("act", "text", "line", "fact"), BAD)
def test_what_can_not_be_used_stays_as_it_is(
    act: Act, text: str, line: int | None, fact: str, registry: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    before = _write(path, text, registry)
    with pytest.raises((InvalidReference, NotInRegistry, DeploymentError)) as caught:
        act(path, registry)
    said = str(caught.value)
    assert (f"line {line}: " if line else f"'{path}'") in said and fact in said
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_everything_that_deploy_reads(tmp_path: Path) -> None:
    text = """\
version: "3"
x-note: {any: thing}
services:
  web:
    image: &i localhost:1/shop/web:1.4
    ports: ["127.0.0.1::8000", 9000, "9001/tcp", ":9002", "0.0.0.0:80:9003", "[::1]:81:9004"]
    environment:
      A: 1
      B: "two words"
      G: ""
      D: $$5
      E: 1.10
      F: true
    x-more: 1
  worker:
    image: *i
    ports:
      - 22:22
    environment: [A=1=2, B=]
"""
    path = tmp_path / "deployment.yaml"
    path.write_text(text, encoding="utf-8")
    web, worker = read_deployment(path)
    assert (web.name, web.image, web.line) == ("web", "localhost:1/shop/web:1.4", 5)
    assert web.ports == {8000: 0, 9000: 0, 9001: 0, 9002: 0, 9003: 80, 9004: 81}
    assert web.environment == {
        "A": "1", "B": "two words", "G": "", "D": "$5", "E": "1.10", "F": "true",
    }  # fmt: skip
    # YAML 1.1 would read 22:22 as the number 1342.
    assert (worker.image, worker.line, worker.ports) == (web.image, 16, {22: 22})
    assert worker.environment == {"A": "1=2", "B": ""}


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "binary.yaml"):
        with pytest.raises(DeploymentError, match=name):
            read_deployment(tmp_path / name)


def test_pin(registry: Registry) -> None:
    name = f"{registry.address}/shop/web"
    assert str(pin(registry, f"{name}:1.4")) == f"{name}@{D}"
    assert str(pin(registry, f"{name}:1.4@{OLD}")) == f"{name}@{OLD}"
    other = name.replace("localhost", "127.0.0.1")
    assert str(pin(registry, other)) == f"{other}@{D}"


def test_mode_and_link_are_kept(registry: Registry, tmp_path: Path) -> None:
    path, named = tmp_path / "real", tmp_path / "Dockerfile"
    _write(path, "FROM R/base/python:3\n", registry)
    path.chmod(0o640)
    named.symlink_to(path)
    pin_dockerfile(named, registry)
    with pytest.raises(StateError, match="none"):
        pin_dockerfile(tmp_path / "none", registry)
    assert named.is_symlink() and D in named.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
