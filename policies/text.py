"""Text tokenizers that are made here: one token a word over a closed vocabulary, as an ordinary fast tokenizer of transformers."""

from collections.abc import Sequence as Words

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from policies.layout import Specials

SPECIAL_TOKENS = {
    "mask": "<|mdm_mask|>",
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "soi": "<|soi|>",
    "eoi": "<|eoi|>",
    "t2i": "<|t2i|>",
    "mmu": "<|mmu|>",
    "pad": "[iPAD]",
    "interleave": "<|interleave|>",
}
"""The spelling of each special token."""
UNKNOWN = "<|unknown|>"


def word_tokenizer(words: Words[str]) -> tuple[PreTrainedTokenizerFast, Specials]:
    """A word-level tokenizer over special tokens and ``words``, and the ids of the specials. Unknown words become one unknown token."""
    listed = [*SPECIAL_TOKENS.values(), UNKNOWN, *words]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(listed)}, unk_token=UNKNOWN))
    core.normalizer = Lowercase()
    core.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        mask_token=SPECIAL_TOKENS["mask"],
        bos_token=SPECIAL_TOKENS["bos"],
        eos_token=SPECIAL_TOKENS["eos"],
        pad_token=SPECIAL_TOKENS["pad"],
        additional_special_tokens=[SPECIAL_TOKENS[name] for name in ("soi", "eoi", "t2i", "mmu", "interleave")],
        clean_up_tokenization_spaces=False,
    )
    return tokenizer, Specials(**{name: listed.index(token) for name, token in SPECIAL_TOKENS.items()})
