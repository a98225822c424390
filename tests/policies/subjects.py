"""A tiny random policy of every family, and what is known of it by hand: what the contract of ``test_contract`` is checked on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from pararl import scenes
from pararl.types import Modality, Prompt
from policies import Policy
from policies.backbones.chameleon import Chameleon, ChameleonConfig
from policies.backbones.llada import LLaDAConfig, LLaDAForMultiModalGeneration
from policies.embedded.showo2 import SHOWO2_SIZES, new_showo2
from policies.families.chameleon import CHAMELEON, SPELLED, ChameleonSettings, ChameleonSpecials
from policies.families.parallel_a import MMADA_PARALLEL_A, ParallelASettings, ParallelASpecials
from policies.families.showo2 import SHOWO2
from policies.image.amused import AmusedVQ
from policies.image.chameleon import code_name
from policies.image.continuous import ContinuousVAE, ContinuousVAEConfig
from policies.settings import Settings
from policies.text import SHOWO2_TOKENS, SHOWO_TOKENS, word_tokenizer
from tests.policies.by_hand import KINDS, SHOWN, TEXTS, Kind, task_of
from tests.policies.conftest import DEFAULTS, WORDS, build_images, build_policy, build_showo
from tests.policies.toy_family.backbone import Toy, ToyConfig
from tests.policies.toy_family.family import TOY

AMUSED = Path(__file__).parents[1] / "golden" / "amused_vq"
"""The recorded image tokenizer of 64 codes."""


def build_parallel_a(**settings: Any) -> Policy:
    """A random policy of MMaDA-Parallel-A's kind. Its tags stand where MMaDA's task tokens do; three more words are its own."""
    torch.manual_seed(0)
    tokenizer, sp = word_tokenizer((*WORDS, "make", "change", "nothing"))
    taken = {"newline": sp.t2i, "answer_start": sp.mmu, "answer_end": sp.interleave}
    names = ("mask", "bos", "eos", "soi", "eoi", "t2i", "mmu", "pad", "interleave")
    specials = ParallelASpecials(**{name: getattr(sp, name) for name in names}, **taken)
    own = {
        "dialogue": "<|startoftext|>{system} {text}<|endoftext|>",
        "nobody": "nothing",
        "system_new": "make",
        "system_edit": "change",
        "prompt_tokens": 11,
        "tasks": ("t2i", "edit", "interleaved"),
    }
    images = AmusedVQ.from_pretrained(AMUSED)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 48, "max_sequence_length": 64, "init_std": 0.3}
    model = LLaDAForMultiModalGeneration(LLaDAConfig(**sizes, embedding_size=len(tokenizer) + 68, codebook_size=64))
    return MMADA_PARALLEL_A.policy(model, tokenizer, images, ParallelASettings(**{**DEFAULTS, **own, **settings}, specials=specials))


def build_showo2(**settings: Any) -> Policy:
    """A random policy of Show-o2's kind whose velocities are not 0, as those of a new one are, and whose texts end at different places."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        ContinuousVAE(ContinuousVAEConfig()).save_pretrained(folder)
        patch.setitem(SHOWO2_SIZES, "patch_size", 2)  # as released; the embedded policy has patches of one latent
        made = new_showo2(Path(folder), scenes.VOCABULARY)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    if not settings:
        return made
    return SHOWO2.policy(made.model, made.layout.text.tokenizer, made.layout.images.module, replace(made.settings, **settings))


def build_chameleon(**settings: Any) -> Policy:
    """A random policy of Chameleon's kind in the released layout: image codes stand among the text's ids, in an order of their own."""
    torch.manual_seed(0)
    spelled = {name: SPELLED[name] for name in ("bos", "pad", "eos")}
    spelled |= {f"code {k}": code_name(k) for k in (5, 2, 7, 0, 1, 6, 3, 4)}
    spelled |= {name: SPELLED[name] for name in ("eoi", "soi", "eot", "mask")}
    tokenizer, ids = word_tokenizer(WORDS, spelled, kind=dict)
    own = {name: ids[name] for name in SPELLED}
    specials = ChameleonSpecials(**own, **dict.fromkeys(("t2i", "mmu", "interleave"), own["mask"]))
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = 2
    config = ChameleonConfig(**sizes, vocab_size=len(tokenizer) + 2, vocabulary_map=tokenizer.get_vocab(), max_position_embeddings=64)
    images, model = build_images(), Chameleon(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    return CHAMELEON.policy(model, tokenizer, images, ChameleonSettings(**{**DEFAULTS, **settings}, specials=specials))


def build_toy(**settings: Any) -> Policy:
    """A random policy of the toy family."""
    torch.manual_seed(0)
    tokenizer, specials = word_tokenizer(WORDS, SHOWO_TOKENS, len(word_tokenizer(WORDS, SHOWO_TOKENS, 0)[0]) + 8)
    given = {**DEFAULTS, "tasks": ("i2t", "t2i", "interleaved"), **settings}
    images = build_images()
    return TOY.policy(Toy(ToyConfig(embedding_size=specials.mask + 1)), tokenizer, images, Settings(**given, specials=specials))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One family, and what holds of its tiny policy whatever its code says."""

    build: Callable[..., Policy]
    """The policy, always with the same weights; takes settings that differ."""
    kinds: tuple[Kind, ...] = KINDS
    """What it does."""
    texts: tuple[str, ...] = TEXTS
    says: frozenset[int]
    """All ids that a text may hold."""
    ends: frozenset[int] = frozenset()
    """Those behind the first of which a text does not count; none where every token does."""
    codes: frozenset[int] = frozenset()
    """All ids of an image; none where its tokens are continuous."""
    hidden: frozenset[Modality]
    """Modalities whose likelihood is a Monte-Carlo one."""
    targets: int
    """Layers that an adapter wraps."""
    image_targets: int = 0
    """Those of them that only an image goes through."""
    rounding: float = 1e-5
    """How far log-probabilities of other batches may be off."""
    repeats: int = 0
    """How many of a batch's rollouts may be those of another seed, because they are short."""

    def prompts(self, policy: Policy, kind: Kind, count: int = 4) -> list[Prompt]:
        """Prompts of different lengths; the first and the fourth show the same image, so do the second and the fifth, and so on."""
        images = [picture(policy, i % 3) if kind in SHOWN else None for i in range(count)]
        return [Prompt(f"{kind}-{i}", task_of(kind), self.texts[i % len(self.texts)], image=image) for i, image in enumerate(images)]


def picture(policy: Policy, seed: int) -> np.ndarray:
    """An image of noise of the policy's size."""
    return np.random.default_rng(seed).integers(0, 256, (*policy.layout.images.size, 3), dtype=np.uint8)


SHOWO2_WORDS = len(scenes.VOCABULARY)
SUBJECTS = {
    "mmada": Subject(
        build=build_policy,
        says=frozenset({2, *range(10, 16)}),
        codes=frozenset(range(16, 24)),
        hidden=frozenset({"text", "image"}),
        targets=7 * 2,
    ),
    "mmada_parallel_a": Subject(
        build=build_parallel_a,
        kinds=("t2i", "edit", "interleaved", "interleaved+image"),
        says=frozenset({2, *range(10, 19)}),
        codes=frozenset(range(19, 83)),
        hidden=frozenset({"text", "image"}),
        targets=7 * 2,
    ),
    "showo": Subject(
        build=build_showo,
        says=frozenset({1, 3, *range(9, 15)}),
        ends=frozenset({1, 3}),
        codes=frozenset(range(15, 23)),
        hidden=frozenset({"image"}),
        targets=6 * 2,
        repeats=3,
    ),
    "showo2": Subject(
        build=build_showo2,
        kinds=("i2t", "t2i", "interleaved", "interleaved+image"),
        texts=("a red circle", "two blue squares above a green cross", "", "is there a triangle ?", "red"),
        # behind the special tokens and the unknown one come the words; a text ends in <|im_end|> or <|vision_start|>
        says=frozenset({2, 4, *range(len(SHOWO2_TOKENS) + 1, len(SHOWO2_TOKENS) + 1 + SHOWO2_WORDS)}),
        ends=frozenset({2, 4}),
        hidden=frozenset({"image"}),
        targets=7 * (3 + 2),
        image_targets=7 * 2,
        rounding=2e-4,
    ),
    "chameleon": Subject(
        build=build_chameleon,
        says=frozenset({2, 12, *range(16, 22)}),
        ends=frozenset({2, 12}),
        codes=frozenset(range(3, 11)),
        hidden=frozenset(),
        targets=7 * 2,
        repeats=3,
    ),
    "toy": Subject(
        build=build_toy,
        kinds=("i2t", "t2i", "interleaved", "interleaved+image"),
        says=frozenset({1, 3, *range(9, 15)}),
        ends=frozenset({1, 3}),
        codes=frozenset(range(15, 23)),
        hidden=frozenset({"image"}),
        targets=6 * 2,
        repeats=3,
    ),
}
