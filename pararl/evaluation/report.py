"""What an evaluation says beyond one number: axes, skills, atoms, cycle, diversity; pure functions from scored outputs to JSON values."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import exp, log
from typing import Any

import numpy as np

from pararl import scenes
from pararl.evaluation.intervals import Metric, bootstrap, paired
from pararl.types import Kind, Output, Prompt, Score

AXES = ("text_quality", "text_alignment", "image_quality", "image_alignment", "image_consistency", "output_alignment")
"""The six axes of ParaBench; ``scenes.Axes`` defines them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One output with its score."""

    prompt: Prompt
    output: Output
    score: Score


def geometric_mean(score: Score) -> float:
    """Geometric mean of the soft values of the atoms: the estimate of a whole prompt of GenEval 2 (arXiv 2512.16853); ``value`` without
    atoms."""
    soft = [atom.soft for atom in score.atoms]
    if not soft:
        return score.value
    return 0.0 if min(soft) <= 0 else exp(sum(map(log, soft)) / len(soft))


def split_report(scored: Sequence[Scored]) -> dict[str, Any]:
    """All metrics of one kind of prompt on one split: strict, soft and geometric mean with intervals, and the axes. It repeats them by tag,
    by skill and by number of atoms."""
    report: dict[str, Any] = {"n": len(scored), **_accuracies(scored)}
    if axes := _axes(scored):
        report["axes"] = axes
    report["by_tag"] = _grouped(scored, lambda s: str(s.prompt.spec.get("tag", "-")))
    report["by_atoms"] = _grouped((s for s in scored if s.score.atoms), _atoms)
    report["by_skill"] = _by_skill(scored)
    return report


def _accuracies(scored: Sequence[Scored]) -> dict[str, Metric]:
    found = {"soft": bootstrap([s.score.value for s in scored]), "geometric": bootstrap([geometric_mean(s.score) for s in scored])}
    strict = [float(s.score.strict) for s in scored if s.score.strict is not None]
    return {"strict": bootstrap(strict), **found} if strict else found


def _axes(scored: Sequence[Scored]) -> dict[str, Metric]:
    """The axes that apply, for outputs with an image and prompts of the scene world."""
    # The parser reads scenes of this size alone; a policy of another world draws others.
    shown = [s for s in scored if s.output.image is not None and s.output.image.shape == (32, 32, 3)]
    parsed = scenes.parse_batch([s.output.image for s in shown if s.output.image is not None])
    values: dict[str, list[float]] = defaultdict(list)
    for s, seen in zip(shown, parsed, strict=True):
        try:
            found = scenes.axes(s.prompt.spec, seen, s.output.text)
        except ValueError:  # a spec of another world, which another reward has scored
            continue
        for name, value in asdict(found).items():
            if value is not None:
                values[name].append(value)
    return {name: bootstrap(values[name]) for name in AXES if values[name]}


def _grouped(scored: Iterable[Scored], key: Callable[[Scored], Any]) -> dict[str, Any]:
    groups: dict[Any, list[Scored]] = defaultdict(list)
    for s in scored:
        groups[key(s)].append(s)
    # Sorted before they become names: 10 atoms come behind 9.
    return {str(name): _accuracies(groups[name]) for name in sorted(groups)}


def _atoms(scored: Scored) -> int:
    """How many facts the prompt states: the questions of its spec, else the atoms of its score."""
    asked = scored.prompt.spec.get("atoms")
    return len(asked if isinstance(asked, list | tuple) else scored.score.atoms)


def _by_skill(scored: Sequence[Scored]) -> dict[str, Metric]:
    """Share of atoms that hold, by skill; the interval takes atoms as independent."""
    passed: dict[str, list[float]] = defaultdict(list)
    for s in scored:
        for atom in s.score.atoms:
            passed[atom.skill].append(float(atom.passed))
    return {skill: bootstrap(passed[skill]) for skill in sorted(passed)}


def cycle_report(prompts: Sequence[Prompt], captions: Sequence[str]) -> dict[str, Metric]:
    """Captions of the images made for descriptions, against these descriptions (``scenes.cycle``)."""
    found = [scenes.cycle(prompt.spec, caption) for prompt, caption in zip(prompts, captions, strict=True)]
    return {"strict": bootstrap([float(strict) for _, strict in found]), "soft": bootstrap([value for value, _ in found])}


def diversity_report(groups: Sequence[Sequence[Output]]) -> dict[str, Metric]:
    """Several outputs of each prompt. ``unique``: the share of pairs that differ at all. ``distance``: how far they differ, the mean share
    of differing words and cells (pixels, where cells cannot be read)."""
    unique, distance = [], []
    for group in groups:
        pairs = [_distance(a, b) for a, b in combinations([_features(output) for output in group], 2)]
        unique.append(float(np.mean([d > 0 for d in pairs])))
        distance.append(float(np.mean(pairs)))
    return {"unique": bootstrap(unique), "distance": bootstrap(distance)}


def _features(output: Output) -> list[Any]:
    words = (output.text or "").split()
    if output.image is None:
        return words
    seen = scenes.parse(output.image) if output.image.shape == (32, 32, 3) else None
    image = output.image if seen is None or not seen.valid.all() else seen.scene.cells
    return [*image.ravel().tolist(), *words]


def _distance(a: Sequence[Any], b: Sequence[Any]) -> float:
    longest = max(len(a), len(b))
    same = sum(x == y for x, y in zip(a, b, strict=False))
    return 1 - same / longest if longest else 0.0


def worst(scored: Sequence[Scored], count: int) -> list[Scored]:
    """The outputs with the lowest scores, the lowest first; those that are strictly right are no failures."""
    wrong = [s for s in scored if not s.score.strict]
    return sorted(wrong, key=lambda s: s.score.value)[:count]


def differences(scored: Sequence[Scored | None], baseline: Sequence[Scored | None]) -> dict[str, Metric]:
    """Strict and soft accuracy of one system minus those of another on the same prompts, with paired intervals."""
    both = [(a.score, b.score) for a, b in zip(scored, baseline, strict=True) if a is not None and b is not None]
    found = {"soft": paired([a.value for a, _ in both], [b.value for _, b in both])}
    strict = [(float(a.strict), float(b.strict)) for a, b in both if a.strict is not None and b.strict is not None]
    return {"strict": paired([a for a, _ in strict], [b for _, b in strict]), **found} if strict else found


def table(results: Mapping[str, Mapping[Kind, Mapping[str, Any]]]) -> str:
    """A line for every kind of prompt, split and system: strict with its interval, geometric mean, soft, the axes, cycle and diversity."""
    head = ["kind, split", "system", "n", "strict", "(95 %)", "gm", "soft", *(_short(axis) for axis in AXES), "cycle", "unique", "KL"]
    lines = [head]
    first = next(iter(results.values()))
    for kind, splits in first.items():
        for split in splits:
            for system, kinds in results.items():
                lines.append(_line(f"{kind}, {split}", system, kinds[kind][split]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(_padded(line, widths)) for line in lines)


LEGEND = """\
strict: share of outputs for which every claim holds, and its 95 % bootstrap interval over prompts
gm, soft: mean over prompts of the geometric mean of an output's claims, and of its score
TQ, TA, IQ, IA, IC, OA: ParaBench's text quality and alignment, image quality, alignment and consistency, text against image
cycle: share of images whose caption by the policy itself says the prompt; unique: share of differing pairs of samples of a prompt
KL: to the base, in nats per token; -: does not apply"""
"""What the columns of ``table`` are."""


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = zip(line, widths, strict=True)
    return [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs)]


def _line(name: str, system: str, report: Mapping[str, Any]) -> list[str]:
    strict = report.get("strict")
    band = "" if strict is None else f"{strict['low']:.3f}-{strict['high']:.3f}"
    axes = report.get("axes", {})
    more = [report.get("cycle", {}).get("strict"), report.get("diversity", {}).get("unique")]
    kl = report.get("kl", {}).get("kl/total")
    metrics = [report.get("geometric"), report.get("soft"), *(axes.get(axis) for axis in AXES), *more]
    cells = [name, system, str(report["n"]), _cell(strict), band, *map(_cell, metrics)]
    return [*cells, "-" if kl is None else f"{kl:.3f}"]


def _cell(metric: Metric | None) -> str:
    return "-" if metric is None else f"{metric['mean']:.3f}"


def _short(axis: str) -> str:
    return "".join(part[0] for part in axis.split("_")).upper()
