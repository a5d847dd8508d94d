"""What chapters 06 and 08 do with the lab: the wrong things, and the controls that stop them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from labapp import attacks
from labapp.attacks import Happened, deliveries
from labapp.attacks.judging import Judgement, ending, judge, prove
from labapp.attacks.pipeline import PipelineRun, run_pipeline
from labapp.attacks.saboteur import FAULTS, Sabotage, own_seed, practice_seed, sabotage
from labapp.bench import Bench
from labapp.feedback import Feedback
from labapp.private.registry import PrivateRegistry
from labapp.progress.receipts import Receipts
from labapp.registry import Registry


class Attacks:
    """The part of :class:`labapp.lab.Lab` that attacks and defends.

    Attributes:
        bench: what is attacked; nothing else ever is.
        feedback: where attacks announce themselves.
    """

    bench: Bench
    feedback: Feedback

    @property
    def private(self) -> PrivateRegistry:
        """A second registry of the lab, with accounts, tokens and TLS; ``start()`` starts it."""
        return PrivateRegistry(
            engine=self.bench.engine, state=self.bench.state, feedback=self.feedback
        )

    def attack(
        self, id: str, target: str | Path | None = None, *, registry: Registry | None = None
    ) -> Happened:
        """Do one of the wrong things, for real; see :func:`labapp.attacks.start`."""
        return attacks.start(
            self.bench, id, target=target, registry=registry, feedback=self.feedback
        )

    def undo(self, *, registry: Registry | None = None) -> None:
        """Put back whatever attacks have changed; see :func:`labapp.attacks.undo`."""
        attacks.undo(self.bench, registry=registry, feedback=self.feedback)

    def sabotage(self, *, seed: int) -> Sabotage:
        """Choose one to three of the wrong things by a seed and by who you are."""
        return sabotage(self.bench, seed=seed)

    def deliver(self, script: str | Path, *, seed: int | None = None) -> PipelineRun:
        """Run a delivery script step by step; see :func:`labapp.attacks.pipeline.run_pipeline`.

        Args:
            script: ``deliver.py`` or ``deliver.sh``.
            seed: of the sabotage; None for none.
        """
        run = run_pipeline(self.bench, Path(script), seed=seed, feedback=self.feedback)
        deliveries.note(self.bench, run)
        return run

    @property
    def own_seed(self) -> int:
        """The learner's own seed; see :func:`labapp.attacks.saboteur.own_seed`."""
        return own_seed(self.bench)

    @property
    def practice_seed(self) -> int:
        """A seed to try first; see :func:`labapp.attacks.saboteur.practice_seed`."""
        return practice_seed(self.bench)

    def judge(self, run: PipelineRun) -> Judgement:
        """Say which faults a delivery survived, and what they left behind.

        Of a delivery with the learner's own seed, it says only how it ended: the rest is to be
        found out, until it has been.
        """
        judgement = judge(run)
        if run.seed != self.own_seed or "08-find" in Receipts(self.bench.state).read().passed:
            return judgement
        self.feedback.say("With your own seed, what happened is for you to find: exercise 08-find.")
        return Judgement(judgement.ok, ending(run), ())

    def prove(self, script: str | Path, *faults: str) -> pd.DataFrame:
        """Deliver without a fault, then with each; see :func:`labapp.attacks.judging.prove`.

        Args:
            script: ``deliver.py`` or ``deliver.sh``.
            faults: by name; by default all of them.
        """
        return prove(
            self.bench, Path(script), faults=faults or tuple(FAULTS), feedback=self.feedback
        )

    def gate(self, file: str | Path, *, allowed: Sequence[str] = ()) -> bool:
        """Say whether a deployment file may pass, and list what it is refused for.

        Args:
            file: the deployment file.
            allowed: patterns of which each image's registry and repository must fit one.
        """
        found = attacks.refusals(Path(file), allowed=allowed, registry=self.bench.registry)
        name = Path(file).name
        self.feedback.say(
            f"The gate {'refuses' if found else 'lets'} '{name}'{':' if found else ' pass.'}"
        )
        for refusal in found:
            self.feedback.say(f"  {refusal}")
        return not found

    def exposure(self, reference: str, *, hardened: bool = False) -> pd.DataFrame:
        """Try from inside a container what it lets one do; see :func:`labapp.attacks.exposure`."""
        return attacks.exposure(self.bench, reference, hardened=hardened, feedback=self.feedback)

    def hashed_requirements(self, folder: str | Path) -> str:
        """Return an application's requirements with the digests of the wheels beside them."""
        folder = Path(folder)
        return attacks.hashed_requirements(folder / "requirements.txt", folder / "wheels")
