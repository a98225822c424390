"""Counts and temperatures of every schedule, against the recorded tables.

Counts are those of our samplers. The temperatures of MMaDA's code and the masks of its training are formulas here: ours differ on purpose.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pararl.steps import late_updates
from policies.parity.case import Case, Comparison
from policies.sampling import flow
from policies.sampling.released import floor_counts
from policies.sampling.schedules import left_masked, remaining, transfer_counts

TEMPERATURE = 1e-6
Entry = dict[str, Any]


def compare(case: Case) -> Comparison:
    """Every table of a ``schedules.json``, entry by entry."""
    found = Comparison()
    for name, entries in case.config.items():
        if name not in TABLES:
            found.unread.append(name)
            continue
        for place, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            TABLES[name](found, f"{name}.{place}", entry)
    return found


def _maskgit(found: Comparison, title: str, entry: Entry) -> None:
    steps = entry["T"]
    ours = remaining(entry["N"], steps, entry.get("known_at_start", 0), entry.get("schedule", "cosine"))
    # The released sampler keeps one token masked at the end and returns its draw; ours commits it.
    found.equal(f"{title}.mask_len", [*ours[:-1], max(1, ours[-1])], entry["mask_len_after_step"])
    if "temperature_used" in entry:
        falls = [1 - (step + 1) / steps for step in range(steps)]
        used = [math.prod(falls[: step + 1]) for step in range(steps)]
        found.close(f"{title}.temperature", torch.tensor(used), torch.tensor(entry["temperature_used"]), TEMPERATURE)


def _transfer(counts: Callable[[int, int], list[int]], found: Comparison, title: str, entry: Entry) -> None:
    found.equal(title, counts(entry["masked"], entry["steps"]), entry["table"])


def _update_steps(found: Comparison, title: str, entry: Entry) -> None:
    found.equal(title, late_updates(entry["text_steps"], entry["image_steps"]), list(dict.fromkeys(entry["steps"])))


def _masked_counts(found: Comparison, title: str, entry: Entry) -> None:
    steps = entry["text_steps"]
    rows = masked_after(late_updates(steps, entry["image_steps"]), steps, entry["N"])
    found.equal(title, torch.tensor(rows), torch.tensor(entry["step_and_masked_after"]))


def _training_masks(found: Comparison, title: str, entry: Entry) -> None:
    shares = torch.cos(torch.tensor(entry["t"]) * math.pi / 2)
    found.close(f"{title}.mask_prob", shares, torch.tensor(entry["mask_prob"]), TEMPERATURE)
    ours = [max(1, int(torch.round(entry["N"] * share))) for share in shares]
    found.equal(f"{title}.num_masked", torch.tensor(ours), torch.tensor(entry["num_masked"]).long())


def _flow_times(found: Comparison, title: str, entry: Entry) -> None:
    ours = flow.time_grid(entry["num_steps"], entry["time_shifting_factor"] or 1.0)
    found.close(title, ours, torch.tensor(entry["t"]), TEMPERATURE)


def _flow_shift(found: Comparison, title: str, entry: Entry) -> None:
    """Of times of training; the reference says e^mu by how many tokens there are, ours by a setting."""
    found.close(title, flow.shifted(torch.tensor(entry["t"]), math.exp(entry["mu"])), torch.tensor(entry["shifted"]), TEMPERATURE)


def _flow_path(found: Comparison, title: str, entry: Entry) -> None:
    data, noise, times = (torch.tensor(entry[name]) for name in ("x1", "x0", "t"))
    found.close(f"{title}.x_t", flow.between(data, noise, times), torch.tensor(entry["x_t"]), TEMPERATURE)
    found.close(f"{title}.u_t", data - noise, torch.tensor(entry["u_t"]), TEMPERATURE)


TABLES: dict[str, Callable[[Comparison, str, Entry], None]] = {
    "maskgit_cosine": _maskgit,
    "maskgit_partially_known": _maskgit,
    "maskgit_other_schedules": _maskgit,
    "num_transfer_tokens_llada": partial(_transfer, transfer_counts),
    "num_transfer_tokens_parallel_a": partial(_transfer, floor_counts),
    "parallel_image_update_steps": _update_steps,
    "parallel_image_masked_counts": _masked_counts,
    "training_mask_count": _training_masks,
    "showo2_sampler_t_grid": _flow_times,
    "showo2_do_shift": _flow_shift,
    "showo2_path": _flow_path,
}


def masked_after(updates: list[int], steps: int, tokens: int) -> list[list[int]]:
    """Pairs of a step and the tokens masked after it, of an image that is updated at some of the steps only."""
    rows, unknown = [], tokens
    for step in updates:
        unknown = left_masked(tokens, unknown, (step + 1) / steps)
        rows.append([step, unknown])
    return rows
