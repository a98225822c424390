"""From scored groups to what a learner learns from: pairs, advantages or the best of each group. Pure functions of numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pararl.arms import ArmSpec
from pararl.config import PreferConfig
from pararl.types import Judgement, Kind, Pair, Prompt, Rollout, Score


@dataclass(frozen=True, slots=True)
class Feedback:
    """What one batch of rollouts teaches."""

    pairs: tuple[Pair, ...] = ()
    """Preferences, for the objective ``preference``; and best against group, for ``best``."""
    advantages: np.ndarray | None = None
    """float32 [batch, step]: group-normalised rewards, for the objective ``grpo``; 0 where a score is missing."""
    credit: np.ndarray | None = None
    """float32 [batch, image rows, image columns]: what is added to the advantages of the tokens of each image cell."""
    words: Mapping[int, np.ndarray] = field(default_factory=dict)
    """By index in the batch float32 [words]: what is added to the advantages of the tokens of each word of the text."""
    best: tuple[int, ...] = ()
    """Index of the best rollout of each group with spread, for the objective ``best``."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Of the batch: reward and share of groups without spread, over all and, where there are several, per kind of prompt."""

    def used(self, final: bool) -> list[int]:
        """Indices of the rollouts that a loss needs, increasing.

        ``final``: of advantages, those of the final output alone; what scores of steps teach besides must not dilute an ELBO, which is of
        that output.
        """
        if self.advantages is not None:
            teaches = (self.advantages[:, -1:] if final else self.advantages).any(1)
            if self.credit is not None:
                teaches |= self.credit.any((1, 2))
            return sorted({*np.flatnonzero(teaches).tolist(), *(i for i, words in self.words.items() if words.any())})
        return sorted({i for p in self.pairs for i in (p.chosen, p.rejected)} | set(self.best))

    def take(self, index: Sequence[int]) -> "Feedback":
        """What the batch of these rollouts alone teaches, in the order of ``index``, which holds all that are used."""
        place = {i: k for k, i in enumerate(index)}
        rows = list(index)
        return Feedback(
            tuple(replace(p, chosen=place[p.chosen], rejected=place[p.rejected]) for p in self.pairs),
            None if self.advantages is None else self.advantages[rows],
            None if self.credit is None else self.credit[rows],
            {place[i]: words for i, words in self.words.items() if i in place},
            tuple(place[i] for i in self.best),
            self.metrics,
        )


def values(scores: Sequence[Score | None], strict_mix: float = 0.0) -> np.ndarray:
    """Scores float64 [n], ``strict_mix`` x strict + (1 - ``strict_mix``) x soft; soft alone where there is no strict score; NaN where a
    reward did not apply."""
    return np.array([np.nan if s is None else _mixed(s, strict_mix) for s in scores])


def _mixed(score: Score, strict_mix: float) -> float:
    return score.value if score.strict is None else strict_mix * score.strict + (1 - strict_mix) * score.value


def rewards(judgements: Sequence[Judgement], level: str, step_mix: float, strict_mix: float = 0.0) -> np.ndarray:
    """Rewards float64 [batch, level]: one column per recorded step and a last one for the final output; the last one alone for ``final``.

    The reward of a step is ``step_mix`` x score of its guess + (1 - ``step_mix``) x score of the final output, and the latter alone
    where the guess was not scored: a guess is one noisy completion of the step's canvas, the final output another that also depends
    on later steps. NaN where the final score is missing.
    """
    final = values([j.final for j in judgements], strict_mix)[:, None]
    if level == "final":
        return final
    steps = np.stack([values(j.steps, strict_mix) for j in judgements])
    return np.concatenate((np.where(np.isnan(steps), final, step_mix * steps + (1 - step_mix) * final), final), axis=1)


def groups(rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """Indices of the rollouts of each group, in order of first appearance.

    Prompts of two tasks may share an id; and a batch of stored rollouts may hold two groups of one prompt, sampled at different updates.
    """
    found: dict[tuple[Kind, str, int], list[int]] = {}
    seen: Counter[tuple[Kind, str, int]] = Counter()
    for i, rollout in enumerate(rollouts):
        kind, name = rollout.prompt.kind, rollout.prompt.id
        found.setdefault((kind, name, seen[kind, name, rollout.index]), []).append(i)
        seen[kind, name, rollout.index] += 1
    return [np.array(index) for index in found.values()]


def select_pairs(reward: np.ndarray, members: Sequence[np.ndarray], config: PreferConfig, step: int | None) -> list[Pair]:
    """Pairs within each group by one column of rewards [batch]; missing rewards, margins below ``min_margin`` and bests of no more than
    ``min_best`` make none."""
    pairs: list[Pair] = []
    for index in members:
        index = index[~np.isnan(reward[index])]
        if config.select == "best_worst" and len(index):
            candidates = [(index[reward[index].argmax()], index[reward[index].argmin()])]
        else:
            candidates = [(i, j) for i in index for j in index if reward[i] > reward[j]]
        for i, j in candidates:
            margin = float(reward[i] - reward[j])
            if margin > 0 and margin >= config.min_margin and (not config.min_best or reward[i] > config.min_best):
                pairs.append(Pair(int(i), int(j), margin, step))
    return pairs


def normalise(reward: np.ndarray, members: Sequence[np.ndarray], floor: float = 1e-4) -> np.ndarray:
    """Advantages float32 of rewards [batch, level]: (reward - group mean) / group deviation per column; 0 without spread or score (Eq.
    4)."""
    out = np.zeros(reward.shape, np.float32)
    for index in members:
        part = reward[index]
        known = ~np.isnan(part)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, part, 0).sum(0) / count
        deviation = np.sqrt((np.where(known, part - mean, 0) ** 2).sum(0) / count)
        out[index] = np.where(known & (deviation > floor), (part - mean) / np.maximum(deviation, floor), 0)
    return out


def relative_credit(judgements: Sequence[Judgement], members: Sequence[np.ndarray]) -> np.ndarray | None:
    """Credit of each image cell of the final outputs less its mean over the group, float32 [batch, rows, columns]; 0 where there is none.

    None where no output has any. The scalar reward tells a group's outputs apart, the credit their cells: one wrong cell does not count
    against the fifteen right ones beside it. Raises ValueError for credits on different grids.
    """
    found = {i: j.final.credit for i, j in enumerate(judgements) if j.final is not None and j.final.credit is not None}
    grids = {credit.shape for credit in found.values()}
    if len(grids) > 1:
        raise ValueError(f"the reward gives credit on grids of {' and '.join(map(str, sorted(grids)))} cells: it must keep to one")
    if not grids:
        return None
    out = np.zeros((len(judgements), *grids.pop()), np.float32)
    for index in members:
        known = [i for i in index if i in found]
        if known:
            out[known] = np.stack([found[i] for i in known]) - np.mean([found[i] for i in known], axis=0)
    return out


def relative_words(judgements: Sequence[Judgement], members: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Credit of each word of the final outputs less the mean over all words of the group, float32 [words] by index in the batch.

    Texts of a group differ in length and order, so there is no mean at a place, as there is at a cell.
    """
    out: dict[int, np.ndarray] = {}
    for index in members:
        known = {int(i): final.words for i in index if (final := judgements[i].final) and final.words is not None and len(final.words)}
        if known:
            mean = np.concatenate(list(known.values())).mean()
            out |= {i: (words - mean).astype(np.float32) for i, words in known.items()}
    return out


def balanced(pairs: Sequence[Pair], rollouts: Sequence[Rollout]) -> list[Pair]:
    """The pairs with weights that give every kind of prompt the sum of its prompts that have a pair; within a kind by margin.

    Without it a kind whose scores are all or nothing would drown one that is scored in small steps.
    """
    prompts: dict[Kind, set[str]] = {}
    margins: dict[Kind, float] = {}
    for pair in pairs:
        prompt = rollouts[pair.chosen].prompt
        prompts.setdefault(prompt.kind, set()).add(prompt.id)
        margins[prompt.kind] = margins.get(prompt.kind, 0.0) + pair.margin
    scale = {kind: len(names) / margins[kind] for kind, names in prompts.items()}
    return [replace(pair, weight=pair.margin * scale[rollouts[pair.chosen].prompt.kind]) for pair in pairs]


def together(pairs: Sequence[Pair], rollouts: Sequence[Rollout]) -> list[Pair]:
    """The pairs of scenes that have one for each kind of prompt, with weights that make the loss half the sum of a DPO term of each kind.

    HermesFlow's data are written even where a scene has no pair, with the indices of an earlier one.
    """
    prompts = [rollouts[pair.chosen].prompt for pair in pairs]
    kinds: dict[str, set[Kind]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.id, set()).add(prompt.kind)
    whole = [(pair, prompt.kind) for pair, prompt in zip(pairs, prompts, strict=True) if len(kinds[prompt.id]) == 2]
    count = Counter(kind for _, kind in whole)
    return [replace(pair, weight=1 / count[kind]) for pair, kind in whole]


def extremes(reward: np.ndarray, index: np.ndarray, keep: int) -> np.ndarray:
    """The ``keep`` rollouts of a group that say most: the better half of them from its best, the other from its worst. Scored ones only."""
    index = index[~np.isnan(reward[index])]
    if len(index) <= keep:
        return index
    ranked = index[np.argsort(-reward[index], kind="stable")]
    return np.concatenate((ranked[: keep - keep // 2], ranked[len(ranked) - keep // 2 :]))


def prefer(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement],
    arm: ArmSpec,
    config: PreferConfig,
    step_mix: float,
    keep: int,
    strict_mix: float = 0.0,
) -> Feedback:
    """What a batch of scored rollouts teaches an arm.

    ``keep``: pairs are made among at most so many rollouts of a group, its best and its worst, so that an arm which samples larger
    groups to
    make as many reward calls learns from as many rollouts.
    """
    members = groups(rollouts)
    reward = rewards(judgements, arm.reward, step_mix, strict_mix)
    final = reward[:, -1]
    if np.isnan(final).all():
        raise ValueError(
            f"the reward applied to none of {len(rollouts)} rollouts (prompts {rollouts[0].prompt.id}, ...): it teaches nothing"
        )
    spread = [has_spread(final[i]) for i in members]
    metrics = tuple(_metrics(rollouts, judgements, arm, values([j.final for j in judgements]), members, spread).items())
    if arm.objective == "grpo":
        credit = relative_credit(judgements, members) if config.credit else None
        weighed = None if credit is None else config.credit * credit
        words = {i: config.credit * w for i, w in relative_words(judgements, members).items()} if config.credit else {}
        return Feedback(advantages=normalise(reward, members), credit=weighed, words=words, metrics=metrics)
    if arm.objective == "best":
        best = tuple(int(i[np.nanargmax(final[i])]) for i, informative in zip(members, spread, strict=True) if informative)
        return Feedback(best=best, metrics=metrics)
    members = [extremes(final, index, keep) for index in members]
    last = reward.shape[1] - 1
    pairs = [p for level in range(last + 1) for p in select_pairs(reward[:, level], members, config, None if level == last else level)]
    if arm.paired:
        return Feedback(pairs=tuple(together(pairs, rollouts)), metrics=metrics)
    return Feedback(pairs=tuple(balanced(pairs, rollouts) if config.balance else pairs), metrics=metrics)


def has_spread(final: np.ndarray) -> bool:
    """Whether the known final rewards of a group differ: a group without spread teaches nothing."""
    known = final[~np.isnan(final)]
    return len(known) > 0 and bool(np.ptp(known) > 0)


def without_spread(rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> list[Prompt]:
    """The prompts whose groups had no spread."""
    final = values([j.final for j in judgements])
    return [rollouts[i[0]].prompt for i in groups(rollouts) if not has_spread(final[i])]


def _metrics(
    rollouts: Sequence[Rollout],
    judgements: Sequence[Judgement],
    arm: ArmSpec,
    final: np.ndarray,
    members: Sequence[np.ndarray],
    spread: Sequence[bool],
) -> dict[str, float]:
    """``reward/...`` of a batch, and ``reward/<kind>_...`` of each kind of prompt where there are several."""
    strict = np.array([np.nan if j.final is None or j.final.strict is None else j.final.strict for j in judgements])
    kinds = [rollout.prompt.kind for rollout in rollouts]
    of_group = [kinds[index[0]] for index in members]
    out: dict[str, float] = {}
    for kind in (None, *(dict.fromkeys(kinds) if len(set(kinds)) > 1 else ())):
        rows = np.array([kind in (None, k) for k in kinds])
        name = "reward/" if kind is None else f"reward/{kind}_"
        if not np.isnan(final[rows]).all():
            out[f"{name}mean"] = float(np.nanmean(final[rows]))
        out[f"{name}groups_without_spread"] = 1 - float(np.mean([s for s, k in zip(spread, of_group, strict=True) if kind in (None, k)]))
        if not np.isnan(strict[rows]).all():
            out[f"{name}strict"] = float(np.nanmean(strict[rows]))
    guesses = values([score for j in judgements for score in j.steps if score is not None])
    if arm.reward == "step" and len(guesses):
        out["reward/guess"] = float(guesses.mean())
    return out
