"""What a reward actor does, as a plain class without Ray. This module loads no torch: a reward loads it where it needs it."""

from collections.abc import Sequence

import rewards
from pararl.types import Judgement, Rollout


class RewardError(RuntimeError):
    """A reward raised: its message names the reward and the cause. Outputs that cannot be scored stop the run, they never count as 0."""


class RewardWorker:
    """Scores rollouts with one reward."""

    def __init__(self, reward_name: str) -> None:
        """Load the reward and run its self-test. Raises what ``rewards.load`` and ``rewards.self_test`` raise."""
        self.reward = rewards.load(reward_name)
        rewards.self_test(self.reward)

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """The judgement of each rollout, final output and recorded steps. Raises RewardError for whatever the reward raises."""
        try:
            return rewards.score_rollouts(self.reward, rollouts)
        except Exception as error:
            # Its text, too: the exception of a user's reward may not survive the way to another process.
            ids = ", ".join(list(dict.fromkeys(rollout.prompt.id for rollout in rollouts))[:4])
            cause = f"{type(error).__name__}: {error}"
            raise RewardError(f"reward {self.reward.name} failed on {len(rollouts)} rollouts (prompts {ids}, ...): {cause}") from error


def reward_calls(rollouts: Sequence[Rollout]) -> int:
    """How many outputs are scored for these rollouts: the final one of each and its guesses."""
    return sum(1 + sum(guess is not None for guess in rollout.guesses) for rollout in rollouts)
