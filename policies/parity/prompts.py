"""Prompts and training examples as the released code lays them out, against our layouts with the settings of the release.

A recorded text is numbers, each the id that it stands for. A text that is too long the release cuts, where ours refuses it: compared is
what is left of it. Behind a text the release fills the row, with ``<eos>`` (MMaDA) or with padding (Show-o).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pararl.readers import read_json
from pararl.releases import RELEASES
from pararl.types import Prompt, Task
from policies.canvas import pad_left
from policies.families.codes import code_layout
from policies.families.mmada import MMadaLayout
from policies.families.showo import ShowoLayout
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.layout import Layout, Shown
from policies.parity.case import Case, Comparison
from policies.sequences import View
from policies.settings import Settings

KINDS: dict[str, tuple[str, type[Layout]]] = {
    "mmada": ("Gen-Verse/MMaDA-8B-Base", MMadaLayout),
    "showo": ("showlab/show-o", ShowoLayout),
}
"""By the name of a recorded family: the release whose settings we have for it, and our layout."""
SPECIALS = {"soi": "<|soi|>", "eoi": "<|eoi|>", "t2i": "<|t2i|>", "mmu": "<|mmu|>", "bos": "<|sot|>", "eos": "<|eot|>"}
"""What the released code calls our special tokens."""
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""What a dialogue spells out."""
LEFT_OUT = {
    "r2i": "no family here draws images behind their reasoning",
    "labels": "ours learns what is generated alone, by the loss of its head",
    "showo.attention_mask": "the reference counts it behind the padding: it hides nothing, and its length is another",
    "mmu.prompt_mask": "it marks the question of a training example, which here is the prompt",
}
"""By the name of a recorded case, of an entry of one, or both: why it is not compared."""
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recording:
    """The recorded cases of one family, and our layout for them."""

    family: str
    raw: Entry
    settings: Settings
    """Those of the release."""

    def layout(self, prompt_tokens: int, roles: tuple[int, int] | None = None) -> Layout:
        """Ours at the recorded size. ``roles``: ids of "user" and "assistant", for questions in the dialogue of the release; None = they
        stand alone."""
        settings = replace(self.settings, grid=(1, self.raw["num_image_tokens"]), prompt_tokens=prompt_tokens)
        named: tuple[tuple[int, str], ...] = ()
        if roles is None:
            settings = replace(settings, dialogue="{text}")
        else:
            named = (roles[0], "user"), (roles[1], "assistant"), *((self.raw["special"][token], token) for token in HEADERS)
        tokenizer = numbers(self.raw["len_tokenizer"], named)
        return code_layout(KINDS[self.family][1], tokenizer, no_images(), settings, (settings.specials.eos,))

    @property
    def filling(self) -> int:
        """What fills a row behind the ``<eos>`` of its text."""
        return self.settings.specials.eos if self.family == "mmada" else self.settings.specials.pad


@cache
def no_images() -> MAGVITv2:
    """The released image tokenizer without its weights: recorded images are ids."""
    # Only its sizes are asked for, so its weights take no memory.
    with torch.device("meta"):
        return MAGVITv2(MAGVITv2Config())


@cache
def numbers(size: int, named: tuple[tuple[int, str], ...]) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` ids, whose word "7" is id 7, but for those that are ``named``; names in angles are special."""
    names = dict(named)
    core = Tokenizer(WordLevel({names.get(i, str(i)): i for i in range(size)}, unk_token="0"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens([AddedToken(name, special=True) for name in names.values() if name.startswith("<")])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def compare(case: Case) -> Comparison:
    """Every recorded family: its special tokens, and its cases entry by entry."""
    found = Comparison()
    for family, raw in case.config.items():
        if family not in KINDS:
            found.unread.append(family)
            continue
        settings = Settings.read(read_json(RELEASES[KINDS[family][0]])["settings"])
        recording = Recording(family, raw, settings)
        _specials(found, recording)
        for kind, entry in raw["cases"].items():
            if kind in LAID_OUT:
                LAID_OUT[kind](found, f"{family}.{kind}", recording, entry)
            for name in entry["out"]:
                _account(found, family, kind, name)
    return found


def _account(found: Comparison, family: str, kind: str, name: str) -> None:
    """What came out and was not compared is left out for a reason, or nothing looked at it."""
    title = f"{family}.{kind}.{name}"
    reason = next((LEFT_OUT[key] for key in (kind, name, f"{family}.{name}", f"{kind}.{name}") if key in LEFT_OUT), None)
    if title in found.tensors:
        return
    if reason is None:
        found.unread.append(title)
    else:
        found.left_out[title] = reason


def _specials(found: Comparison, recording: Recording) -> None:
    raw, ours = recording.raw, recording.settings.specials
    theirs = [*(raw["special"][token] for token in SPECIALS.values()), raw["mask"], raw["pad_id"]]
    found.equal(f"{recording.family}.special", [*(getattr(ours, name) for name in SPECIALS), ours.mask, ours.pad], theirs)


def _images(found: Comparison, title: str, recording: Recording, entry: Entry) -> None:
    """A prompt and its image, some tokens of which may be there; and the prompt that guidance compares with, which is that of no text."""
    out, longest = entry["out"], recording.raw["max_text_len"]
    layout = recording.layout(longest - 2)
    prompts = [Prompt(str(i), "t2i", cut(text, longest - 2)) for i, text in enumerate(entry["texts"])]
    blank = layout.lay_out("t2i", [layout.prefix(p) for p in prompts], [Shown()] * len(prompts), longest + 1)
    ids, real = layout.filled(blank, {blank.spans[0]: View(torch.tensor(entry["image_ids"]))})
    found.equal(f"{title}.input_ids", ids, torch.tensor(out["input_ids"]))
    if recording.family == "mmada":
        found.equal(f"{title}.attention_mask", real.long(), torch.tensor(out["attention_mask"]))
    if "" in entry["texts"]:
        ours, _ = pad_left([layout.prefix(prompts[0], without="text")], recording.settings.specials.pad, longest + 1)
        found.equal(f"{title}.without_text", ours[0], out["input_ids"][entry["texts"].index("")][: longest + 1])


def _answers(found: Comparison, title: str, recording: Recording, entry: Entry) -> None:
    """A question, about an image where there is one, and its answer, which to the layout is all one text. Where the text is a dialogue, its
    question is laid out in ours as well, which goes on where the answer begins."""
    out = entry["out"]
    task: Task = "i2t" if "image_ids" in entry else "t2t"
    rows, images = out["input_ids"], entry.get("image_ids") or [()] * len(out["input_ids"])
    width = len(rows[0])
    layout, eos, start = recording.layout(width), recording.settings.specials.eos, recording.raw["special"].get(HEADERS[0])
    ours, questions = [], []
    for i, (text, image) in enumerate(zip(entry["texts"], images, strict=True)):
        room = width - 1 - len(layout.prefix(Prompt("", task, ""), image))
        said = [*layout.prefix(Prompt(str(i), task, cut(text, room)), image), eos]
        ours.append(said + [recording.filling] * (width - len(said)))
        question: list[int] = []
        if text.startswith(f"{start} "):
            ids = text.split()
            end = ids.index(str(recording.raw["special"][HEADERS[2]]))
            chat = recording.layout(width, (int(ids[1]), int(ids[end + 2])))
            question = chat.prefix(Prompt(str(i), task, " ".join(ids[3:end])), image)
            there = min(len(question), width - 1)  # a row that is cut ends in <eos> all the same
            found.equal(f"{title}.dialogue.{i}", question[:there], rows[i][:there])
        questions.append([1] * len(question) + [0] * (width - len(question)))
    found.equal(f"{title}.input_ids", torch.tensor(ours), torch.tensor(rows))
    if title == "mmada.lm_chat":
        found.equal(f"{title}.prompt_mask", torch.tensor(questions), torch.tensor(out["prompt_mask"]))
    if title == "mmada.lm":
        found.equal(f"{title}.attention_mask", torch.ones_like(torch.tensor(rows)), torch.tensor(out["attention_mask"]))


def cut(text: str, words: int) -> str:
    """The first words of a text."""
    return " ".join(text.split()[:words])


LAID_OUT: dict[str, Callable[[Comparison, str, Recording, Entry], None]] = {
    "t2i_gen": _images,
    "t2i": _images,
    "mmu": _answers,
    "lm": _answers,
    "lm_chat": _answers,
}
"""How a recorded case is made with our layouts."""
