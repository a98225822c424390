"""Rollouts of the base that are sampled once before an arm learns from them, kept on disk batch by batch.

A kill while they are sampled costs one batch. What is loaded equals what was sampled, so a resumed arm is an undisturbed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pararl.config import ConfigError
from pararl.data.curriculum import Curriculum
from pararl.learner.prefer import without_spread
from pararl.loop import checkpoint
from pararl.types import Judgement, Rollout


@dataclass(slots=True)
class StaticRollouts:
    """All batches of an arm so far, one behind the other."""

    rollouts: list[Rollout] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    """Of each batch, how many updates the run was to have when it was sampled."""

    @classmethod
    def load(cls, store: Path) -> "StaticRollouts":
        """What ``add`` has left in a folder: nothing where there is none."""
        found = cls()
        while kept := checkpoint.load_rollouts(batch_folder(store, found.updates + 1)):
            found._append(*kept)
        return found

    @property
    def updates(self) -> int:
        """How many updates there are batches for."""
        return len(self.wanted)

    @property
    def ends(self) -> list[int]:
        """The updates behind which a sampling was complete: the last of the run as it was begun, and of each extension."""
        return [update for update, wanted in enumerate(self.wanted, start=1) if update == wanted]

    def add(self, store: Path, wanted: int, rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> None:
        """Keep the batch of the next update of a run of ``wanted`` updates, on disk when this returns."""
        checkpoint.save_rollouts(batch_folder(store, self.updates + 1), rollouts, judgements, wanted)
        self._append(rollouts, judgements, wanted)

    def replay(self, curriculum: Curriculum, prompts: int) -> None:
        """Have a new curriculum give and learn what it did when these batches were sampled, so that the next ones follow.

        Raises ConfigError where it gives other prompts.
        """
        for update in range(self.updates):
            each = len(self.rollouts) // self.updates
            here = slice(update * each, (update + 1) * each)
            batch, asked = self.rollouts[here], [(p.kind, p.id) for p in curriculum.next()]
            if asked != [(r.prompt.kind, r.prompt.id) for r in batch[:: each // prompts]]:
                raise ConfigError("the prompts are not those that the run began with (restore curriculum.file, or start a new run)")
            curriculum.told(without_spread(batch, self.judgements[here]))

    def _append(self, rollouts: Sequence[Rollout], judgements: Sequence[Judgement], wanted: int) -> None:
        self.rollouts += rollouts
        self.judgements += judgements
        self.wanted.append(wanted)


def batch_folder(store: Path, update: int) -> Path:
    """Where the batch that was sampled for an update is kept."""
    return store / f"batch-{update:06d}"


def sampled_once(rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> tuple[list[Rollout], list[Judgement]]:
    """A batch without what the learner has no use for: all batches of the run are held at once."""
    plain = [replace(j, final=j.final and replace(j.final, atoms=(), credit=None, words=None)) for j in judgements]
    return [checkpoint.without_outputs(r) for r in rollouts], plain
