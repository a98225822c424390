"""Sizes of a Show-o2 backbone, under the released names."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

SMALL, LARGE = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
QWEN = {"num_hidden_layers": 28, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
LLMS: dict[str, dict[str, Any]] = {
    SMALL: {
        **QWEN,
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    LARGE: {
        **QWEN,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""The language models that a release names and does not hold a configuration of."""
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
"""google/siglip-so400m-patch14-384, of whose encoder the last layer is left out."""
HEAD = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
"""The diffusion head, the same in every release; upstream has it in its code."""
ARCHITECTURE: dict[str, dict[str, Any]] = {
    "config": {"add_time_embeds": True},
    "llm_config": {"attention_dropout": 0.0, "hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False},
    "clip_config": {"attention_dropout": 0.0},
    "head_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_implementation": "sdpa",
        "hidden_act": "silu",
        "mlp_bias": False,
        "qk_norm": True,
    },
}
"""Fields of a configuration and of its sections that must say this, where they say anything."""


def check(section: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError where a section asks for what this backbone does not do."""
    for name, only in ARCHITECTURE[section].items():
        if given.get(name) not in (None, only):
            raise ValueError(f"{name} is {given[name]!r} in the {section}, which this backbone does not do: it has {only!r}")


class Showo2Config(PretrainedConfig):
    """Sizes of a Show-o2 backbone, by default those of the released 1.5B one.

    A release says which Qwen2.5 it is built on by ``llm_model_path`` alone; ``llm_config``, ``clip_config`` and ``head_config`` say
    otherwise, key by key. Released fields that do not change this architecture are kept and ignored (``add_qk_norm`` among them, which
    upstream ignores as well). Raises ValueError for those that would, for an unknown language model, and for widths that do not fit.
    """

    model_type = "showo2"
    attribute_map = {"embedding_size": "llm_vocab_size"}

    def __init__(
        self,
        llm_vocab_size: int | None = None,
        llm_model_path: str = SMALL,
        image_latent_dim: int = 16,
        image_latent_height: int = 27,
        image_latent_width: int = 27,
        patch_size: int = 2,
        hidden_size: int = 1536,
        clip_latent_dim: int = 1152,
        num_diffusion_layers: int = 10,
        llm_config: Mapping[str, Any] | None = None,
        clip_config: Mapping[str, Any] | None = None,
        head_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if llm_config is None and llm_model_path not in LLMS:
            raise ValueError(
                f"llm_model_path is {llm_model_path!r}, of which no sizes are known: give llm_config, or one of {', '.join(LLMS)}"
            )
        check("config", kwargs)
        self.llm_config = {**LLMS.get(llm_model_path, LLMS[SMALL]), **(llm_config or {})}
        self.clip_config = {**SIGLIP, **(clip_config or {})}
        self.head_config = {**HEAD, **(head_config or {})}
        for section in ("llm_config", "clip_config", "head_config"):
            check(section, getattr(self, section))
        self.llm_vocab_size = llm_vocab_size or self.llm_config["vocab_size"]
        self.llm_config["vocab_size"] = self.llm_vocab_size
        self.llm_model_path = llm_model_path
        self.image_latent_dim = image_latent_dim
        self.image_latent_height = image_latent_height
        self.image_latent_width = image_latent_width
        self.patch_size = patch_size
        self.hidden_size = hidden_size
        self.clip_latent_dim = clip_latent_dim
        self.num_diffusion_layers = num_diffusion_layers
        for name, width, section in (("hidden_size", hidden_size, "llm_config"), ("clip_latent_dim", clip_latent_dim, "clip_config")):
            if getattr(self, section)["hidden_size"] != width:
                raise ValueError(f"{name} is {width}, but {section} has a hidden_size of {getattr(self, section)['hidden_size']}")
        super().__init__(**kwargs)
