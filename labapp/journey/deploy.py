"""Deployments: the services of a deployment file, run the way a server runs them.

The file is written in a small part of the format of ``docker compose``: ``services`` with
``image``, ``ports`` and ``environment``. ``version`` and ``x-…`` are skipped. Any other key is an
error, for a file that is only half obeyed would run something else than it says.

A server pulls each image anew when it (re)starts a service, so a tag that has moved brings another
image. Only when all pulls have succeeded are the containers replaced.

Source: the Compose specification (services; ports, short syntax; interpolation; merge).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from labapp import feedback
from labapp.errors import DeploymentError, InvalidReference, PullError, RunError
from labapp.journey.run import Port, Running, containers, discard, start
from labapp.journey.transfer import pull
from labapp.machine.engine import Engine
from labapp.registry.http import is_loopback
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, ROLE_LABEL

DEPLOYMENT_LABEL = "labapp.deployment"
SERVICE_LABEL = "labapp.service"
DIGEST_LABEL = "labapp.digest"

_WAIT_SECONDS = 15.0
"""How long a service may be silent until it is taken for one that speaks no HTTP."""

_PORT = re.compile(r"(?:(?:(?P<host>\[[^]]*\]|[^:]*):)?(?P<outside>\d*):)?(?P<inside>\d+)(?:/tcp)?")
_SERVICE = re.compile(r"[a-zA-Z0-9._-]+")


@dataclass(frozen=True)
class Service:
    """One service of a deployment file.

    Attributes:
        name: of the service.
        image: the reference, as it is written.
        line: the image's line, from 1.
        ports: to publish.
        environment: variables; None as value takes it over from the one who deploys.
    """

    name: str
    image: str
    line: int
    ports: tuple[Port, ...]
    environment: Mapping[str, str | None]


@dataclass(frozen=True)
class Deployment:
    """Services that run.

    Attributes:
        file: the deployment file.
        running: the container of each service, by its name.
        digests: what the registry served for the image of each service.
    """

    file: Path
    running: Mapping[str, Running] = field(repr=False)
    digests: Mapping[str, str]

    def get(self, service: str, path: str = "/") -> str:
        """Ask a service for a path, and return the text it answers.

        Raises:
            DeploymentError: there is no such service.
            RunError: it publishes no port, does not answer, or answers with an error.
        """
        return self.running[self._known(service)].get(path)

    def digest(self, service: str) -> str:
        """Return the digest that the registry served for a service when it was deployed."""
        return self.digests[self._known(service)]

    def _known(self, service: str) -> str:
        if service not in self.running:
            names = "', '".join(self.running)
            raise DeploymentError(
                f"asking for the service '{service}': '{self.file}' has '{names}'."
            )
        return service


def deploy(engine: Engine, server: RegistryServer | None, file: Path) -> Deployment:
    """Run the services of a deployment file: pull each image, then replace its container.

    Ports are published on this machine only, whatever the file asks for. Where the file is wrong
    or an image can't be pulled, what ran before goes on running.
    """
    services = read_deployment(file)
    # Two labs on one engine never share a project.
    plain = re.sub(r"[^a-z0-9_-]+", "-", file.stem.lower()).strip("-_") or "deployment"
    project = f"{plain}-{engine.labels[LABEL][:6]}"
    doing = f"deploying '{file}'"
    digests = {}
    for service in services:
        for port in service.ports:
            if port.host and not is_loopback(port.host):
                feedback.say(
                    f"{service.name}: the file asks for port {port.inside} to be open on "
                    f"'{port.host}'. A lab does not listen to the network: it uses 127.0.0.1."
                )
        try:
            digests[service.name] = pull(engine, server, service.image).digest
        except (InvalidReference, PullError) as error:
            raise DeploymentError(
                f"{doing}, line {service.line}, service '{service.name}': {error} "
                "Nothing was replaced: what ran before goes on running."
            ) from error
    running = {}
    with engine.doing(doing, DeploymentError):
        for container in containers(engine, {ROLE_LABEL: "service", DEPLOYMENT_LABEL: project}):
            feedback.command(["docker", "rm", "--force", str(container.name)])
            discard(container)
        for service in services:
            pairs = service.environment.items()
            values = {key: os.environ.get(key) if value is None else value for key, value in pairs}
            try:
                running[service.name] = start(
                    engine,
                    service.image,
                    role="service",
                    labels={
                        DEPLOYMENT_LABEL: project,
                        SERVICE_LABEL: service.name,
                        DIGEST_LABEL: digests[service.name],
                    },
                    name=f"{project}-{service.name}-1",
                    ports=service.ports,
                    environment={key: each for key, each in values.items() if each is not None},
                    path=None,
                    seconds=_WAIT_SECONDS,
                )
            except RunError as error:
                raise DeploymentError(f"{doing}: service '{service.name}': {error}") from error
    for name, each in running.items():
        place = f" at {each.url}" if each.url else ""
        feedback.say(f"{name}: {each.reference} runs as {digests[name]}{place}")
    return Deployment(file, running, digests)


def read_deployment(path: Path) -> tuple[Service, ...]:
    """Read a deployment file's services; what it asks for that the lab does not do is an error."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DeploymentError(
            f"reading the deployment file '{path}': {cause}. Name the right file, or write one."
        ) from error
    root = _load(text, path)
    services = _services(root)
    root.allow("services", "version")
    return tuple(_service(name, each) for name, each in services.items())


def image_spans(text: str, path: Path) -> list[tuple[int, int]]:
    """Return where the images of a compose file's services stand in its text.

    Nothing else in the file has to make sense to the lab; ``path`` is for messages.
    """
    services = [each.mapping() for each in _services(_load(text, path)).values()]
    return [each["image"].span(text) for each in services if "image" in each]


def _load(text: str, path: Path) -> _Value:
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except (YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        raise DeploymentError(
            f"reading '{path}'{f', line {mark.line + 1}' if mark else ''}: "
            f"{problem or 'it is not YAML'}. Look at the spaces, colons and quotes there, and in "
            "the line above."
        ) from error
    return _Value(path, path.name, 1, node)


def _services(root: _Value) -> dict[str, _Value]:
    top = root.mapping()
    services = top["services"].mapping() if "services" in top else {}
    if not services:
        root.fail("has no 'services'; write 'services:', a name below it, 'image:' below that")
    return services


def _service(name: str, service: _Value) -> Service:
    if not _SERVICE.fullmatch(name):
        service.fail("is no name for a service; use letters, digits, '-'")
    service.allow("image", "ports", "environment")
    values = service.mapping()
    if "image" not in values:
        service.fail("has no 'image'; write one below its name")
    return Service(
        name,
        values["image"].text(),
        values["image"].line,
        tuple(_ports(values["ports"])) if "ports" in values else (),
        _environment(values["environment"]) if "environment" in values else {},
    )


def _ports(value: _Value) -> Iterator[Port]:
    for text in value.texts():
        found = _PORT.fullmatch(text)
        inside, outside = (int(found["inside"]), int(found["outside"] or 0)) if found else (0, 0)
        if not found or not 0 < inside < 65536 or outside > 65535:
            value.fail(f"has '{text}'; write '8000', '8080:8000' or '127.0.0.1::8000'")
        yield Port(inside, outside, host=(found["host"] or "").strip("[]"))


def _environment(value: _Value) -> dict[str, str | None]:
    if isinstance(value.node, MappingNode):
        pairs = value.mapping().items()
        return {name: None if each.is_null else each.text() for name, each in pairs}
    found = {}
    for text in value.texts():
        name, sign, content = text.partition("=")
        if not name:
            value.fail("has a variable without a name; write 'NAME=value'")
        found[name] = content if sign else None
    return found


@dataclass(frozen=True)
class _Value:
    """A value in a YAML file, its key, and the key's line; scalars are as they are written."""

    path: Path
    key: str
    line: int
    node: Node | None

    def fail(self, slip: str) -> NoReturn:
        raise DeploymentError(f"reading '{self.path}', line {self.line}: '{self.key}' {slip}.")

    def mapping(self) -> dict[str, _Value]:
        """Return the values by their keys, with those that ``<<`` merges in."""
        if not isinstance(self.node, MappingNode):
            self.fail("is no mapping; write 'key: value' lines below it")
        own: dict[str, _Value] = {}
        merged: dict[str, _Value] = {}
        for key, node in self.node.value:
            value = _Value(self.path, str(key.value), key.start_mark.line + 1, node)
            if value.key in own:
                value.fail("is there twice")
            elif value.key != "<<":
                own[value.key] = value
            else:
                for each in node.value if isinstance(node, SequenceNode) else [node]:
                    if each is self.node:
                        value.fail("stands inside of what it names")
                    merged = replace(value, node=each).mapping() | merged
        return merged | own

    def allow(self, *keys: str) -> None:
        for key, value in self.mapping().items():
            if key not in keys and not key.startswith("x-"):
                value.fail(f"is not supported; there are {', '.join(keys)}")

    @property
    def is_null(self) -> bool:
        return isinstance(self.node, ScalarNode) and self.node.tag == "tag:yaml.org,2002:null"

    def text(self) -> str:
        """Return a text as compose takes it: ``$$`` stands for ``$``."""
        if not isinstance(self.node, ScalarNode) or self.is_null:
            self.fail("has a list, a mapping or nothing where a text belongs")
        text = str(self.node.value)
        if "$" in text.replace("$$", ""):
            self.fail("has a variable, and the lab fills in none; write the value, or '$$' for $")
        return text.replace("$$", "$")

    def texts(self) -> list[str]:
        if not isinstance(self.node, SequenceNode):
            self.fail("is no list; begin each of its lines with '- '")
        return [replace(self, node=each).text() for each in self.node.value]

    def span(self, text: str) -> tuple[int, int]:
        """Return where the value stands in the file's text, without quotes and anchor."""
        start = -1
        if isinstance(self.node, ScalarNode) and (value := str(self.node.value)):
            start = text.rfind(value, self.node.start_mark.index, self.node.end_mark.index)
        if start < 0:
            self.fail("is not a reference on one line; write it so")
        return start, start + len(value)
