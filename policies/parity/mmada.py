"""MMaDA: logits, greedy text, text-to-image with the recorded draws fed back, and the training losses."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.backbones.llada import MMadaModelLM
from policies.parity.case import LOGITS, PROBABILITIES, Case, Comparison
from policies.sampling import released
from policies.sampling.released import Forward
from policies.weights import read_model


def compare(case: Case) -> Comparison:
    """All of a recorded MMaDA case but the losses with padding, which record a fault."""
    model, found, t = read_model(MMadaModelLM, case.directory), Comparison(), case.tensors
    if "fwd.logits" in t:
        found.close("fwd.logits", model(t["fwd.input_ids"]), t["fwd.logits"], LOGITS)
    if "fwd.hidden_last" in t:
        found.close("fwd.hidden_last", model.states(t["fwd.input_ids"]), t["fwd.hidden_last"], LOGITS)
    if "t2i.logits" in t:
        real = t["t2i.attention_mask"].bool()
        found.close("t2i.logits", model(t["t2i.input_ids"], real)[real], t["t2i.logits"][real], LOGITS)
    _text(case, model, found)
    if any(name.startswith("t2igen.") for name in t):
        _image(case, model, found)
    if any(name.startswith("train_nopad.") for name in t):
        _losses(case, model, found)
    found.left_out["train_pad"] = "the reference adds its 0/1 mask to the scores here, which hides no padding"
    return found


class Calls:
    """A model that keeps its inputs."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model, self.inputs = model, list[Tensor]()

    def __call__(self, ids: Tensor, attention: Tensor | None = None) -> Tensor:
        self.inputs.append(ids.clone())
        return self.model(ids, attention)


def _text(case: Case, model: MMadaModelLM, found: Comparison) -> None:
    t, mask = case.tensors, case.config["mask_token_id"]
    for name in ("gen", "gen_cfg", "gen_pad", "mmu"):
        if f"{name}.output_ids" not in t:
            continue
        s = case.run("mmu" if name == "mmu" else "gen")
        prompt = t["mmu.input_ids"] if name == "mmu" else t["gen_pad.prompt_ids" if name == "gen_pad" else "gen.prompt_ids"]
        calls = Calls(model)
        forward: Forward = calls
        if name == "gen_cfg":
            forward = partial(_guided, calls, prompt != mask, s["cfg_scale"], mask)
        elif name == "gen_pad":
            forward = partial(calls, attention=t["gen_pad.attention_mask"])
        length = s["max_new_tokens" if name == "mmu" else "gen_length"]
        ids = released.answer(forward, prompt, length, s["steps"], s["block_length"], mask)
        found.equal(f"{name}.output_ids", ids, t[f"{name}.output_ids"])
        if f"{name}.trace" in t:
            found.equal(f"{name}.trace", torch.stack(calls.inputs), t[f"{name}.trace"])


def _guided(calls: Calls, given: Tensor, scale: float, mask: int, ids: Tensor) -> Tensor:
    """Away from the same ids whose prompt tokens, ``given`` bool [batch, p], are MASK."""
    blind = ids.clone()
    blind[:, : given.shape[1]][given] = mask
    with_prompt, without = calls(torch.cat((ids, blind))).chunk(2)
    return without + (scale + 1) * (with_prompt - without)


class FedBack(released.Chance):
    """The draws and the maskings of a recorded run, in its order."""

    def __init__(self, drawn: Tensor, masking: Tensor) -> None:
        super().__init__()
        self.drawn, self.masking = list(drawn), list(masking.bool())

    def draw(self, probabilities: Tensor, temperature: float) -> Tensor:
        return self.drawn.pop(0).view(probabilities.shape[:-1])

    def stay(self, probabilities: Tensor, counts: Tensor, temperature: float) -> Tensor:
        return self.masking.pop(0).view(probabilities.shape)


def _image(case: Case, model: MMadaModelLM, found: Comparison) -> None:
    t, s = case.tensors, case.run("t2i_generate")
    seen = torch.cat([t[f"t2igen.{branch}attention_mask"] for branch in branches(s)])
    if s["guidance_scale"] == 0:
        found.left_out["t2igen.uncond_attention_mask"] = "there is no guidance"
    image_run(case, partial(model, attention_mask=seen), s["seq_len"], found)


def branches(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """How the tensors of the prompts of a text-to-image run begin, behind ``t2igen.``: of guidance there are two."""
    return ("", "uncond_") if settings["guidance_scale"] > 0 else ("",)


def image_run(case: Case, model: Callable[[Tensor], Tensor], tokens: int, found: Comparison) -> None:
    """A recorded text-to-image run with its draws fed back; ``model``: ids -> logits over the whole vocabulary."""
    t, mask, first = case.tensors, case.config["mask_token_id"], case.setting("len_tokenizer")
    s, codes = case.run("t2i_generate"), case.config["codebook_size"]
    columns, scale, ids = slice(-tokens - 1, -1), s["guidance_scale"], t["t2igen.input_ids"]
    given = torch.cat([t[f"t2igen.{branch}input_ids"] for branch in branches(s)])
    copies = len(branches(s))
    if copies == 1:
        found.left_out["t2igen.uncond_input_ids"] = "there is no guidance"
    calls = Calls(lambda both, _: model(both))

    def forward(known: Tensor) -> Tensor:
        both = given.clone()
        both[:, columns] = torch.where(known == released.UNKNOWN, mask, known + first).repeat(copies, 1)
        logits = calls(both)[:, columns, first : first + codes].chunk(copies)
        return (1 + scale) * logits[0] - scale * logits[1] if copies == 2 else logits[0]

    now = ids[:, columns]
    start = torch.where(now == mask, released.UNKNOWN, now - first)
    chance = FedBack(t["t2igen.trace_drawn"], t["t2igen.trace_masking"])
    trace = released.image(forward, start, s["timesteps"], s["temperature"], chance)
    found.close("t2igen.trace_probs", torch.stack([x.probabilities for x in trace]), t["t2igen.trace_probs"], PROBABILITIES)
    found.equal("t2igen.trace_model_input", torch.stack(calls.inputs), t["t2igen.trace_model_input"])
    found.equal("t2igen.trace_mask_len", torch.stack([x.left for x in trace]), t["t2igen.trace_mask_len"])
    found.equal("t2igen.sampled_ids", trace[-1].drawn, t["t2igen.sampled_ids"])
    if "t2igen.trace_confidence" in t:
        sure = torch.stack([x.probabilities.gather(-1, x.drawn[..., None]).squeeze(-1) for x in trace])
        known = t["t2igen.trace_confidence"] == 2.0
        found.close("t2igen.trace_confidence", sure[~known], t["t2igen.trace_confidence"][~known], PROBABILITIES)


def _losses(case: Case, model: MMadaModelLM, found: Comparison) -> None:
    """``forward_process``: mean cross-entropy of masked image tokens; of text, over its mask probability and its answer's length."""
    t, mask = case.tensors, case.config["mask_token_id"]
    ids, labels = t["train_nopad.input_ids"], t["train_nopad.labels"]
    images, texts, answers = case.setting("train_batch")
    rows = F.cross_entropy(model(ids).transpose(1, 2), labels, ignore_index=-100, reduction="none")
    hidden = (ids == mask) & (labels != -100)
    t.read.add("train_nopad.t2i_masks")  # its information is in the labels
    part = {"t2i": slice(images), "lm": slice(images, images + texts), "mmu": slice(images + texts, None)}

    def weighted(name: str, lengths: Tensor | float) -> Tensor:
        each = torch.where(hidden[part[name]], rows[part[name]] / t[f"train_nopad.p_mask_{name}"], 0.0)
        return (each / lengths).sum()

    image = rows[part["t2i"]][labels[part["t2i"]] != -100].mean()
    lengths = {name: t[f"train_nopad.answer_lengths_{name}"] for name in ("lm", "mmu")}
    losses = torch.stack([image, weighted("lm", lengths["lm"]) / texts, weighted("mmu", lengths["mmu"]) / answers])
    found.close("train_nopad.losses", losses, t["train_nopad.losses"], LOGITS)
    plain = weighted("lm", float(ids[part["lm"]].numel()))
    found.close("train_nopad.loss_lm_no_answer_lengths", plain.view(1), t["train_nopad.loss_lm_no_answer_lengths"], LOGITS)
