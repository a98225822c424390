"""The Show-o2 backbone: Qwen2.5 over text and latents of images, autoregressive in text, flow matching in images.

Parameter names are the released ones (``showo.model.layers.0...``, ``diffusion_head_a.0...``), so that a released checkpoint loads key by
key. Facts: showlab/Show-o, ``show-o2/models/modeling_showo2_qwen2_5.py``.

A sequence is ids [batch, length] with blocks [batch, length] (0 = text, k = the k-th image of the row). An image has one column for its
time, then one for each patch of its latents, in raster order. Latents [images, channels, height, width] and times [images] (0 = noise, 1 =
clean) belong to the blocks in row-major order. All images of a batch have one size. The omni mask (``policies/attention/masks.py``)
holds both in the language model and in the diffusion head. Unlike the released class, padding is hidden, wherever it stands, positions
count real tokens, and what was read once is not read again (``read``, ``canvas``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from policies.attention.masks import Omni, omni
from policies.backbones.layers import Backbone, Head, RMSNorm, angles, frequencies
from policies.backbones.showo2_config import Showo2Config
from policies.backbones.showo2_layers import (
    FinalLayer,
    HeadLayer,
    Keys,
    LanguageLayer,
    PatchEmbed,
    Silent,
    TimeEmbed,
    stretched,
)
from policies.backbones.showo2_state import Canvas, Prefix, first_columns, owners
from policies.image.codec import unpatched
from policies.sequences import Sequences


class Reading:
    """A prefix that grows, as ``policies.sampling.context.write`` reads on."""

    def __init__(self, model: "Showo2", prefix: Prefix) -> None:
        self.model, self.prefix = model, prefix
        self.last = prefix.hidden
        """Hidden states [batch, n, width] of what was read last."""

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Those of the next ids."""
        self.prefix = self.model.read(ids, real=real, after=self.prefix)
        self.last = self.prefix.hidden[:, -ids.shape[1] :]
        return self.last


class Showo2(Backbone):
    """Show-o2: ``model(ids, blocks, latents, times)`` gives logits and velocities; ``embed``, ``hidden``, ``head`` and ``velocity`` are
    the parts of that call. ``read`` and ``canvas`` are the same for sequences that grow."""

    config_class = Showo2Config
    _no_split_modules = ["LanguageLayer", "HeadLayer", "SiglipEncoderLayer"]

    def __init__(self, config: Showo2Config) -> None:
        super().__init__(config)
        width, head = config.hidden_size, config.head_config["hidden_size"]
        # Any: transformers' annotations allow for what these configurations never hold.
        llm: Any = Qwen2Config(**config.llm_config)
        self.showo = Qwen2ForCausalLM(llm)
        self.showo.lm_head = Head.of(self.showo.lm_head)
        self.showo.model.layers = nn.ModuleList(LanguageLayer(llm, i) for i in range(llm.num_hidden_layers))
        self.image_embedder_und = PatchEmbed(config.patch_size, config.image_latent_dim, config.clip_latent_dim)
        self.image_embedder_gen = PatchEmbed(config.patch_size, config.image_latent_dim, width)
        clip: Any = SiglipVisionConfig(**config.clip_config)
        clip._attn_implementation = "sdpa"
        self.position_embedding = nn.Embedding((clip.image_size // clip.patch_size) ** 2, config.clip_latent_dim)
        self.und_trans = SiglipEncoder(clip)
        # As released: SigLIP's encoder goes without its last layer.
        del self.und_trans.layers[-1]
        fused = config.clip_latent_dim + width
        self.fusion_proj = nn.Sequential(RMSNorm(fused, 1e-6), nn.Linear(fused, width), nn.GELU(), nn.Linear(width, width))
        self.time_embed = TimeEmbed(head)
        if width != head:
            self.diff_proj = nn.Sequential(nn.Linear(width, head), nn.GELU(), nn.Linear(head, head))
            self.time_embed_proj = nn.Linear(head, width)
        self.diffusion_head_a = nn.ModuleList(HeadLayer(config.head_config) for _ in range(config.num_diffusion_layers))
        self.diffusion_head_b = FinalLayer(head, config.patch_size**2 * config.image_latent_dim)
        # No buffers: releases have no such keys, and casting the model must not round them.
        self.llm_frequencies = frequencies(width // llm.num_attention_heads, llm.rope_parameters["rope_theta"])
        rope = config.head_config["rope_scaling"]
        self.head_frequencies = stretched(frequencies(config.head_config["head_dim"], config.head_config["rope_theta"]), rope)
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As released, but for the Xavier weights of linear layers, which upstream means to give and does not: velocities start at 0."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if isinstance(module, Silent):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        return self.showo.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.showo.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.showo.lm_head

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write weights and configuration, the head's rows too where they are tied to the embedding, as releases do."""
        state = self.state_dict()
        state["showo.lm_head.weight"] = state["showo.lm_head.weight"].clone()
        super().save_pretrained(save_directory, state_dict=state, **kwargs)

    # ---- the parts of a call

    def image_tokens(self, latents: Tensor) -> Tensor:
        """Embeddings [images, n, hidden_size] of latents, noisy or clean, by both paths: semantic (SigLIP's layers) and projected."""
        latents = latents.to(self.dtype)
        und = self.image_embedder_und(latents)
        rows, columns = (side // self.config.patch_size for side in latents.shape[-2:])
        und = und + self._places(rows, columns, latents.device)
        for layer in self.und_trans.layers:
            und = self.run(layer, und, None)
        return self.fusion_proj(torch.cat((und, self.image_embedder_gen(latents)), -1))

    def _places(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """SigLIP's position embedding [rows * columns, clip_latent_dim], interpolated where the grid is not that of the release."""
        # By a call, because a device map may hold the weight elsewhere till then.
        weight: Tensor = self.position_embedding(torch.arange(self.position_embedding.num_embeddings, device=device))
        if len(weight) == rows * columns == self.config.image_latent_height * self.config.image_latent_width:
            return weight
        side = round(len(weight) ** 0.5)
        image = weight.view(1, side, side, -1).permute(0, 3, 1, 2)
        return F.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False).flatten(2)[0].T

    def time_token(self, times: Tensor) -> Tensor:
        """The embedding [images, hidden_size] in front of an image's patches."""
        found = self.time_embed(times)
        return self.time_embed_proj(found) if hasattr(self, "time_embed_proj") else found

    def embed(self, ids: Tensor, blocks: Tensor | None = None, latents: Tensor | None = None, times: Tensor | None = None) -> Tensor:
        """Embeddings [batch, length, hidden_size] of ids [batch, length], with the images in their blocks; ids there are not looked at.

        Raises ValueError where blocks and images do not fit.
        """
        x = self.showo.model.embed_tokens(ids)
        slots = torch.zeros_like(ids, dtype=torch.bool) if blocks is None else blocks > 0
        if latents is None or times is None:
            if slots.any() or latents is not None:
                raise ValueError("an image takes three things: its block, its latents and its time")
            return x
        images = torch.cat((self.time_token(times)[:, None], self.image_tokens(latents)), 1)
        there = int(slots.sum())
        if there != images.shape[0] * images.shape[1]:
            raise ValueError(
                f"{len(images)} images of {images.shape[1]} columns (the first is its time's) do not fill the {there} of the blocks"
            )
        return x.masked_scatter(slots[..., None], images.to(x.dtype))

    def states(self, x: Tensor, mask: Omni, columns: Tensor | None = None) -> Tensor:
        """Last hidden states of the language model after the final norm, [batch, length, hidden_size] for embeddings of that shape. For
        ``columns`` int64 [n] alone: [batch, n, hidden_size], and the last layer does less."""
        return self._language(x, mask.positions(), mask.dense(), columns=columns)[0]

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        """See ``policies.sequences.Backbone``."""
        mask = sequences.mask
        assert isinstance(mask, Omni)
        return self.states(self.embed(sequences.ids, mask.blocks, sequences.latents, sequences.times), mask, columns)

    def begin(self, sequences: Sequences) -> Reading:
        """What has read sequences, images at their times."""
        mask = sequences.mask
        assert isinstance(mask, Omni)
        return Reading(self, self.read(sequences.ids, mask.blocks, sequences.latents, sequences.times, mask.real))

    def velocity(self, hidden: Tensor, mask: Omni, times: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Velocities [images, channels, height, width], from noise to data, of the hidden states of whole sequences.

        ``grid``: rows and columns of patches, square when None.
        """
        x, _ = self._head_layers(hidden, mask.positions(), mask.dense(), times, mask.blocks)
        tokens = x[mask.blocks > 0].view(len(times), -1, x.shape[-1])[:, 1:]
        side = round(tokens.shape[1] ** 0.5)
        return self._velocity(tokens, times, grid or (side, side))

    def forward(
        self,
        ids: Tensor,
        blocks: Tensor | None = None,
        latents: Tensor | None = None,
        times: Tensor | None = None,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [batch, length, llm_vocab_size], and velocities of the images, if any. ``real`` bool [batch, length]: false at padding."""
        mask = omni(torch.zeros_like(ids) if blocks is None else blocks, real)
        hidden = self.states(self.embed(ids, blocks, latents, times), mask)
        if latents is None or times is None:
            return self.head(hidden), None
        grid = (latents.shape[-2] // self.config.patch_size, latents.shape[-1] // self.config.patch_size)
        return self.head(hidden), self.velocity(hidden, mask, times, grid)

    # ---- sequences that grow

    def read(
        self,
        ids: Tensor,
        blocks: Tensor | None = None,
        latents: Tensor | None = None,
        times: Tensor | None = None,
        real: Tensor | None = None,
        after: Prefix | None = None,
    ) -> Prefix:
        """Read a sequence, or go on ``after`` what was read: text, images, or both. An image must be read whole in one call.

        Rows that have nothing more to say read padding (``real`` false) on.
        """
        new = torch.zeros_like(ids) if blocks is None else blocks
        when = torch.ones(ids.shape, device=ids.device)
        if times is not None:
            # Text has no owner and reads the last time here, which the condition drops.
            when = torch.where(new > 0, times.float()[owners(new) - 1], 1.0)
        mask, before = omni(new, real), 0
        if after is not None:
            before = after.hidden.shape[1]
            # Numbered on, so that a new image is no part of one that was read before.
            numbered = torch.where(new > 0, new + after.mask.blocks.amax(1, keepdim=True), 0)
            mask = Omni(torch.cat((after.mask.blocks, numbered), 1), torch.cat((after.mask.real, mask.real), 1))
            when = torch.cat((after.times, when), 1)
        x = self.embed(ids, blocks, latents, times)
        past = None if after is None else after.keys
        hidden, keys = self._language(x, mask.positions()[:, before:], mask.dense(slice(before, None)), past)
        return Prefix(mask, when, keys, hidden if after is None else torch.cat((after.hidden, hidden), 1))

    def canvas(self, prefix: Prefix, grid: tuple[int, int]) -> Canvas:
        """Begin an image of ``grid`` (rows, columns) patches behind a prefix: what its steps need of the prefix is computed here, once."""
        mask = prefix.mask
        times = prefix.times[first_columns(mask.blocks)]
        _, head_keys = self._head_layers(prefix.hidden, mask.positions(), mask.dense(), times, mask.blocks)
        n = 1 + grid[0] * grid[1]
        # Every column of the image sees all of it and all real tokens before.
        seen = F.pad(mask.real, (0, n), value=True)[:, None, None].expand(-1, 1, n, -1)
        positions = mask.real.sum(1, keepdim=True) + torch.arange(n, device=mask.real.device)
        return Canvas(prefix, head_keys, None if bool(mask.real.all()) else seen, positions, grid)

    def velocity_after(self, canvas: Canvas, latents: Tensor, times: Tensor) -> Tensor:
        """Velocities [batch, channels, height, width] of latents of that shape at times [batch], one image a row behind its prefix.

        Nothing of it stays in the prefix; a finished image is read with ``read`` at time 1.
        """
        x = torch.cat((self.time_token(times)[:, None], self.image_tokens(latents)), 1)
        hidden, _ = self._language(x, canvas.positions, canvas.seen, canvas.prefix.keys)
        own = torch.ones_like(canvas.positions)
        x, _ = self._head_layers(hidden, canvas.positions, canvas.seen, times, own, canvas.head_keys)
        return self._velocity(x[:, 1:], times, canvas.grid)

    # ---- layers

    def _language(
        self, x: Tensor, positions: Tensor, seen: Tensor | None, past: Sequence[Keys] | None = None, columns: Tensor | None = None
    ) -> tuple[Tensor, tuple[Keys, ...]]:
        turn, keys = angles(positions, self.llm_frequencies), []
        layers = self.showo.model.layers
        for i, layer in enumerate(layers):
            # Behind the last layer nothing attends to the other columns, so that theirs need not be computed.
            kept = columns if i == len(layers) - 1 else None
            x, own = self.run(layer, x, turn, seen, None if past is None else past[i], kept)
            keys.append(own)
        return self.showo.model.norm(x), tuple(keys)

    def _head_layers(
        self, hidden: Tensor, positions: Tensor, seen: Tensor | None, times: Tensor, blocks: Tensor, past: Sequence[Keys] | None = None
    ) -> tuple[Tensor, tuple[Keys, ...]]:
        x = self.diff_proj(hidden) if hasattr(self, "diff_proj") else hidden
        turn, time, owner = angles(positions, self.head_frequencies), self.time_embed(times), owners(blocks)
        keys = []
        for i, layer in enumerate(self.diffusion_head_a):
            x, own = self.run(layer, x, time, owner, turn, seen, None if past is None else past[i])
            keys.append(own)
        return x, tuple(keys)

    def _velocity(self, tokens: Tensor, times: Tensor, grid: tuple[int, int]) -> Tensor:
        found = self.diffusion_head_b(tokens, self.time_embed(times))
        return unpatched(found, self.config.patch_size, grid)
