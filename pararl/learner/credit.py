"""The credit of single cells and words as advantages of the tokens that they are made of."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pararl.learner.prefer import Feedback
from pararl.types import Rollout
from policies import Policy


def image_credit(policy: Policy, credit: np.ndarray, width: int) -> Tensor:
    """Credit of every image token, float32 [batch, width], from that of the cells [batch, rows, columns] that they lie in; 0 behind
    the image's tokens."""
    rows, columns = policy.grid
    cell_rows, cell_columns = np.arange(rows) * credit.shape[1] // rows, np.arange(columns) * credit.shape[2] // columns
    out = np.zeros((len(credit), width), np.float32)
    tokens = credit[:, cell_rows[:, None], cell_columns[None]].reshape(len(credit), -1)[:, :width]
    out[:, : tokens.shape[1]] = tokens
    return torch.from_numpy(out).to(policy.device)


def text_credit(policy: Policy, rollouts: Sequence[Rollout], feedback: Feedback, used: Sequence[int], width: int) -> Tensor:
    """Credit of every text token, float32 [batch, width], from that of the words that they belong to; 0 where there is none.

    ``used``: the index of each rollout in the batch that ``feedback`` is about. Raises ValueError where a text has another number of
    words than the reward gives credit for.
    """
    out = np.zeros((len(rollouts), width), np.float32)
    for row, (rollout, index) in enumerate(zip(rollouts, used, strict=True)):
        text, words = rollout.segment("text"), feedback.words.get(index)
        if text is not None and words is not None:
            place = policy.words(text)
            if place.max() >= 0 and len(words) != place.max() + 1:  # a policy may not tell words apart
                raise ValueError(f"the reward gives credit for {len(words)} words of {rollout.output.text!r}: it must give one each")
            out[row, : len(place)] = np.where(place < 0, 0, words[place])
    return torch.from_numpy(out).to(policy.device)
