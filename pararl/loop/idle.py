"""Runs that do not learn say so: updates in a row that could teach nothing are counted, told, and end the run in the end."""

from collections.abc import Mapping

WARN = 5
"""Idle updates in a row after which a run says so, and every so many again."""


def idle_reason(metrics: Mapping[str, float]) -> str | None:
    """Why an update with these metrics moved nothing; None where it moved something."""
    if metrics.get("learner/grad_norm", 0.0) > 0:
        return None
    if metrics.get("reward/groups_without_spread", 0.0) == 1:
        return "the reward gave all rollouts of each prompt one score (a constant reward? else raise rollout.temperature or rollout.group)"
    if "learner/grad_norm" in metrics:
        return "the gradient was zero (the loss weights nothing that the rollouts committed: see learner.text_weight, learner.image_weight)"
    return "no pair was found (lower prefer.min_margin or prefer.min_best, or raise rollout.group)"


def idle_warning(idle: int, why: str, patience: int) -> str | None:
    """What a person should be told behind so many idle updates in a row, the last one because of ``why``; None = nothing yet.

    Raises RuntimeError behind ``patience`` of them; 0 = never.
    """
    told = f"nothing was learned in {idle} updates in a row: {why}"
    if patience and idle >= patience:
        raise RuntimeError(f"{told}; the run ends here (run.patience {patience}, 0 = never)")
    return f"warning: {told}" if idle % WARN == 0 else None
