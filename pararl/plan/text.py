"""A plan as text: the tables that ``--plan`` prints."""

from collections.abc import Sequence

from pararl.data.quotas import task_shares
from pararl.plan.gpus import GPUS, UTILISATION, Gpu
from pararl.plan.memory import weight_bytes
from pararl.plan.plan import Plan

PARTS = ("rollout", "learner", "publish")


def describe(plan: Plan, gpu: Gpu | None = None) -> str:
    """The whole plan; ``gpu``: the one that is asked about, None = every named one."""
    parts = [_head(plan), _bytes(plan), _work(plan), _gpus(plan, (gpu,) if gpu else GPUS) if plan.gpus else _on_cpu()]
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    config, shape = plan.config, plan.shape
    rank = config.policy.lora_rank
    bits = 8 * weight_bytes(config, shape, bool(plan.gpus))
    adapter, images = shape.adapter_parameters(rank), shape.image_weights
    counts = f"backbone {_count(shape.parameters)}, adapter {_count(adapter)} (rank {rank}), image tokenizer {_count(images)}"
    longest = ", ".join(f"{kind} {shape.length(kind):,}" for kind in task_shares(config.curriculum.tasks))
    return "\n".join(
        (
            f"plan of {config.policy.name}: {shape.layers} layers of width {shape.width:,}, {bits} bits a weight",
            f"parameters: {counts}",
            f"tokens of a sequence, its prompt at its longest: {longest}",
            f"GPUs: {_placement(plan)}",
        )
    )


def _placement(plan: Plan) -> str:
    """Which processes share a GPU."""
    if not plan.gpus:
        return "none"
    return f"{len(plan.gpus)} ({'; '.join(' + '.join(processes) or 'idle' for processes in plan.gpus)})"


def _bytes(plan: Plan) -> str:
    names = list(dict.fromkeys((*plan.rollout.parts, *plan.learner.parts)))
    scale, unit = (1e9, "GB") if max(plan.rollout.total, plan.learner.total) > 1e9 else (1e6, "MB")
    rows = [[name, *(f"{memory.parts.get(name, 0) / scale:.2f}" for memory in (plan.rollout, plan.learner))] for name in names]
    total = ["total", *(f"{memory.total / scale:.2f}" for memory in (plan.rollout, plan.learner))]
    return _table([[f"{unit} per worker", "rollout", "learner"], *rows, total])


def _work(plan: Plan) -> str:
    rows = [["per update", "rollout forwards", "TFLOP", "learner forwards", "TFLOP", "reference forwards", "TFLOP"]]
    for arm, cost in plan.costs.items():
        parts = (cost.rollout, cost.learner, cost.reference)
        rows.append([arm, *(text for part in parts for text in (f"{part.forwards:,.0f}", _tera(part.flops)))])
    return f"{_table(rows)}\npublish: {_amount(plan.publish_bytes)} an update, in arms that sample from the current policy"


def _gpus(plan: Plan, gpus: Sequence[Gpu]) -> str:
    header = ["GPU", "GB", "needed", "fits", *(f"{arm}, s an update" for arm in plan.costs)]
    rows = [header]
    for gpu in gpus:
        row = [gpu.name, f"{gpu.memory / 1e9:.1f}", f"{plan.fullest / 1e9:.1f}", "yes" if plan.fits(gpu) else "no"]
        rows.append(row + [_seconds(plan.seconds(gpu, arm)) for arm in plan.costs])
    said = f"Seconds: {' + '.join(PARTS)}, at {UTILISATION:.0%} of the GPU's peak (assumed), without rewards; - = on the CPU."
    return f"{_table(rows)}\n{said}"


def _on_cpu() -> str:
    return "No GPU is asked for (rollout.gpus and learner.gpus are 0): nothing to fit, and no time is expected of a CPU."


def _seconds(parts: object) -> str:
    assert isinstance(parts, dict)
    known = [parts[name] for name in PARTS]
    each = " + ".join("-" if value is None else _short(value) for value in known)
    return each if None in known else f"{_short(sum(known))} = {each}"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.0f}" if flops >= 1e13 else f"{flops / 1e12:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
