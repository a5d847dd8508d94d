"""Deployment files: what a server should run, in a small part of the format of ``docker compose``.

Read are ``services`` with ``image``, ``ports``, ``environment`` and ``command``, and the project's
``name``. ``version`` and ``x-…`` are skipped. Any other key is an error, for a file that is only
half obeyed would run something else than it says.

Source: the Compose specification (services; ports, short syntax; interpolation; merge).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from labapp.errors import DeploymentError

_PORT = re.compile(r"(?:(?:(?P<host>\[[^]]*\]|[^:]*):)?(?P<outside>\d*):)?(?P<inside>\d+)(?:/tcp)?")
_SERVICE = re.compile(r"[a-zA-Z0-9._-]+")
_SERVICE_KEYS = ("image", "ports", "environment", "command")


@dataclass(frozen=True)
class Port:
    """A port of a container, and where this machine publishes it.

    Attributes:
        inside: the port in the container.
        outside: the port of this machine; 0 for any free one.
        host: the address of this machine that the file asks for; empty where it names none.
    """

    inside: int
    outside: int = 0
    host: str = ""


@dataclass(frozen=True)
class Service:
    """One service of a deployment file.

    Attributes:
        name: of the service.
        image: the reference, as it is written.
        image_span: where that text begins and ends in the file's text.
        image_line: its line, from 1.
        ports: to publish.
        environment: variables; None as value takes it over from the one who deploys.
        command: instead of the image's own; None without one.
    """

    name: str
    image: str
    image_span: tuple[int, int]
    image_line: int
    ports: tuple[Port, ...] = ()
    environment: tuple[tuple[str, str | None], ...] = ()
    command: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DeploymentFile:
    """What a deployment file says; ``name`` is the project's, empty where there is none."""

    name: str
    services: tuple[Service, ...]


def read_deployment(path: Path) -> DeploymentFile:
    """Read a deployment file.

    Raises:
        DeploymentError: it can't be read, or says something that the lab does not do; the message
            names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DeploymentError(
            f"reading the deployment file '{path}': {cause}. Name the right file, or write one."
        ) from error
    return parse_deployment(text, path)


def parse_deployment(text: str, path: Path) -> DeploymentFile:
    """Read the text of a deployment file; ``path`` is for messages only.

    Raises:
        DeploymentError: as for :func:`read_deployment`.
    """
    reader = _Reader(text, path)
    try:
        # Nodes know where they stand; that is what pinning needs.
        node = YAML(typ="rt").compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DeploymentError(
            f"reading '{path}', line {line}: {error.problem or 'it is not YAML'}. "
            "Look at the spaces, colons and quotes there, and in the line above."
        ) from error
    except YAMLError as error:
        raise DeploymentError(f"reading '{path}': it is not YAML: {error}.") from error
    try:
        return reader.file(node)
    except RecursionError as error:
        raise DeploymentError(f"reading '{path}': a '*' stands inside of what it names.") from error


class _Reader:
    def __init__(self, text: str, path: Path) -> None:
        self._text = text
        self._path = path

    def file(self, node: Node | None) -> DeploymentFile:
        name, services = "", None
        if node is not None:
            for key, key_node, value in self._pairs(node, "the file"):
                if key == "services":
                    services = value
                elif key == "name":
                    name = self._scalar(value, "name")
                elif key != "version" and not key.startswith("x-"):
                    self._fail(
                        key_node, f"'{key}' is not supported; at the top, 'services' and 'name' are"
                    )
        if services is None:
            raise DeploymentError(
                f"reading '{self._path}': it has no 'services'. Write 'services:', a service's "
                "name below it, and its 'image:' below that."
            )
        found = tuple(self._service(*pair) for pair in self._pairs(services, "'services'"))
        if not found:
            self._fail(services, "'services' is empty; write a service's name and its image")
        return DeploymentFile(name, found)

    def _service(self, name: str, name_node: Node, node: Node) -> Service:
        if not _SERVICE.fullmatch(name):
            self._fail(name_node, f"'{name}' is no name for a service; use letters, digits, '-'")
        image: Node | None = None
        ports: tuple[Port, ...] = ()
        environment: tuple[tuple[str, str | None], ...] = ()
        command: tuple[str, ...] | None = None
        for key, key_node, value in self._pairs(node, f"the service '{name}'"):
            if key == "image":
                image = value
            elif key == "ports":
                ports = tuple(self._port(item) for item in self._items(value, "ports"))
            elif key == "environment":
                environment = tuple(self._variables(value))
            elif key == "command":
                command = self._command(value)
            elif not key.startswith("x-"):
                supported = "', '".join(_SERVICE_KEYS)
                self._fail(key_node, f"'{key}' is not supported; a service has '{supported}'")
        if image is None:
            self._fail(name_node, f"the service '{name}' has no 'image'; write one below its name")
        text = self._scalar(image, "image")
        start = self._text.rfind(text, image.start_mark.index, image.end_mark.index)
        if not text or start < 0:
            self._fail(image, "'image' is not a reference on one line; write it so")
        span = (start, start + len(text))
        line = self._text.count("\n", 0, start) + 1
        return Service(name, text, span, line, ports, environment, command)

    def _port(self, node: Node) -> Port:
        text = self._scalar(node, "ports")
        found = _PORT.fullmatch(text)
        numbers = (int(found["inside"]), int(found["outside"] or 0)) if found else (0, 0)
        if not found or not 0 < numbers[0] < 65536 or numbers[1] > 65535:
            self._fail(node, f"'{text}' is no port; write '8000', '8080:8000' or '127.0.0.1::8000'")
        return Port(*numbers, host=(found["host"] or "").strip("[]"))

    def _variables(self, node: Node) -> Iterator[tuple[str, str | None]]:
        if isinstance(node, MappingNode):
            for key, _, value in self._pairs(node, "'environment'"):
                null = value.tag == "tag:yaml.org,2002:null"
                yield key, None if null else self._scalar(value, "environment")
            return
        for item in self._items(node, "environment"):
            name, sign, setting = self._scalar(item, "environment").partition("=")
            if not name:
                self._fail(item, "a variable has no name; write 'NAME=value'")
            yield name, setting if sign else None

    def _command(self, node: Node) -> tuple[str, ...]:
        if isinstance(node, SequenceNode):
            return tuple(self._scalar(item, "command") for item in node.value)
        try:
            return tuple(shlex.split(self._scalar(node, "command")))
        except ValueError as error:
            self._fail(node, f"the command can't be split into words ({error}); write it as a list")

    def _items(self, node: Node, what: str) -> list[Node]:
        if not isinstance(node, SequenceNode):
            self._fail(node, f"'{what}' is no list; begin each of its lines with '- '")
        return list(node.value)

    def _pairs(self, node: Node, what: str) -> list[tuple[str, Node, Node]]:
        """Return the keys, where they stand, and the values; those merged with ``<<`` come last."""
        if not isinstance(node, MappingNode):
            self._fail(node, f"{what} is no mapping; write 'key: value' lines below it")
        own: dict[str, tuple[str, Node, Node]] = {}
        merged: dict[str, tuple[str, Node, Node]] = {}
        for key_node, value in node.value:
            if key_node.value == "<<" and key_node.style is None:
                for source in value.value if isinstance(value, SequenceNode) else [value]:
                    for pair in self._pairs(source, "what '<<' names"):
                        merged.setdefault(pair[0], pair)
                continue
            if not isinstance(key_node, ScalarNode) or key_node.value in own:
                self._fail(key_node, f"{what} has this key twice, or it is no text; leave it out")
            own[key_node.value] = (key_node.value, key_node, value)
        return list((merged | own).values())

    def _scalar(self, node: Node, what: str) -> str:
        if not isinstance(node, ScalarNode):
            self._fail(node, f"'{what}' has a list or a mapping where a text belongs")
        text = str(node.value).replace("$$", "")
        if "$" in text:
            self._fail(node, "the lab fills in no variables; write the value itself, or '$$' for $")
        return str(node.value).replace("$$", "$")

    def _fail(self, node: Node, slip: str) -> NoReturn:
        line = node.start_mark.line + 1
        raise DeploymentError(f"reading '{self._path}', line {line}: {slip}.")
