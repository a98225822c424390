"""What a directory's ``policy.json`` says beside the weights, and what every family's tasks have in common."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from pararl.types import TASKS, Task
from policies.canvas import Specials

TEXT_ONLY: tuple[Task, ...] = ("t2t", "i2t")
"""Tasks whose output is text alone."""
IMAGE_INPUT: dict[Task, bool | None] = {"t2t": False, "i2t": True, "t2i": False, "edit": True, "interleaved": None}
"""Whether a task reads an image; None = with or without."""
Part = Literal["text", "image"]
"""What guidance may leave out of a prompt."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and ids of a policy; the defaults are those of the MMaDA releases. A family with more to say adds fields."""

    grid: tuple[int, int] = (32, 32)
    """Image tokens, rows and columns."""
    prompt_tokens: int = 512
    """Longest prompt text in tokens."""
    text_tokens: int = 256
    """Generated text window of interleaved outputs, in tokens."""
    text_block: int = 64
    """Block of the text sampler there, in tokens."""
    answer_tokens: int = 512
    """Generated text window of tasks that produce text alone, in tokens."""
    answer_block: int = 128
    """Block of the text sampler there, in tokens."""
    dialogue: str = (
        "<|start_header_id|>user<|end_header_id|>\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"  # as released
    )
    """How a question stands in front of its answer, special tokens spelled out; ``{text}`` is the prompt's text."""
    tasks: tuple[Task, ...] = TASKS
    """Tasks that this checkpoint was trained for."""
    image_ratio: tuple[float, float] = (0.6, 1.0)
    """Mask ratios at which image likelihoods are drawn (MaskGRPO: high ratios carry the signal)."""
    text_ratio: tuple[float, float] = (0.0, 1.0)
    """Mask ratios at which text likelihoods are drawn."""
    steps: int = 128
    """Denoising steps of a sample, where nobody says otherwise."""
    choice_temperature: float = 1.0
    """Likewise the Gumbel temperature of the image sampler's choices."""
    blank_image: int | None = None
    """Token that stands in every place of an input image that is not there; None = a prompt without an image has no such place."""
    text_only_task: int | None = None
    """Task token of an image and a text asked for in words alone; None = that of an edit."""
    specials: Specials = field(default_factory=Specials)

    specials_class: ClassVar[type[Specials]] = Specials

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        """The settings of a ``policy.json``. Raises KeyError, TypeError or ValueError for what is no such record."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
        made = cls(**{**values, "specials": cls.specials_class(**raw["specials"])})
        for entry in fields(cls):
            value, usual = getattr(made, entry.name), entry.default
            if usual is not MISSING and not _alike(value, usual):
                raise ValueError(f"{entry.name} must be such as {usual!r}, got {value!r}")
        return made

    def words(self, task: Task) -> int:
        """Tokens of the text that a task generates; 0 = none."""
        return self.answer_tokens if task in TEXT_ONLY else self.text_tokens if task == "interleaved" else 0


def _alike(value: Any, usual: Any) -> bool:
    """Whether a value is of the kind of the usual one; where that is None, a token is one too."""
    if isinstance(usual, tuple):
        return isinstance(value, tuple) and all(_alike(part, usual[0]) for part in value)
    if usual is None:
        return value is None or type(value) is int
    return type(value) is type(usual) or (type(usual) is float and type(value) is int)
