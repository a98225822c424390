"""MMaDA-Parallel, -M and -A: logits, and text and image decoded together with the recorded draws of the image fed back."""

import torch
from torch import Tensor

from policies.backbones.llada import LLaDAForMultiModalGeneration, MMadaModelLM
from policies.parity.case import LOGITS, PROBABILITIES, Case, Comparison
from policies.parity.mmada import Calls, FedBack
from policies.sampling import released
from policies.sampling.released import Chance, ImageStep, Parallel
from policies.weights import read_model


def compare_m(case: Case) -> Comparison:
    """-M's forward and its runs of ``interleave_generate``."""
    model, found, t = read_model(MMadaModelLM, case.directory), Comparison(), case.tensors
    found.close("fwd.logits", model(t["fwd.input_ids"]), t["fwd.logits"], LOGITS)
    size, first = case.setting("max_seq_length"), case.setting("len_tokenizer")
    image, mask = case.setting("num_vq_tokens"), case.config["mask_token_id"]
    prompt, free = t["prompt_ids"][None], t["uncond_prompt_ids"][None]
    blank = [case.setting("soi"), *[mask] * image, case.setting("eoi"), case.setting("bos"), *[mask] * (size - 1)]
    ids = torch.cat((prompt, torch.tensor([blank])), 1)
    start = prompt.shape[1] + 1
    for name, s in case.setting("runs").items():
        plan = Parallel(
            image=torch.arange(start, start + image),
            text=slice(ids.shape[1] - size, ids.shape[1]),
            codes=slice(first, first + case.setting("codebook")),
            mask=mask,
            text_steps=s["text_steps"],
            image_steps=s["image_steps"],
            temperature=s["image_temperature"],
            text_cfg=s["text_cfg"],
            image_cfg=s["image_cfg"],
        )
        calls, chance = Calls(model), FedBack(t[f"{name}.trace_drawn"], t[f"{name}.trace_masking"])
        last, trace = released.parallel_m(calls, ids, free, plan, chance)
        found.equal(f"{name}.trace_model_input", torch.stack(calls.inputs), t[f"{name}.trace_model_input"])
        found.equal(f"{name}.text_ids", last[:, plan.text], t[f"{name}.text_ids"])
        found.equal(f"{name}.image_ids", trace[-1].drawn, t[f"{name}.image_ids"])
        probabilities = torch.cat([x.probabilities for x in trace])
        found.close(f"{name}.trace_probs", probabilities, t[f"{name}.trace_probs"], PROBABILITIES)
        _counts(found, name, case, plan, [*[x[:1] for x in calls.inputs], last], trace)
    return found


def compare_a(case: Case) -> Comparison:
    """-A's forward and its runs of ``generate_ti2ti``."""
    model, found, t = read_model(LLaDAForMultiModalGeneration, case.directory), Comparison(), case.tensors
    found.close("fwd.logits", model(t["fwd.input_ids"]), t["fwd.logits"], LOGITS)
    found.left_out["ragged"] = "the reference pads on the right and lets every token see the padding"
    first, mask = case.setting("text_vocab_size"), case.config["mask_token_id"]
    for name, s in case.setting("runs").items():
        ids = t[f"{name}.input_ids"]
        span = range(s["image_start"], s["image_start"] + s["seq_len"] + s["seq_len"] // s["newline_every"])
        plan = Parallel(
            image=torch.tensor([i for i in span if ids[0, i] != case.setting("newline")]),
            text=slice(s["text_start"], s["text_end"]),
            codes=slice(first, first + case.setting("codebook")),
            mask=mask,
            text_steps=s["text_steps"],
            image_steps=s["timesteps"],
            temperature=s["temperature"],
            text_cfg=s["cfg_scale"],
            image_cfg=s["cfg_img"],
        )
        # At temperature 0 nothing is left to chance: everything is ours. Else what was drawn is fed back, and so is text with noise.
        own = f"{name}.trace_drawn" not in t
        chance = Chance(normal=True) if own else FedBack(t[f"{name}.trace_drawn"], t[f"{name}.trace_masking"])
        main, given = t[f"{name}.main_forward_index"].tolist(), t[f"{name}.trace_model_input"]
        texts = [*given[main[1:], plan.text], t[f"{name}.text_ids"]]
        noisy = s.get("text_temperature", 0) > 0
        calls = Calls(model)
        no_text, no_image = (t[f"{name}.{key}"] if f"{name}.{key}" in t else None for key in ("uncon_text", "uncon_image"))
        last, trace = released.parallel_a(calls, ids, no_text, no_image, plan, chance, texts if noisy else None)
        found.equal(f"{name}.trace_model_input", torch.cat(calls.inputs), given)
        found.equal(f"{name}.text_ids", last[0, plan.text], t[f"{name}.text_ids"])
        found.equal(f"{name}.image_codes", plan.codes_of(last)[0], t[f"{name}.image_codes"])
        found.equal(f"{name}.trace_masking", torch.cat([x.masking for x in trace]).byte(), t[f"{name}.trace_masking"])
        sure = torch.cat([x.probabilities.gather(-1, x.drawn[..., None]).squeeze(-1) for x in trace])
        unknown = t[f"{name}.trace_confidence"] != 2.0
        found.close(f"{name}.trace_confidence", sure[unknown], t[f"{name}.trace_confidence"][unknown], PROBABILITIES)
        masked = int((ids[:, plan.text] == mask).sum())
        found.equal(f"{name}.num_transfer_tokens", released.floor_counts(masked, plan.text_steps), t[f"{name}.num_transfer_tokens"])
        _counts(found, name, case, plan, [*[calls.inputs[i] for i in main if i < len(calls.inputs)], last], trace)
    return found


def _counts(found: Comparison, name: str, case: Case, plan: Parallel, states: list[Tensor], trace: list[ImageStep]) -> None:
    """How many tokens are masked after each step; ``states``: the ids [1, length] before each step and at the end."""
    t = case.tensors
    after = torch.cat(states[1:])
    found.equal(f"{name}.text_masked_after_step", (after[:, plan.text] == plan.mask).sum(1), t[f"{name}.text_masked_after_step"])
    found.equal(f"{name}.image_masked_after_step", (after[:, plan.image] == plan.mask).sum(1), t[f"{name}.image_masked_after_step"])
    found.equal(f"{name}.image_update_steps", [x.step for x in trace], t[f"{name}.image_update_steps"])
    found.equal(f"{name}.trace_mask_len", torch.cat([x.left for x in trace]), t[f"{name}.trace_mask_len"])
