"""Deployments: the services of a deployment file, run the way a server runs them.

A server pulls each image anew when it (re)starts a service, so a tag that has moved brings another
image. Only when all pulls have succeeded are the containers replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker.errors
import pandas as pd
from docker.models.containers import Container

from labapp.deployments.compose import compose_up, has_compose, publish, variables
from labapp.deployments.deployment_file import Service, read_deployment
from labapp.engine import Engine
from labapp.errors import DeploymentError, InvalidReference, PullError, RunError
from labapp.feedback import Feedback
from labapp.images import pull
from labapp.images.running import Running, discard, published_url, wait_until_ready
from labapp.reference import Reference
from labapp.registry.addresses import is_loopback
from labapp.registry.server import RegistryServer
from labapp.state import LABEL, ROLE_LABEL, State

DEPLOYMENT_LABEL = "labapp.deployment"
SERVICE_LABEL = "labapp.service"
DIGEST_LABEL = "labapp.digest"

COLUMNS = ["service", "image", "digest", "url", "container"]
WAIT_SECONDS = 15.0
"""How long a service may be silent until it is taken for one that speaks no HTTP."""


@dataclass(frozen=True)
class Deployment:
    """Services that run.

    Attributes:
        file: the deployment file.
        project: the name that its containers share.
        table: a row a service: ``service``, ``image`` (as written), ``digest`` (that the registry
            served for it), ``url`` (of its first port; empty without one), ``container``.
    """

    file: Path
    project: str
    table: pd.DataFrame = field(repr=False, compare=False)
    _running: Mapping[str, Running] = field(repr=False, compare=False)

    def get(self, service: str, path: str = "/") -> str:
        """Ask a service for a path, and return the text it answers.

        Raises:
            DeploymentError: there is no such service.
            RunError: it publishes no port, does not answer, or answers with an error.
        """
        return self._running[self._known(service)].get(path)

    def digest(self, service: str) -> str:
        """Return the digest that the registry served for a service when it was deployed.

        Raises:
            DeploymentError: there is no such service.
        """
        name = self._known(service)
        return str(self.table.set_index("service").loc[name, "digest"])

    def logs(self, service: str) -> str:
        """Return what a service has printed."""
        return self._running[self._known(service)].logs()

    def _known(self, service: str) -> str:
        if service not in self._running:
            names = "', '".join(self._running)
            raise DeploymentError(
                f"asking for the service '{service}': '{self.file}' has '{names}'."
            )
        return service


def deploy(
    engine: Engine,
    server: RegistryServer | None,
    file: Path,
    *,
    project: str | None = None,
    state: State,
    feedback: Feedback,
) -> Deployment:
    """Run the services of a deployment file: pull each image, then replace its container.

    Ports are published on this machine only, whatever the file asks for.

    Args:
        engine: where to run them.
        server: the lab's registry; None without one.
        file: in the format of ``docker compose``; see :mod:`labapp.deployments.deployment_file`.
        project: a name for the containers to share; by default the file's.
        state: the lab's own files.
        feedback: where commands and progress are told.

    Raises:
        DeploymentError: the file is wrong, an image can't be pulled (what ran before goes on
            running), or a service does not start.
        EngineLost: the engine went away.
    """
    content = read_deployment(file)
    project = _project(project or content.name or file.stem, state)
    doing = f"deploying '{file}'"
    _tell_of_ports(content.services, feedback)
    digests = {}
    for service in content.services:
        try:
            reference = Reference.parse(service.image)
            digests[service.name] = pull(engine, server, reference, feedback=feedback).digest
        except (InvalidReference, PullError) as error:
            raise DeploymentError(
                f"{doing}, line {service.image_line}, service '{service.name}': {error} "
                "Nothing was replaced: what ran before goes on running."
            ) from error
    labels = {
        service.name: {
            **state.labels,
            ROLE_LABEL: "service",
            DEPLOYMENT_LABEL: project,
            SERVICE_LABEL: service.name,
            DIGEST_LABEL: digests[service.name],
        }
        for service in content.services
    }
    with engine.doing(doing, DeploymentError):
        if has_compose(engine):
            feedback.command(["docker", "compose", "-f", str(file), "up", "-d", "--force-recreate"])
            compose_up(engine, project, content.services, labels, doing=doing)
        else:
            _replace(engine, state, project, content.services, labels, feedback)
        running = {
            service.name: _running(engine, state, project, service, doing)
            for service in content.services
        }
    rows = [
        (service.name, service.image, digests[service.name], each.url or "", each.name)
        for service, each in zip(content.services, running.values(), strict=True)
    ]
    for name, image, digest, url, _ in rows:
        feedback.say(f"{name}: {image} runs as {digest}{f' at {url}' if url else ''}")
    return Deployment(file, project, pd.DataFrame(rows, columns=COLUMNS), running)


def deployments(engine: Engine, state: State) -> pd.DataFrame:
    """Return what this lab has deployed.

    Returns:
        A row a service: ``deployment``, ``service``, ``image``, ``digest``, ``url``,
        ``container``, ``status`` (the engine's word: ``running``, ``exited``, …).
    """
    rows = []
    with engine.doing("listing the deployments", DeploymentError):
        for each in _containers(engine, state):
            names = (each.labels.get(key, "") for key in (DEPLOYMENT_LABEL, SERVICE_LABEL))
            image, digest = each.attrs["Config"]["Image"], each.labels.get(DIGEST_LABEL, "")
            rows.append((*names, image, digest, published_url(each) or "", each.name, each.status))
    return pd.DataFrame(sorted(rows), columns=["deployment", *COLUMNS, "status"])


def remove(engine: Engine, state: State, *, project: str | None = None) -> list[str]:
    """Remove the containers of a deployment, or of all; return their names."""
    wanted = None if project is None else _project(project, state)
    removed = []
    with engine.doing("removing deployments", DeploymentError):
        for container in _containers(engine, state, wanted):
            discard(container)
            removed.append(str(container.name))
    return removed


def _project(name: str, state: State) -> str:
    """Return a project's name as compose allows it; two labs on one engine never share one."""
    ending = f"-{state.lab_id[:6]}"
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "deployment"
    return plain if plain.endswith(ending) else plain + ending


def _tell_of_ports(services: tuple[Service, ...], feedback: Feedback) -> None:
    for service in services:
        for port in service.ports:
            if port.host and not is_loopback(port.host):
                feedback.say(
                    f"{service.name}: the file asks for port {port.inside} to be open on "
                    f"'{port.host}'. A lab does not listen to the network: it uses 127.0.0.1."
                )


def _replace(
    engine: Engine,
    state: State,
    project: str,
    services: tuple[Service, ...],
    labels: Mapping[str, Mapping[str, str]],
    feedback: Feedback,
) -> None:
    """Run the services over the engine's API, each in place of its last container."""
    old = _containers(engine, state, project)
    for service in services:
        name = f"{project}-{service.name}-1"
        shown = ["docker", "run", "-d", "--name", name]
        shown += [word for port in publish(service) for word in ("-p", port)]
        for pair in variables(service).items():
            shown += ["-e", "=".join(pair)]
        for container in old:
            if container.labels.get(SERVICE_LABEL) == service.name:
                feedback.command(["docker", "rm", "--force", str(container.name)])
                discard(container)
        feedback.command([*shown, service.image, *(service.command or ())])
        container = engine.client.containers.create(
            service.image,
            command=list(service.command) if service.command is not None else None,
            name=name,
            environment=variables(service),
            ports={f"{port.inside}/tcp": ("127.0.0.1", port.outside) for port in service.ports},
            labels=dict(labels[service.name]),
        )
        try:
            container.start()
        except docker.errors.APIError:
            discard(container)
            raise
    for container in old:
        discard(container)


def _running(engine: Engine, state: State, project: str, service: Service, doing: str) -> Running:
    """Return a service's container once it answers."""
    for container in _containers(engine, state, project):
        if container.labels.get(SERVICE_LABEL) == service.name:
            port = service.ports[0].inside if service.ports else None
            what = f"{doing}: running the service '{service.name}'"
            try:
                url = wait_until_ready(container, port, None, doing=what, seconds=WAIT_SECONDS)
            except RunError as error:
                raise DeploymentError(str(error)) from error
            return Running(str(container.name), service.image, url, container, engine)
    raise DeploymentError(f"{doing}: the service '{service.name}' has no container. Deploy again.")


def _containers(engine: Engine, state: State, project: str | None = None) -> list[Container]:
    wanted = [f"{LABEL}={state.lab_id}", f"{ROLE_LABEL}=service"]
    if project is not None:
        wanted.append(f"{DEPLOYMENT_LABEL}={project}")
    found: list[Container] = engine.client.containers.list(
        all=True, filters={"label": wanted}, ignore_removed=True
    )
    return found
