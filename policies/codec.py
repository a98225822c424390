"""What a policy reads and writes as text: its tokenizer, its special tokens, and where a generated text ends."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile

import numpy as np
from transformers import PreTrainedTokenizerFast

from pararl.types import Segment
from policies.canvas import Specials, Vocabulary


class TextCodec:
    """A tokenizer whose special tokens no prompt can spell."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        specials: Specials,
        codes: int,
        ends: Sequence[int],
        first_code: int | None = None,
        never: Iterable[int] = (),
    ) -> None:
        """``codes``: image codes of the vocabulary, behind the tokenizer's ids, or among them from ``first_code`` on. ``ends``: tokens with
        which a generated text ends. ``never``: further ids that no text holds."""
        self.tokenizer, self.ends = tokenizer, tuple(ends)
        others = {i for i in tokenizer.all_special_ids if i is not None} | set(asdict(specials).values()) | set(never)
        others |= set() if first_code is None else set(range(first_code, first_code + codes))
        self.vocabulary = Vocabulary(len(tokenizer), codes, specials, tuple(sorted(others - set(self.ends))), first_code)
        self.spelled = {token: i for token, i in tokenizer.get_added_vocab().items() if i != tokenizer.unk_token_id and token.strip()}
        """Special and added tokens with their ids, which a template spells out; runs of blanks, which Phi's adds, are words like others."""
        self.reserved = {*self.spelled.values(), *self.vocabulary.forbidden, *self.ends} - {tokenizer.unk_token_id}
        """Ids that the text of a prompt never yields."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. A special token that it spells is text like any other: a prompt cannot end itself or mask anything.

        Raises ValueError that names the words which a closed vocabulary does not have, and for a text that yields a special token all
        the same.
        """
        encode = partial(self.tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        ids: list[int] = encode(text)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            # Word by word, because the tokenizer does not say which of them it did not know.
            words = dict.fromkeys(w for w in text.split() if unknown in encode(w))
            raise ValueError(f"this policy's vocabulary has no {', '.join(map(repr, words))} (in {text!r}): use other words")
        if not self.reserved.isdisjoint(ids):
            raise ValueError(f"{text!r} spells a special token of this policy's tokenizer; take it out")
        return ids

    def encode_template(self, template: str, text: str) -> list[int]:
        """Token ids of a template, which spells out its special tokens, with ``text`` in the place of ``{text}``."""
        # The longest first: the spelling of one token may begin with that of another.
        every = "|".join(map(re.escape, sorted(self.spelled, key=len, reverse=True)))
        pieces = re.split(f"({every})", template) if every else [template]
        return [
            i
            for piece in pieces
            if piece
            for i in ([self.spelled[piece]] if piece in self.spelled else self.encode(piece.replace("{text}", text)))
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first end token."""
        return str(self.tokenizer.decode(self.written(ids), skip_special_tokens=True))

    def written(self, ids: Sequence[int]) -> list[int]:
        """Those of generated text ids that stand before the first end token."""
        return list(takewhile(lambda i: i not in self.ends, ids))

    def fill(self, segment: Segment) -> np.ndarray:
        """Which tokens of a text stand behind its first end token, bool [n]."""
        ends = np.isin(segment.tokens, self.ends)
        return ends.cumsum() > ends

    def words(self, segment: Segment) -> np.ndarray:
        """Which word of a text, parted by white space, each of its tokens belongs to, int64 [n]; -1 where to none.

        Words are counted in what the tokens up to each one decode to.
        """
        ids = segment.tokens.tolist()
        # Of prefixes: what a token stands for may depend on those before it.
        counts = [len(self.decode(ids[: i + 1]).split()) for i in range(len(self.written(ids)))]
        return np.array(counts + [0] * (len(ids) - len(counts))) - 1
