"""Pinning files: only the references change, whatever is around them."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp import pins
from labapp.errors import DeploymentError, InvalidReference, NotInRegistry, StateError
from labapp.images.dockerfile import instructions
from labapp.registry import Registry

D = "sha256:" + "0123456789abcdef" * 4
OLD = "sha256:" + "fedcba9876543210" * 4


class _Answers(BaseHTTPRequestHandler):
    """A registry that knows 'base/python' and 'shop/web', and nothing else."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        known = any(f"/v2/{name}/manifests/" in self.path for name in ("base/python", "shop/web"))
        body = b"" if known else json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN"}]}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        if known:
            self.send_header("Docker-Content-Digest", D)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Registry(f"localhost:{server.server_port}")
        server.shutdown()
        thread.join()


DOCKERFILES = {
    "plain": ("FROM R/base/python:3.13\n", "FROM R/base/python:3.13@D\n"),
    "no tag": ("FROM R/base/python\n", "FROM R/base/python@D\n"),
    "stage name and platform": (
        "FROM --platform=linux/amd64 R/base/python:3.13 AS build\n",
        "FROM --platform=linux/amd64 R/base/python:3.13@D AS build\n",
    ),
    "comments, spaces and case": (
        "# syntax=docker/dockerfile:1\n#FROM R/a:1\n  from   R/base/python:3   as\tx  \n",
        "# syntax=docker/dockerfile:1\n#FROM R/a:1\n  from   R/base/python:3@D   as\tx  \n",
    ),
    "continued line": (
        "FROM --platform=$BUILDPLATFORM \\\n  # why\n\n    R/base/python:3 \\\n    AS b\n",
        "FROM --platform=$BUILDPLATFORM \\\n  # why\n\n    R/base/python:3@D \\\n    AS b\n",
    ),
    "another escape": (
        "# escape=`\nFROM `\n R/base/python:3\nRUN dir C:\\\nFROM R/shop/web:1\n",
        "# escape=`\nFROM `\n R/base/python:3@D\nRUN dir C:\\\nFROM R/shop/web:1@D\n",
    ),
    "windows line ends": (
        "FROM R/base/python:3\r\nRUN a \\\r\n  b\r\n",
        "FROM R/base/python:3@D\r\nRUN a \\\r\n  b\r\n",
    ),
    "byte order mark, no newline at the end": (
        "\ufeffFROM R/base/python:3",
        "\ufeffFROM R/base/python:3@D",
    ),
    "stages are left alone": (
        "FROM R/base/python:3 AS Build\nFROM build AS test\nFROM test\nFROM scratch\n",
        "FROM R/base/python:3@D AS Build\nFROM build AS test\nFROM test\nFROM scratch\n",
    ),
    "argument": (
        "ARG BASE=R/base/python:3\nFROM ${BASE} AS a\nFROM $BASE\n",
        "ARG BASE=R/base/python:3@D\nFROM ${BASE} AS a\nFROM $BASE\n",
    ),
    "quoted argument among others": (
        'ARG A=1 BASE="R/base/python:3" C=\'x y\'\nFROM "${BASE}"\n',
        'ARG A=1 BASE="R/base/python:3@D" C=\'x y\'\nFROM "${BASE}"\n',
    ),
    "the argument's last default counts": (
        "ARG BASE=R/base/python:1\nARG BASE=R/base/python:2\nFROM $BASE\nARG BASE=R/shop/web:1\n",
        "ARG BASE=R/base/python:1\nARG BASE=R/base/python:2@D\nFROM $BASE\nARG BASE=R/shop/web:1\n",
    ),
    "default in the FROM line": (
        "ARG BASE\nFROM ${BASE:-R/base/python:3}\n",
        "ARG BASE\nFROM ${BASE:-R/base/python:3@D}\n",
    ),
    "argument that names a stage": (
        "ARG FINAL=one\nFROM R/base/python:3 AS one\nFROM ${FINAL}\n",
        "ARG FINAL=one\nFROM R/base/python:3@D AS one\nFROM ${FINAL}\n",
    ),
    "here-document": (
        "FROM R/base/python:3\nRUN <<EOF\nFROM R/base/python:no\nEOF\nCOPY <<-'A' <<B /x\n"
        "\tFROM R/a:1\n\tA\nFROM R/b:1\nB\nFROM R/shop/web:1\n",
        "FROM R/base/python:3@D\nRUN <<EOF\nFROM R/base/python:no\nEOF\nCOPY <<-'A' <<B /x\n"
        "\tFROM R/a:1\n\tA\nFROM R/b:1\nB\nFROM R/shop/web:1@D\n",
    ),
    "shift operator is no here-document": (
        "FROM R/base/python:3\nRUN echo $((1<<2)) <<x\nFROM R/shop/web:1\n",
        "FROM R/base/python:3@D\nRUN echo $((1<<2)) <<x\nFROM R/shop/web:1@D\n",
    ),
    "copied from an image": (
        "FROM R/base/python:3 AS a\nCOPY --from=a /x /x\nCOPY --from=0 /y /y\n"
        "COPY --chown=1:1 --from=R/shop/web:1 /z /z\n",
        "FROM R/base/python:3@D AS a\nCOPY --from=a /x /x\nCOPY --from=0 /y /y\n"
        "COPY --chown=1:1 --from=R/shop/web:1@D /z /z\n",
    ),
    "bytes that are no UTF-8": (
        "# caf\udce9\nFROM R/base/python:3\n",
        "# caf\udce9\nFROM R/base/python:3@D\n",
    ),
}


def _write(path: Path, text: str, registry: Registry) -> bytes:
    data = text.replace("R/", f"{registry.address}/").replace("@D", f"@{D}")
    raw = data.encode("utf-8", errors="surrogateescape")
    path.write_bytes(raw)
    return raw


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(name: str, registry: Registry, tmp_path: Path) -> None:
    before, after = DOCKERFILES[name]
    expected = _write(tmp_path / "expected", after, registry)
    path = tmp_path / "Dockerfile"
    _write(path, before, registry)
    changes = pins.pin_dockerfile(path, registry)
    assert path.read_bytes() == expected
    assert changes
    lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    for change in changes:
        assert change.after in lines[change.line - 1]
        assert change.after == f"{change.before}@{D}"
    assert pins.pin_dockerfile(path, registry) == []
    assert path.read_bytes() == expected


BAD_DOCKERFILES = {
    "put together": ("ARG V=3\nFROM R/base/python:${V}\n", InvalidReference, "line 2: .*parts"),
    "default put together": (
        "ARG V=3\nARG BASE=R/base/python:${V}\nFROM $BASE\n",
        InvalidReference,
        "line 2: .*parts",
    ),
    "no default": ("# x\nARG BASE\nFROM $BASE\n", InvalidReference, "line 3: .*no default"),
    "other registry": ("FROM python:3.13\n", InvalidReference, "line 1: .*'docker.io'"),
    "no reference": ("FROM R/Base/python:3\n", InvalidReference, "line 1: .*upper-case"),
    "not there": (
        "FROM R/base/python:3\nFROM R/none/such:1\n",
        NotInRegistry,
        "line 2: .*none/such",
    ),
}


@pytest.mark.parametrize("name", BAD_DOCKERFILES)
def test_bad_dockerfile_stays_as_it_is(name: str, registry: Registry, tmp_path: Path) -> None:
    text, kind, said = BAD_DOCKERFILES[name]
    path = tmp_path / "Dockerfile"
    before = _write(path, text, registry)
    with pytest.raises(kind, match=said):
        pins.pin_dockerfile(path, registry)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


DEPLOYMENTS = {
    "plain, comments kept": (
        "# Top.\nservices:\n  web:   # the shop\n    image:   R/shop/web:1.4   # tested?\n"
        "    ports:\n    - '8000'\n",
        "# Top.\nservices:\n  web:   # the shop\n    image:   R/shop/web@D   # tested?\n"
        "    ports:\n    - '8000'\n",
    ),
    "quotes and windows line ends": (
        "services:\r\n  a: {image: \"R/shop/web:1\"}\r\n  b:\r\n    image: 'R/base/python'\r\n",
        "services:\r\n  a: {image: \"R/shop/web@D\"}\r\n  b:\r\n    image: 'R/base/python@D'\r\n",
    ),
    "anchor and merge": (
        "x-web: &web\n  image: &i R/shop/web:1\nservices:\n  a: {<<: *web}\n  b:\n    image: *i\n",
        "x-web: &web\n  image: &i R/shop/web@D\nservices:\n  a: {<<: *web}\n  b:\n    image: *i\n",
    ),
    "image on the next line, é before it": (
        "\ufeffname: x\n# é\nservices:\n  a:\n    image:\n      R/shop/web:1\n",
        "\ufeffname: x\n# é\nservices:\n  a:\n    image:\n      R/shop/web@D\n",
    ),
    "one of two is pinned already": (
        "services:\n  a:\n    image: R/shop/web@OLD\n  b:\n    image: R/shop/web:2\n",
        "services:\n  a:\n    image: R/shop/web@OLD\n  b:\n    image: R/shop/web@D\n",
    ),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment(name: str, registry: Registry, tmp_path: Path) -> None:
    before, after = (text.replace("@OLD", f"@{OLD}") for text in DEPLOYMENTS[name])
    expected = _write(tmp_path / "expected", after, registry)
    path = tmp_path / "deployment.yaml"
    _write(path, before, registry)
    changes = pins.pin_deployment(path, registry)
    assert path.read_bytes() == expected
    assert changes
    lines = path.read_text(encoding="utf-8").split("\n")
    for change in changes:
        assert change.after == f"{change.before.rpartition('/')[0]}/{_last(change.before)}@{D}"
        assert change.after in lines[change.line - 1]
    assert pins.pin_deployment(path, registry) == []
    assert all("@" in image for image in pins.deployment_images(path).values())


def _last(image: str) -> str:
    """Return the last part of an image's name, without its tag."""
    return image.rpartition("/")[2].partition(":")[0]


def test_deployment_that_is_not_pinned_stays_as_it_is(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "deployment.yaml"
    text = "services:\n  a:\n    image: R/shop/web:1\n  b:\n    image: R/none/such:2\n"
    before = _write(path, text, registry)
    with pytest.raises(NotInRegistry, match=r"line 5: .*none/such"):
        pins.pin_deployment(path, registry)
    assert path.read_bytes() == before
    path.write_text("services:\n  a:\n    image: >-\n      localhost:1/x\n      y\n")
    with pytest.raises(DeploymentError, match="line 3: 'image' is not a reference on one line"):
        pins.pin_deployment(path, registry)


def test_pin(registry: Registry) -> None:
    name = f"{registry.address}/shop/web"
    assert str(pins.pin(registry, f"{name}:1.4")) == f"{name}@{D}"
    assert str(pins.pin(registry, f"{name}:1.4@{OLD}")) == f"{name}@{OLD}"
    other = name.replace("localhost", "127.0.0.1")
    assert str(pins.pin(registry, other)) == f"{other}@{D}"
    with pytest.raises(InvalidReference, match=r"'docker\.io'"):
        pins.pin(registry, "python:3.13")


def test_file_that_is_missing(registry: Registry, tmp_path: Path) -> None:
    for function in (pins.pin_dockerfile, pins.pin_deployment):
        with pytest.raises(StateError, match="No such file"):
            function(tmp_path / "none", registry)


def test_mode_and_link_are_kept(registry: Registry, tmp_path: Path) -> None:
    path, named = tmp_path / "real", tmp_path / "Dockerfile"
    _write(path, "FROM R/base/python:3\n", registry)
    path.chmod(0o640)
    mode = stat.S_IMODE(path.stat().st_mode)
    # An ordinary user of Windows may not make a symbolic link.
    is_link = sys.platform != "win32"
    named.symlink_to(path) if is_link else path.rename(named)
    pins.pin_dockerfile(named, registry)
    assert named.is_symlink() == is_link
    assert D in named.read_text()
    assert stat.S_IMODE(named.stat().st_mode) == mode


_lines = st.lists(
    st.one_of(
        st.sampled_from(
            ["FROM a AS b", "RUN x \\", "# c", "", "COPY <<E /x", "E", "ARG A=b", "  \\", "\ufeff"]
        ),
        st.text(max_size=12),
    ),
    max_size=12,
)


@given(_lines, st.sampled_from(["\n", "\r\n"]))
def test_words_stand_where_they_say(lines: list[str], end: str) -> None:
    text = end.join(lines)
    last = 0
    for instruction in instructions(text):
        assert last < instruction.line <= instruction.last_line <= text.count("\n") + 1
        last = instruction.last_line
        for word in instruction.words:
            assert text[word.start] == word.text[0]
            assert text[word.end - 1] == word.text[-1]
