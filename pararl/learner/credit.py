"""The credit of single cells and words as advantages of the tokens that they are made of."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

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


def text_credit(policy: Policy, rollouts: Sequence[Rollout], words: Mapping[int, np.ndarray], width: int) -> Tensor:
    """Credit of every text token, float32 [batch, width], from that of the ``words`` that they belong to, float32 [words] by place in the
    batch; 0 where there is none.

    Raises ValueError where a text has another number of words than the reward gives credit for.
    """
    out = np.zeros((len(rollouts), width), np.float32)
    for row, credit in words.items():
        text = rollouts[row].segment("text")
        if text is not None:
            place = policy.words(text)
            if place.max() >= 0 and len(credit) != place.max() + 1:  # a policy may not tell words apart
                told = rollouts[row].output.text
                raise ValueError(f"the reward gives credit for {len(credit)} words of {told!r}: it must give one each")
            out[row, : len(place)] = np.where(place < 0, 0, credit[place])
    return torch.from_numpy(out).to(policy.device)
