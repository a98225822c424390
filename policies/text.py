"""Text tokenizers: made here, one token a word over a closed vocabulary, as an ordinary fast tokenizer of transformers; or read."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Words
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pararl.policy_files import REMEDY
from pararl.readers import FileError, read_json
from policies.canvas import Specials

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
SHOWO_TOKENS = {
    "bos": "<|startoftext|>",
    "eos": "<|endoftext|>",
    "pad": "[PAD]",
    "soi": "<|soi|>",
    "eoi": "<|eoi|>",
    "t2i": "<|t2i|>",
    "mmu": "<|mmu|>",
    "interleave": "<|lvg|>",
}
"""The same in Show-o's vocabulary, where MASK is the row behind the image codes and has no spelling."""
SHOWO2_TOKENS = {
    "mask": "<|image_pad|>",
    "bos": "<|im_start|>",
    "eos": "<|im_end|>",
    "pad": "[PAD]",
    "soi": "<|vision_start|>",
    "eoi": "<|vision_end|>",
}
"""The same in Show-o2's, which has no tokens for tasks and none that hides: ``mask`` holds the place of what is no token."""
UNKNOWN = "<|unknown|>"


def word_tokenizer(
    words: Words[str], spelled: Mapping[str, str] = SPECIAL_TOKENS, mask: int | None = None, kind: Callable[..., Any] = Specials
) -> tuple[PreTrainedTokenizerFast, Any]:
    """A word-level tokenizer over special tokens and ``words``, and the ids of the specials. Unknown words become one unknown token.

    ``spelled``: the special tokens. ``mask``: id of MASK where it is none of them. ``kind``: of the record of the ids.
    """
    listed = [*spelled.values(), UNKNOWN, *words]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(listed)}, unk_token=UNKNOWN))
    core.normalizer = Lowercase()
    # A user's ``circle.`` is a word and a mark.
    core.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])
    named = {f"{name}_token": spelled[name] for name in ("mask", "bos", "eos", "pad") if name in spelled}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        **named,
        additional_special_tokens=[token for name, token in spelled.items() if f"{name}_token" not in named],
        # Otherwise decoding pulls ``.`` and ``?`` to the word before, and no plan is read.
        clean_up_tokenization_spaces=False,
    )
    ids = {name: listed.index(token) for name, token in spelled.items()}
    return tokenizer, kind(**(ids if mask is None else {**ids, "mask": mask}))


def read_tokenizer(directory: Path, added: Words[str] = ()) -> PreTrainedTokenizerFast:
    """The text tokenizer in a directory, with the tokens that a release adds behind its own: the first of them pads.

    With these, every added token but a run of blanks is special, whatever the directory says: a text cannot spell it. A policy that is
    loaded with them samples none but an end token.
    """
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (directory / name).exists():
            read_json(directory / name, REMEDY)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise FileError(directory, f"holds no text tokenizer that can be read: {type(error).__name__}: {error}", REMEDY) from error
    if added:
        # In the order of the release, whose ids stand behind those of the other repository.
        tokenizer.add_special_tokens({"pad_token": added[0]})
        own = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
        listed = [token for token, _ in own if token.strip() and token not in added]
        tokenizer.add_special_tokens({"extra_special_tokens": [*listed, *added[1:]]})
    return tokenizer
