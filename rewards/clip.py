"""How well image and text fit by a CLIP or SigLIP model: the reward of ParaRL (MMaDA-Parallel, arXiv 2511.09611, Section 3.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from pararl import scenes
from pararl.scenes.world import COLOURS, SHAPES
from pararl.types import Output, Prompt, Score
from rewards.base import Reward, Sample
from rewards.names import CLIP, CLIP_TYPES, clip_model

Shown = tuple[str, np.ndarray]
"""A text, and the image that it is held against."""


class ClipReward(Reward):
    """The cosine of the embeddings of text and image, as ``value = (1 + cosine) / 2``; no strict score.

    ``t2i`` compares the prompt with the image, ``interleaved`` the text of an output with its image, and ``i2t`` the caption with the
    picture. An empty text fits nothing: 0. None for ``edit`` and ``t2t``, and for questions (prompts whose spec holds an ``answer``): an
    instruction or a single word describes no picture. In ``interleaved`` the prompt plays no part, as in the paper: text and image may
    agree on something else than was asked.

    Texts longer than the model reads (77 tokens in CLIP, 64 in SigLIP) are cut, which is how these models are used.
    """

    def __init__(self, source: str | Path, revision: str | None = None, batch: int = 64, name: str | None = None) -> None:
        """Load model and processor from a directory or the hub, safetensors only and without code of theirs.

        ``revision`` pins a commit, tag or branch of the hub; ``batch`` is how many images, and how many texts, one forward takes. Raises
        ValueError for what cannot be loaded whole, and for a model that is neither a ``CLIPModel`` nor a ``SiglipModel``.
        """
        self.name = name or f"{CLIP}{source}"
        self.batch = batch
        try:
            self.model, info = AutoModel.from_pretrained(
                source, revision=revision, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            self.processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:  # a release of any form
            cause = str(error).partition("\n")[0]
            raise ValueError(f"reward {self.name}: cannot load {source}{f' at {revision}' if revision else ''}: {cause}") from error
        self.kind = self.model.config.model_type
        if self.kind not in CLIP_TYPES:
            raise ValueError(f"reward {self.name}: {source} is a model of type {self.kind!r}, use one of {', '.join(CLIP_TYPES)}")
        # transformers fills what is missing with random numbers and goes on.
        if lacking := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
            raise ValueError(f"reward {self.name}: {source} lacks {len(lacking)} weights of its model ({', '.join(lacking[:3])} ...)")
        self.model.eval()

    @classmethod
    def named(cls, name: str) -> "ClipReward":
        """The reward of a name such as ``scenes-clip`` or ``clip:OWNER/NAME@REVISION``."""
        return cls(*clip_model(name), name=name)

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """One score per completion, all embedded together; from the columns ``task`` and, where there are any, ``image`` and ``spec``.

        Raises ValueError without the column ``task``, and for an output without a modality that its task produces.
        """
        if "task" not in columns:
            raise ValueError(f"reward {self.name} needs the column task")
        nothing: list[None] = [None] * len(completions)
        given = zip(prompts, completions, columns["task"], columns.get("image", nothing), columns.get("spec", nothing), strict=True)
        pairs = [self._shown(*one) for one in given]
        known = [pair for pair in pairs if pair is not None and pair[0].strip()]
        found = iter(self.cosines(known))
        # Rounding may leave [-1, 1] by a hair.
        return [None if pair is None else Score(min(1.0, max(0.0, (1 + next(found)) / 2)) if pair[0].strip() else 0.0) for pair in pairs]

    def _shown(self, prompt: str, output: Output, task: str, given: np.ndarray | None, spec: Any) -> Shown | None:
        """What is compared for one completion; None where nothing can be."""
        if task in ("edit", "t2t") or (task == "i2t" and "answer" in (spec or {})):
            return None
        text, image = (prompt if task == "t2i" else output.text), (given if task == "i2t" else output.image)
        if text is None or image is None:
            missing = "text" if text is None else "image"
            raise ValueError(f"reward {self.name} got no {missing} for a prompt of task {task} ({prompt!r}); an empty text is ''")
        return text, image

    @torch.inference_mode()
    def cosines(self, pairs: Sequence[Shown]) -> list[float]:
        """The cosine of text and image of each pair, in [-1, 1] up to rounding. Every text is embedded once, however often it comes.

        Raises ValueError for what is not a number: it must not pass for a low score.
        """
        if not pairs:
            return []
        # A group and its guesses share one prompt.
        texts = list(dict.fromkeys(text for text, _ in pairs))
        place = {text: row for row, text in enumerate(texts)}
        of_texts = torch.cat([self._texts(part) for part in _parts(texts, self.batch)])
        of_images = torch.cat([self._images(part) for part in _parts([image for _, image in pairs], self.batch)])
        found = (of_texts[[place[text] for text, _ in pairs]] * of_images).sum(1)
        if not found.isfinite().all():
            raise ValueError(f"reward {self.name}: its model gives embeddings that are not finite, or 0: check its weights")
        return [float(value) for value in found]

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [text, dimension]."""
        # SigLIP has learnt on texts filled up to their full length, and attends to the filling.
        full = self.kind == "siglip"
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.processor.tokenizer(
            list(texts), padding="max_length" if full else True, truncation=True, max_length=longest, return_tensors="pt"
        )
        mask = {} if full else {"attention_mask": tokens["attention_mask"]}
        return _unit(self.model.get_text_features(input_ids=tokens["input_ids"], **mask).pooler_output)

    def _images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Unit embeddings [image, dimension]."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def examples(self) -> list[Sample]:
        """Pictures of three objects alike against pictures of three that differ in colour and shape, at the size that the model sees."""
        side = self.model.config.vision_config.image_size
        samples: list[Sample] = []
        for place, name in enumerate(_EXAMPLES):
            colour, shape = name.split()
            prompt = Prompt(f"clip-{place}", "t2i", f"three {colour} {shape}s")
            wrong = _EXAMPLES[(place + 1) % len(_EXAMPLES)]
            samples.append((prompt, Output(image=_picture(name, side)), Output(image=_picture(wrong, side))))
        return samples


_EXAMPLES = ("red circle", "blue square", "green triangle")


def _picture(name: str, side: int) -> np.ndarray:
    """Three such objects, uint8 [side, side, 3], every pixel of the scene repeated."""
    colour, shape = name.split()
    objects = [(SHAPES.index(shape), COLOURS.index(colour), *cell) for cell in ((0, 1), (1, 2), (3, 0))]
    image = scenes.render(scenes.Scene.of(objects))
    # Repeated rather than blended, so that shapes keep their colours and edges.
    rows = np.arange(side) * len(image) // side
    return image[rows][:, rows]


def _unit(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def _parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
