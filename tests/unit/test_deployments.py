"""Deployment files: what is read, and what is refused, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapp.deployments.deployment_file import Port, parse_deployment, read_deployment
from labapp.errors import DeploymentError

FILE = Path("deployment.yaml")


def test_everything_that_is_supported() -> None:
    text = """\
version: "3"
name: shop
x-note: {any: thing}
services:
  web:
    image: localhost:1/shop/web:1.4
    ports: ["127.0.0.1::8000", 9000]
    environment:
      A: 1
      B: "two words"
      C:
      D: $$5
    command: serve --name "my shop"
    x-more: 1
  worker:
    image: 'localhost:1/shop/worker'
    ports:
      - 22:22
    environment: [A=1=2, B]
    command: [run, "a b"]
"""
    found = parse_deployment(text, FILE)
    assert found.name == "shop"
    web, worker = found.services
    assert (web.name, web.image, web.image_line) == ("web", "localhost:1/shop/web:1.4", 6)
    assert text[slice(*web.image_span)] == web.image
    assert web.ports == (Port(8000, 0, "127.0.0.1"), Port(9000))
    assert web.environment == (("A", "1"), ("B", "two words"), ("C", None), ("D", "$5"))
    assert web.command == ("serve", "--name", "my shop")
    # YAML 1.1 would read 22:22 as the number 1342.
    assert worker.ports == (Port(22, 22),)
    assert worker.environment == (("A", "1=2"), ("B", None))
    assert worker.command == ("run", "a b")


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8000", Port(8000)),
        ("8000/tcp", Port(8000)),
        ("8080:8000", Port(8000, 8080)),
        (":8000", Port(8000)),
        ("127.0.0.1::8000", Port(8000, 0, "127.0.0.1")),
        ("127.0.0.1:8080:8000", Port(8000, 8080, "127.0.0.1")),
        ("0.0.0.0:8080:8000", Port(8000, 8080, "0.0.0.0")),
        ("[::1]:8080:8000", Port(8000, 8080, "::1")),
    ],
)
def test_ports(text: str, port: Port) -> None:
    found = parse_deployment(f"services: {{a: {{image: x, ports: ['{text}']}}}}", FILE)
    assert found.services[0].ports == (port,)


def test_merge_and_anchor() -> None:
    text = """\
x-base: &base
  image: a:1
  environment: &env {A: "1", B: "2"}
services:
  one: {<<: *base}
  two:
    <<: [*base]
    image: b:1
    environment: {<<: *env, B: "3"}
"""
    one, two = parse_deployment(text, FILE).services
    assert (one.image, one.image_line, dict(one.environment)) == ("a:1", 2, {"A": "1", "B": "2"})
    assert (two.image, dict(two.environment)) == ("b:1", {"A": "1", "B": "3"})


BAD = [
    ("", "no 'services'"),
    ("name: x\n", "no 'services'"),
    ("- a\n", "line 1: the file is no mapping"),
    ("services:\n", "'services' is no mapping"),
    ("services: {}\n", "line 1: 'services' is empty"),
    ("services:\n  web: x\n", "line 2: the service 'web' is no mapping"),
    ("services:\n  web: {}\n", "line 2: the service 'web' has no 'image'"),
    ("services:\n  web:\n    image:\n", "'image' is not a reference on one line"),
    ("services:\n  web:\n    image: [a]\n", "line 3: 'image' has a list"),
    ("services:\n  web:\n    image: ${A}/b\n", "line 3: the lab fills in no variables"),
    ("services:\n  web:\n    image: a\n    build: .\n", "line 4: 'build' is not supported"),
    ("services:\n  web:\n    image: a\n    image: b\n", "line 4: .*twice"),
    ("services:\n  web:\n    image: a\nvolumes: {}\n", "line 4: 'volumes' is not supported"),
    ("services:\n  'we b': {image: a}\n", "line 2: 'we b' is no name"),
    ("services:\n  web:\n    image: a\n    ports: 8000\n", "line 4: 'ports' is no list"),
    ("services: {a: {image: b, ports: ['x']}}\n", "'x' is no port"),
    ("services: {a: {image: b, ports: ['8000-8010']}}\n", "'8000-8010' is no port"),
    ("services: {a: {image: b, ports: ['53/udp']}}\n", "'53/udp' is no port"),
    ("services: {a: {image: b, ports: ['70000']}}\n", "'70000' is no port"),
    ("services: {a: {image: b, ports: ['0']}}\n", "'0' is no port"),
    ("services: {a: {image: b, ports: [{target: 1}]}}\n", "'ports' has a list or a mapping"),
    ("services: {a: {image: b, environment: x}}\n", "'environment' is no list"),
    ("services: {a: {image: b, environment: [=x]}}\n", "a variable has no name"),
    ("services: {a: {image: b, environment: {A: [1]}}}\n", "'environment' has a list"),
    ('services: {a: {image: b, command: "it\'s"}}\n', "can't be split into words"),
    ("services:\n  web:\n   image: a\n  x: [\n", "line 5: .*Look at the spaces"),
    ("services:\n\tweb: {}\n", "line 2: .*Look at the spaces"),
    ("a: 1\n---\nb: 1\n", "line 2: .*document"),
    ("services:\n  a: &s\n    <<: *s\n", "inside of what it names"),
    ("services: *none\n", "line 1: .*undefined alias"),
    ("services: {a: {image: b}}\x07\n", "it is not YAML"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said for _, said in BAD])
def test_bad(text: str, said: str) -> None:
    with pytest.raises(DeploymentError, match=said) as caught:
        parse_deployment(text, FILE)
    assert "reading 'deployment.yaml'" in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="No such file"):
        read_deployment(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DeploymentError, match="not UTF-8"):
        read_deployment(tmp_path / "binary.yaml")


@given(st.text(alphabet=st.sampled_from("services: \n-[]{}&*<'\"$imageports8,|>#?!%@`ä")))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_deployment(text, FILE)
    except DeploymentError:
        return
    assert found.services
