"""Deployments: the services of a deployment file, run the way a server runs them.

The file is written in a small part of the format of ``docker compose``: ``services`` with
``image``, ``ports``, ``environment``, and what a container may do, as in :data:`OPTIONS`.
``version`` and ``x-…`` are skipped. Any other key is an error, for a file that is only half obeyed
would run something else than it says.

A server pulls each image anew when it (re)starts a service, so a tag that has moved brings another
image. Only when all pulls have succeeded are the containers replaced.

Source: the Compose specification (services; ports, short syntax; interpolation).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

from labapp import feedback
from labapp.errors import DeploymentError, InvalidReference, PullError
from labapp.journey.run import OPTIONS, Running, discard, start
from labapp.journey.transfer import pull
from labapp.machine.engine import Engine
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, ROLE_LABEL

DEPLOYMENT_LABEL = "labapp.deployment"
SERVICE_LABEL = "labapp.service"
DIGEST_LABEL = "labapp.digest"

_PORT = re.compile(r"(?:(?:(?:\[[^]]*\]|[^:]*):)?(\d{0,5}):)?(\d{1,5})(?:/tcp)?")
_WRITE = "Write 'services:', a name below it, and below that 'image:'"
_SERVICE = re.compile(r"[a-zA-Z0-9._-]+")
_VALUES = {
    "read_only": ("true", "false"),
    "restart": ("no", "always", "on-failure", "unless-stopped"),
}
"""Of the keys that take one of some values, these."""


@dataclass
class Service:
    """One service of a deployment file: its image, as it is written, on which line, from 1.

    ``ports`` are those in the container, with that of this machine, or 0 for any free one.
    """

    name: str
    image: str = ""
    line: int = 0
    ports: dict[int, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployment:
    """Services that run, by name: their containers, and the digests that the registry served."""

    file: Path
    running: Mapping[str, Running] = field(repr=False)
    digests: Mapping[str, str]

    def get(self, service: str, path: str = "/") -> str:
        """Ask a service for a path, and return the text it answers.

        Raises:
            DeploymentError: there is no such service.
            RunError: it publishes no port, does not answer, or answers with an error.
        """
        self.digest(service)
        return self.running[service].get(path)

    def digest(self, service: str) -> str:
        """Return the digest that the registry served for a service when it was deployed."""
        if service not in self.digests:
            names = "', '".join(self.digests)
            raise DeploymentError(
                f"asking for the service '{service}': '{self.file}' has '{names}'."
            )
        return self.digests[service]


def deploy(engine: Engine, server: RegistryServer | None, file: Path) -> Deployment:
    """Run the services of a deployment file: pull each image, then replace its container.

    Ports are published on this machine only, whatever the file asks for. Where the file is wrong
    or an image can't be pulled, what ran before goes on running.
    """
    services = read_deployment(file)
    own = project(engine, file)
    doing = f"deploying '{file}'"
    digests = {}
    for service in services:
        try:
            digests[service.name] = pull(engine, server, service.image).digest
        except (InvalidReference, PullError) as error:
            raise DeploymentError(
                f"{doing}, line {service.line}, service '{service.name}': {error} "
                "Nothing was replaced: what ran before goes on running."
            ) from error
    running = {}
    with engine.doing(doing, DeploymentError):
        for container in engine.containers({ROLE_LABEL: "service", DEPLOYMENT_LABEL: own}):
            feedback.command(["docker", "rm", "--force", str(container.name)])
            discard(container)
        for service in services:
            running[service.name] = start(
                engine,
                service.image,
                labels={
                    ROLE_LABEL: "service",
                    DEPLOYMENT_LABEL: own,
                    SERVICE_LABEL: service.name,
                    DIGEST_LABEL: digests[service.name],
                },
                name=f"{own}-{service.name}-1",
                ports=service.ports,
                environment=service.environment,
                options=service.options,
                path=None,
            )
    for name, each in running.items():
        place = f" at {each.url}" if each.url else ""
        feedback.say(f"{name}: {each.reference} runs as {digests[name]}{place}")
    return Deployment(file, running, digests)


def project(engine: Engine, file: Path) -> str:
    """Return what the containers of a deployment file begin with; no two labs share it."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_") or "deployment"
    return f"{plain}-{engine.labels[LABEL][:6]}"


def read_deployment(path: Path) -> tuple[Service, ...]:
    """Read a deployment file's services; what it asks for that the lab does not do is an error."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeploymentError(
            f"reading the deployment file '{path}': {error}. Name the right file, or write one."
        ) from error
    services: dict[str, Service] = {}
    for leaf in _leaves(text, path):
        service = Service("")
        if leaf.keys[:1] == ("services",) and leaf.keys[2:]:
            service = services.setdefault(leaf.keys[1], Service(leaf.keys[1], line=leaf.line))
        match leaf.keys:
            case ("services", _, "image"):
                service.image, service.line = leaf.text(), leaf.line
            case ("services", _, "ports"):
                service.ports.update([_port(leaf)])
            case ("services", _, "environment", variable):
                service.environment[variable] = leaf.text()
            case ("services", _, "environment"):
                variable, sign, value = leaf.text().partition("=")
                if not (variable and sign):
                    leaf.fail("has a variable without a name or a value; write 'NAME=value'")
                service.environment[variable] = value
            case ("services", _, key) if key in OPTIONS:
                if (value := leaf.text()) not in (allowed := _VALUES.get(key, (value,))):
                    leaf.fail(f"has '{value}'; write one of: {', '.join(allowed)}")
                service.options.setdefault(key, []).append(value)
            case keys if keys != ("version",) and not any(key.startswith("x-") for key in keys):
                leaf.fail(
                    f"is not supported. {_WRITE}, perhaps 'ports:', 'environment:', "
                    + ", ".join(OPTIONS)
                )
    for service in services.values():
        where = f"reading '{path}', line {service.line}: the service '{service.name}'"
        if not service.image:
            raise DeploymentError(f"{where} has no 'image'; write one below its name.")
        if not _SERVICE.fullmatch(service.name):
            raise DeploymentError(f"{where} has no name for one; use letters, digits, '-'.")
    if not services:
        raise DeploymentError(f"reading '{path}': it has no services. {_WRITE}.")
    return tuple(services.values())


def image_spans(text: str, path: Path) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield where the images of services stand; the rest need not make sense to the lab.

    With it comes why one names no image to pull, if it doesn't.
    """
    leaves = [([key for key in leaf.keys if key != "<<"], leaf) for leaf in _leaves(text, path)]
    built = {keys[1] for keys, _ in leaves if keys[:1] == ["services"] and keys[2:3] == ["build"]}
    for keys, leaf in leaves:
        if keys[:1] == ["services"] and keys[2:] == ["image"]:
            span, why_not = leaf.span(text), ""
            if keys[1] in built:
                why_not = "it is the name of what is built here"
            elif "$" in text[slice(*span)]:
                why_not = "it has a variable"
            yield span, why_not


def _port(leaf: _Leaf) -> tuple[int, int]:
    found = _PORT.fullmatch(leaf.text())
    inside, outside = (int(found[2]), int(found[1] or 0)) if found else (0, 0)
    if not 0 < inside < 65536 or outside > 65535:
        leaf.fail(f"has '{leaf.text()}'; write '8000', '8080:8000' or '127.0.0.1::8000'")
    return inside, outside


@dataclass(frozen=True)
class _Leaf:
    """What has nothing below it in a YAML file, the keys above it, and the line of the last."""

    path: Path
    keys: tuple[str, ...]
    line: int
    node: Node | None

    def fail(self, slip: str) -> NoReturn:
        where = f"reading '{self.path}', line {self.line}: '{'.'.join(self.keys)}'"
        raise DeploymentError(f"{where} {slip}.")

    def text(self) -> str:
        """Return a text as compose takes it, as it is written: ``$$`` stands for ``$``."""
        if not isinstance(self.node, ScalarNode) or self.node.tag == "tag:yaml.org,2002:null":
            self.fail("has no value; write one behind it")
        text = str(self.node.value)
        if "$" in text.replace("$$", ""):
            self.fail("has a variable, and the lab fills in none; write the value, or '$$' for $")
        return text.replace("$$", "$")

    def span(self, text: str) -> tuple[int, int]:
        """Return where the value stands in the file's text, without quotes and anchor."""
        start, value = -1, ""
        if isinstance(self.node, ScalarNode) and (value := str(self.node.value)):
            start = text.rfind(value, self.node.start_mark.index, self.node.end_mark.index)
        if start < 0:
            self.fail("is not a reference on one line; write it so")
        return start, start + len(value)


def _leaves(text: str, path: Path) -> list[_Leaf]:
    """Return the leaves of a YAML file in order; all those of a list have the list's keys."""

    def below(node: Node | None, keys: tuple[str, ...], line: int) -> Iterator[_Leaf]:
        if node is None or isinstance(node, ScalarNode) or not node.value:
            yield _Leaf(path, keys, line, node)
        elif isinstance(node, SequenceNode):
            for each in node.value:
                yield from below(each, keys, line)
        else:
            seen = set()
            for key, value in node.value:
                inner, at = (*keys, str(key.value)), key.start_mark.line + 1
                if inner in seen:
                    _Leaf(path, inner, at, value).fail("is there twice")
                seen.add(inner)
                yield from below(value, inner, at)

    try:
        with warnings.catch_warnings(action="ignore"):  # of an anchor that is there twice
            root = YAML(typ="safe", pure=True).compose(text)
        return list(below(root, (), 1))
    except (YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise DeploymentError(
            f"reading '{path}'{f', line {mark.line + 1}' if mark else ''}: "
            f"{problem or 'it is not YAML'}. Look at the spaces, colons and quotes there, and in "
            "the line above."
        ) from error
