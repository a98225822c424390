"""What every test runs under: one thread, no network, no account."""

import logging
import os
import sys

# Before anything imports torch, transformers or wandb.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
# Ray has its workers give way to everything else, which with tests side by side would be the other tests.
os.environ.setdefault("RAY_worker_niceness", "0")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from policies.image import MAGVITv2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a whole program or a Ray cluster take most of the time: ``make test-fast`` leaves them out."""
    for item in items:
        if "pipelines" in item.path.parts or "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("program")


TINY: dict[str, Any] = {
    "grid": (4, 4),
    "prompt_tokens": 48,
    "text_tokens": 24,
    "text_block": 12,
    "answer_tokens": 24,
    "answer_block": 12,
    "dialogue": "{text} <|endoftext|>",
}
"""Settings of the tiny policies of the scene world."""


def tiny_images() -> "MAGVITv2":
    """A random image tokenizer of 64 codes, from where torch's generator stands."""
    from policies.image import MAGVITv2, MAGVITv2Config

    levels = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": [0, 0, 0, 0], "z_channels": 6}
    return MAGVITv2(MAGVITv2Config(levels, levels, {"codebook_dim": 6}, norm_groups=4))


@pytest.fixture(autouse=True)
def torch_as_it_is_at_first() -> Iterator[None]:
    """Learners and programs set torch's threads and products for their process, which here is that of other tests too.

    Before a test as well: fixtures of a whole module may have made a learner.
    """

    def reset() -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            torch.set_float32_matmul_precision("highest")

    reset()
    yield
    reset()


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for ``policies.load``: a random mmada policy of 2 layers over a grid of 4 x 4 tokens, 32 x 32 px."""
    import torch

    from pararl import scenes
    from policies.backbones.llada import MMadaConfig, MMadaModelLM
    from policies.families.mmada import MMADA
    from policies.settings import Settings
    from policies.text import word_tokenizer

    tokenizer, specials = word_tokenizer(scenes.VOCABULARY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = tiny_images()
        # A standard deviation of 0.2 rather than 0.02: at so small a width, the logits of a random model should still tell prompts apart.
        config = MMadaConfig(
            d_model=32,
            n_layers=2,
            n_heads=2,
            mlp_hidden_size=64,
            embedding_size=len(tokenizer) + 64,
            mask_token_id=specials.mask,
            init_std=0.2,
        )
        model = MMadaModelLM(config)
    directory = tmp_path_factory.mktemp("policies") / "tiny-mmada"
    MMADA.policy(model, tokenizer, images, Settings(**TINY, specials=specials)).save(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_showo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a random showo policy."""
    import torch

    from pararl import scenes
    from policies.backbones.showo import Showo, ShowoConfig
    from policies.families.showo import SHOWO
    from policies.settings import Settings
    from policies.text import SHOWO_TOKENS, word_tokenizer

    mask = len(word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, 0)[0]) + 64
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, mask)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = tiny_images()
        model = Showo(ShowoConfig(vocab_size=mask + 1, codebook_size=64, num_vq_tokens=16, phi={**sizes, "initializer_range": 0.2}))
    directory = tmp_path_factory.mktemp("policies") / "tiny-showo"
    SHOWO.policy(model, tokenizer, images, Settings(**TINY, specials=specials)).save(directory)
    return directory


@pytest.fixture(scope="session")
def speaking_showo_dir(tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a random showo policy around the same image tokenizer, which also answers texts."""
    from dataclasses import replace

    import torch

    from pararl import scenes
    from policies.embedded.showo import new_showo
    from policies.families.showo import SHOWO

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = new_showo(tiny_policy_dir / "image_tokenizer", scenes.VOCABULARY)
        for weights in made.model.parameters():
            if weights.ndim > 1:  # as above: its logits should tell prompts apart
                weights.data.normal_(0, 0.1)
        made.model.showo.lm_head.bias.data[made.settings.specials.eos] = 3.0  # and its texts end at different places
    directory = tmp_path_factory.mktemp("policies") / "speaking-showo"
    SHOWO.policy(
        made.model, made.layout.text.tokenizer, made.layout.images.module, replace(made.settings, tasks=("t2t", *made.settings.tasks))
    ).save(directory)
    return directory


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A private two-core Ray cluster, shared by all tests of a session."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
