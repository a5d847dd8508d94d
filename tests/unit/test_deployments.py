"""Deployment files: what is read, and what is refused, with its line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.errors import DeploymentError
from labapp.journey.deploy import Service, read_deployment


def read(folder: Path, text: str) -> tuple[Service, ...]:
    path = folder / "deployment.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    return read_deployment(path)


def test_everything_that_is_supported(tmp_path: Path) -> None:
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
    web, worker = read(tmp_path, text)
    assert (web.name, web.image, web.line) == ("web", "localhost:1/shop/web:1.4", 5)
    assert web.ports == {8000: 0, 9000: 0, 9001: 0, 9002: 0, 9003: 80, 9004: 81}
    assert web.environment == {
        "A": "1", "B": "two words", "G": "", "D": "$5", "E": "1.10", "F": "true",
    }  # fmt: skip
    # YAML 1.1 would read 22:22 as the number 1342.
    assert (worker.image, worker.line, worker.ports) == (web.image, 16, {22: 22})
    assert worker.environment == {"A": "1=2", "B": ""}


# The line that is named, and the fact.
BAD = [
    ("", 1, "services"),
    ("name: x\nservices: {a: {image: b}}\n", 1, "name"),
    ("services:\n  web: x\n", 2, "web"),
    ("services:\n  web:\n    image:\n", 3, "image"),
    ("services:\n  web:\n    image: ${A}/b\n", 3, "$"),
    ("services:\n  web:\n    image: a\n    build: .\n", 4, "build"),
    ("services:\n  web:\n    image: a\n    image: b\n", 4, "image"),
    ("services:\n  'we b': {image: a}\n", 2, "we b"),
    ("services:\n  a: {image: b}\n  c:\n   ports: [1]\n", 4, "image"),
    ("services: {a: {image: b, ports: ['x']}}\n", 1, "'x'"),
    ("services: {a: {image: b, ports: ['53/udp']}}\n", 1, "53/udp"),
    ("services: {a: {image: b, ports: ['70000']}}\n", 1, "70000"),
    ("services: {a: {image: b, ports: [{target: 1}]}}\n", 1, "ports"),
    ("services: {a: {image: b, environment: x}}\n", 1, "environment"),
    ("services: {a: {image: b, read_only: yes}}\n", 1, "true, false"),
    ("services: {a: {image: b, restart: often}}\n", 1, "'often'"),
    ("services: {a: {image: b, privileged: true}}\n", 1, "privileged"),
    ("services: {a: {image: b, environment: [=x]}}\n", 1, "NAME=value"),
    ("services:\n  a: {image: b, environment: {X: }}\n", 2, ".X'"),
    ("services:\n  web:\n   image: a\n  x: [\n", 5, ""),
    ("a: 1\n---\nb: 1\n", 2, "document"),
    ("services: &s\n  a: *s\n", None, ""),
    ("x-b: &b {image: b}\nservices:\n  a: {<<: *b}\n", 1, "<<"),
    ("services: {a: {image: b}}\x07\n", None, "YAML"),
]


@pytest.mark.parametrize(("text", "line", "fact"), BAD)
def test_bad(text: str, line: int | None, fact: str, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError) as caught:
        read(tmp_path, text)
    said = str(caught.value)
    assert f"deployment.yaml', line {line}:" in said if line else "deployment.yaml'" in said
    assert fact in said


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "binary.yaml"):
        with pytest.raises(DeploymentError, match=name):
            read_deployment(tmp_path / name)


@given(st.text(alphabet=st.sampled_from("services: \n-[]{}&*<'\"$imageports8,|>#?!%@`ä")))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    with contextlib.suppress(DeploymentError):
        assert read(tmp_path_factory.getbasetemp(), text)
