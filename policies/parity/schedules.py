"""Counts and temperatures of every schedule, against the recorded tables."""

import math

import torch

from policies.parity.case import Case, Comparison
from policies.sampling.released import floor_counts
from policies.sampling.schedules import late_updates, left_masked, remaining, transfer_counts

TEMPERATURE = 1e-6


def compare(case: Case) -> Comparison:
    """Every table of a ``schedules.json`` that a sampler or a loss of ours follows."""
    found, tables = Comparison(), case.config
    for name in ("maskgit_cosine", "maskgit_partially_known", "maskgit_other_schedules"):
        for entry in tables.get(name, []):
            n, steps, schedule = entry["N"], entry["T"], entry.get("schedule", "cosine")
            ours = remaining(n, steps, entry.get("known_at_start", 0), schedule)
            # The released sampler keeps one token masked at the end and returns its draw; ours commits it.
            title = f"{name}.{schedule}.N{n}.T{steps}"
            found.equal(title, [*ours[:-1], max(1, ours[-1])], entry["mask_len_after_step"])
            if "temperature_used" in entry:
                falls = [1 - (step + 1) / steps for step in range(steps)]
                used = [math.prod(falls[: step + 1]) for step in range(steps)]
                found.close(f"{title}.temperature", torch.tensor(used), torch.tensor(entry["temperature_used"]), TEMPERATURE)
    for name, counts in (("num_transfer_tokens_llada", transfer_counts), ("num_transfer_tokens_parallel_a", floor_counts)):
        for entry in tables.get(name, []):
            found.equal(f"{name}.{entry['masked']}.{entry['steps']}", counts(entry["masked"], entry["steps"]), entry["table"])
    for entry in tables.get("parallel_image_update_steps", []):
        steps, updates = entry["text_steps"], entry["image_steps"]
        found.equal(f"parallel_image_update_steps.{steps}.{updates}", late_updates(steps, updates), list(dict.fromkeys(entry["steps"])))
    for entry in tables.get("parallel_image_masked_counts", []):
        steps, updates, n = entry["text_steps"], entry["image_steps"], entry["N"]
        rows = masked_after(late_updates(steps, updates), steps, n)
        found.equal(
            f"parallel_image_masked_counts.{steps}.{updates}.N{n}", torch.tensor(rows), torch.tensor(entry["step_and_masked_after"])
        )
    for entry in tables.get("training_mask_count", []):
        shares = torch.cos(torch.tensor(entry["t"]) * math.pi / 2)
        found.close(f"training_mask_count.N{entry['N']}.mask_prob", shares, torch.tensor(entry["mask_prob"]), TEMPERATURE)
        ours = [max(1, int(torch.round(entry["N"] * share))) for share in shares]
        found.equal(f"training_mask_count.N{entry['N']}", torch.tensor(ours), torch.tensor(entry["num_masked"]).long())
    for name in sorted(tables):
        if name.startswith("showo2_"):
            found.left_out[name] = "the flow-matching schedules of Show-o2, which is not among the families yet"
    return found


def masked_after(updates: list[int], steps: int, tokens: int) -> list[list[int]]:
    """Pairs of a step and the tokens masked after it, of an image that is updated at some of the steps only."""
    rows, unknown = [], tokens
    for step in updates:
        unknown = left_masked(tokens, unknown, (step + 1) / steps)
        rows.append([step, unknown])
    return rows
