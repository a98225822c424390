"""What a batch teaches as tensors: its pairs, and the advantages of single tokens, credit of their cells and words included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pararl.learner.prefer import Feedback
from pararl.types import MODALITIES, Pair, Rollout
from policies import Policy


@dataclass(frozen=True, slots=True)
class Signal:
    """What the rollouts of an update teach; objectives read it beside the likelihoods of the same batch."""

    pairs: tuple[Pair, ...] = ()
    """By their place in the batch."""
    advantages: Tensor | None = None
    """float32 [batch, level, modality, n]: of every token at each recorded step, and last as a token of the final output."""


def signal_of(policy: Policy, rollouts: Sequence[Rollout], feedback: Feedback, width: int) -> Signal:
    """The feedback about these very rollouts; n is ``width``. Raises ValueError as ``text_credit`` does."""
    if feedback.advantages is None:
        return Signal(feedback.pairs)
    credit = torch.zeros(len(rollouts), len(MODALITIES), width, device=policy.device)
    credit[:, MODALITIES.index("text")] = text_credit(policy, rollouts, feedback.words, width)
    if feedback.credit is not None:
        credit[:, MODALITIES.index("image")] = image_credit(policy, rollouts, feedback.credit, width)
    advantages = torch.from_numpy(feedback.advantages).to(policy.device)
    return Signal(feedback.pairs, advantages[:, :, None, None] + credit[:, None])


def image_credit(policy: Policy, rollouts: Sequence[Rollout], credit: np.ndarray, width: int) -> Tensor:
    """Credit of every image token, float32 [batch, width], from that of the cells [batch, rows, columns] that they lie in.

    Of several images a reward sees the last, so the tokens of the others have none: 0, as behind all tokens.
    """
    rows, columns = policy.grid
    cell_rows, cell_columns = np.arange(rows) * credit.shape[1] // rows, np.arange(columns) * credit.shape[2] // columns
    out = np.zeros((len(credit), width), np.float32)
    tokens = credit[:, cell_rows[:, None], cell_columns[None]].reshape(len(credit), -1)
    for row, rollout in enumerate(rollouts):
        sizes = [len(s.tokens) for s in rollout.segments if s.modality == "image"]
        if sizes:
            out[row, sum(sizes[:-1]) : sum(sizes)] = tokens[row]
    return torch.from_numpy(out).to(policy.device)


def text_credit(policy: Policy, rollouts: Sequence[Rollout], words: Mapping[int, np.ndarray], width: int) -> Tensor:
    """Credit of every text token, float32 [batch, width], from that of the words that they belong to; 0 where there is none.

    ``words``: float32 [words] by the place of a rollout, those of all its texts. Raises ValueError where these have another number of words
    than the reward gives credit for.
    """
    out = np.zeros((len(rollouts), width), np.float32)
    for row, rollout in enumerate(rollouts):
        credit = words.get(row)
        if credit is None:
            continue
        place = np.empty(0, np.int64)
        for text in rollout.segments:
            if text.modality == "text":
                own, said = policy.words(text), int(place.max(initial=-1)) + 1
                place = np.append(place, np.where(own < 0, -1, own + said))
        count = int(place.max(initial=-1)) + 1
        if count and len(credit) != count:  # a policy may not tell words apart
            raise ValueError(f"the reward gives credit for {len(credit)} words of {rollout.output.text!r}: it must give one each")
        out[row, : len(place)] = np.where(place < 0, 0, credit[place])
    return torch.from_numpy(out).to(policy.device)
