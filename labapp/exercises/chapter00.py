"""Chapter 00, Start here: the exercises."""

from __future__ import annotations

from labapp.bench import Bench
from labapp.exercises import evidence
from labapp.exercises.exercise import Exercise, Verdict, correct, not_yet, wrong


def _check_tag(bench: Bench, answer: object) -> Verdict:
    name = f"{bench.registry.address}/hello/web"
    first = evidence.digest(bench, "hello/web", "1.0")
    mine = evidence.digest(bench, "hello/web", "mine")
    if first is None:
        return not_yet(f"The registry has no '{name}:1.0' yet. Run the cells above first.")
    if mine is None:
        if evidence.on_engine(bench, f"{name}:mine"):
            return wrong(
                "The engine has the tag 'mine', the registry doesn't. A tag on the engine is "
                "local until it is pushed."
            )
        elsewhere = evidence.repositories_with(bench, "mine", first)
        if elsewhere:
            return wrong(
                f"The registry has your tag 'mine' in '{elsewhere[0]}'. It belongs in 'hello/web'."
            )
        tags = ", ".join(bench.registry.tags("hello/web"))
        return not_yet(f"The registry has these tags of 'hello/web': {tags}. 'mine' is missing.")
    if mine != first:
        return wrong(
            f"'hello/web:mine' is {evidence.short(mine)} and 'hello/web:1.0' is "
            f"{evidence.short(first)}: two different images. Was another image tagged, or built?"
        )
    return correct(
        f"Two labels, one image: both tags name {evidence.short(mine)}",
        evidence={"image": evidence.pinned(bench, "hello/web", mine)},
    )


def _check_run(bench: Bench, answer: object) -> Verdict:
    wanted = f"{bench.registry.address}/hello/web:mine"
    found = [c for c in evidence.containers(bench) if "/hello/web" in c["Config"]["Image"]]
    ours = [c for c in found if c["Config"]["Image"] == wanted]
    running = [c for c in ours if c["State"]["Running"]]
    if not ours:
        others = sorted({c["Config"]["Image"] for c in found if c["State"]["Running"]})
        if others and evidence.digest(bench, "hello/web", "mine"):
            return not_yet(
                f"A container runs from '{others[0]}'. None was started from '{wanted}'."
            )
        return not_yet(f"No container was started from '{wanted}' yet.")
    if not running:
        code = ours[0]["State"].get("ExitCode")
        return wrong(
            f"A container was started from '{wanted}', but it ended with code {code}. Was another "
            "command given behind the image's name?"
        )
    ports = [port for port in map(evidence.published_port, running) if port]
    if not ports:
        return wrong(
            "The container runs, but no port of this machine leads to it, so nobody can reach "
            "it. Publish its port 8000."
        )
    if not any(evidence.answers(port, "/") for port in ports):
        return wrong(
            f"The container runs, and nothing answers on port {ports[0]} of this machine. The web "
            "server inside listens on port 8000: is that the one you published?"
        )
    digest = evidence.digest(bench, "hello/web", "mine")
    held = {"image": evidence.pinned(bench, "hello/web", digest)} if digest else {}
    return correct(
        f"It answers on port {ports[0]}.", evidence={**held, "container": running[0]["Id"][:12]}
    )


EXERCISES = (
    Exercise(
        id="00-tag",
        check=_check_tag,
        hints=(
            "Giving a name and sending it are two steps. The first happens on the engine only.",
            "`docker tag SOURCE TARGET` gives the name. `docker push NAME` sends it.",
        ),
        solution="""
mine = f"{lab.address}/hello/web:mine"
lab.tag(hello, mine)
lab.push(mine)
""",
        why="The push sends no layer: the registry has them all. Only the label is new.",
    ),
    Exercise(
        id="00-run",
        check=_check_run,
        hints=(
            "Look at the `docker run` line that `lab.run` printed above. Which part names the "
            "image?",
            "`lab.run(REFERENCE, wait_for='/')` starts a container and publishes its port.",
        ),
        solution="""
lab.run(f"{lab.address}/hello/web:mine", name="hello-mine", wait_for="/")
""",
        why="The container runs from the image that the tag names at the moment of the start.",
    ),
)
