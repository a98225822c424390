"""The vocabulary rows of a modality: logits and log-probabilities of tokens, on the needed positions and rows only."""

from functools import partial

import torch
from torch import Tensor

from pararl.options import ImageRows
from pararl.types import Modality
from policies.canvas import Vocabulary
from policies.likelihood.masked import hidden_token_logprobs
from policies.sequences import Backbone


class TokenLogits:
    """The head of a backbone by modality, with the text rows out of reach that a text position never yields."""

    def __init__(self, model: Backbone, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.text_bias = torch.zeros(vocabulary.text_size)
        """float32 [text rows]: -inf at forbidden ones."""
        self.text_bias[[i for i in vocabulary.forbidden if i < vocabulary.text_size]] = -torch.inf

    def rows(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Logits over the rows of a modality; forbidden text rows at -inf."""
        logits = self.model.head(hidden, self.vocabulary.rows(modality))
        return logits + self.text_bias.to(logits) if modality == "text" else logits

    def offset(self, modality: Modality) -> int:
        """The vocabulary row of the first of these."""
        return self.vocabulary.rows(modality).start

    def logprobs(self, hidden: Tensor, modality: Modality, targets: Tensor, wanted: Tensor, image_rows: ImageRows = "codes") -> Tensor:
        """Log-probability in nats of target ids int64 [batch, n] at the wanted positions (bool), float32 [batch, n]; 0 elsewhere."""
        if modality == "image" and image_rows == "all":
            return hidden_token_logprobs(hidden, self.model.head, targets, wanted, 0)
        return hidden_token_logprobs(hidden, partial(self.rows, modality=modality), targets, wanted, self.offset(modality))
