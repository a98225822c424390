"""One run: its folder, its workers and what its arms share. The loop itself is in ``pipelines/pararl.py``."""

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from pararl.cli.parse import Invocation, as_dict, lengthen, run_folder, save
from pararl.config import Arm, Config, ConfigError, changed, measuring
from pararl.data.curriculum import Curriculum
from pararl.errors import in_words
from pararl.evaluation.evaluation import CANARY, Evaluation, eval_sampling, evaluate
from pararl.evaluation.study import LABELS
from pararl.evaluation.summary import ArmResult, BaseResult, Kinds, SplitResult, Summary, pooled
from pararl.files import METRIC_ROW, claimed, read_lines, write_json
from pararl.loop import checkpoint
from pararl.loop.preflight import preflight
from pararl.loop.resumed import LAST, closing, rename_arms
from pararl.loop.start import keep_start, with_own_start
from pararl.loop.stopping import Stop
from pararl.readers import read_json, record_of
from pararl.rollout.cluster import start_ray
from pararl.rollout.fleet import BASE, Fleet, RayFleet
from pararl.rollout.reward_workers import RayRewardWorkers, RewardWorkers
from pararl.sampling import sampling_of
from pararl.tracking.curves import curves_png
from pararl.tracking.pictures import Sample, SampleRow, samples_png
from pararl.tracking.plots import OVER_PROMPTS, Bar, bars_png, mean_interval, share_interval
from pararl.tracking.tracking import Tracker
from pararl.types import Metrics, Prompt, Rollout
from rewards import Calibration, names

SHOWN = 16
"""Prompts on the sheets of samples, or track.images where that is more."""
AGAIN = "remove it, and --resume makes it anew"
"""What helps against a result of a run that cannot be read."""


class RunError(RuntimeError):
    """A run that broke off: a worker, a reward or the learner failed. Its message says what failed, and how to go on."""


class RunStopped(RunError):
    """A run that somebody stopped. ``code``: what its process exits with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of a policy's evaluation: metrics of every split, and the cells of its pictures."""

    kinds: Kinds
    samples: list[SampleRow]
    during: Metrics = field(default_factory=dict)
    """The same policy on the prompts of the small evaluations during training alone, so that these have a beginning and an end."""

    @classmethod
    def of(cls, kept: tuple[Mapping[str, np.ndarray], Mapping[str, Any]]) -> "Measured":
        """From the arrays and facts that ``Session.measure`` keeps."""
        arrays, facts = kept
        kinds = {kind: {split: SplitResult(**r) for split, r in results.items()} for kind, results in facts["kinds"].items()}
        rows = []
        for i, fact in enumerate(facts["samples"]):
            cell = Sample(arrays.get(f"image.{i}"), **{**fact["cell"], "failed": tuple(fact["cell"]["failed"])})
            rows.append(SampleRow(fact["prompt"], (cell,), arrays.get(f"shown.{i}")))
        return cls(kinds, rows, facts.get("during", {}))  # earlier versions kept none

    @property
    def id(self) -> SplitResult:
        return pooled([results["id"] for results in self.kinds.values()])

    @property
    def ood(self) -> SplitResult | None:
        """The held-out splits pooled; None where none is measured."""
        # Canaries are ID prompts of tags that are never trained on: they show what is forgotten, not what is generalised.
        held_out = [r for results in self.kinds.values() for split, r in results.items() if split not in ("id", CANARY)]
        return pooled(held_out) if held_out else None

    @property
    def result(self) -> BaseResult:
        """Of the base, as a summary has it."""
        return BaseResult(self.id, self.ood, self.kinds)


class Session:
    """A run from its folder to its summary. Use ``Session.open``."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        fleet: Fleet,
        reward_workers: RewardWorkers,
        measurer: RewardWorkers,
        say: Callable[[str], None] = print,
        stop: Stop | None = None,
    ) -> None:
        """``reward_workers`` give the reward that is trained on, ``measurer`` the one that measures: the same where both are one reward.
        ``stop``: who tells whether somebody wants the run to stop; None = nobody can."""
        self.config, self.folder, self.fleet, self.say = config, folder, fleet, say
        self.stop = stop or Stop(say)
        self.reward_workers, self.measurer = reward_workers, measurer
        self.tracker = Tracker(folder, config.track, folder.name, as_dict(config))

    @classmethod
    @contextmanager
    def open(cls, invocation: Invocation) -> Iterator["Session"]:
        """Make the run's folder (or take the one to resume), start Ray and the workers; end them with the block.

        Raises ConfigError for what this machine lacks, BlockingIOError where another process is at work on the run, and RuntimeError
        when the workers cannot start. Whatever ends the run later is raised as RunError, a signal as RunStopped; the folder keeps the
        traceback of an error.
        """
        config = invocation.config
        folder = invocation.resume or run_folder(config, invocation.stem)
        if invocation.resume:  # the adapter that was named may be gone
            config = with_own_start(config, folder)
        with ExitStack() as stack:
            stop = stack.enter_context(Stop(tqdm.write).listening())
            try:
                # Before Ray starts, so that a second process on one run is refused within a second.
                if invocation.resume:
                    stack.enter_context(claimed(folder))
                preflight(config, folder)
                start_ray(config)
                stop.listen()
                # Both load at the same time, and neither waits for its actors yet.
                reward_workers, fleet = RayRewardWorkers(config), RayFleet(config)
                measurer = reward_workers
                if measuring(config) != config.reward.name:
                    measurer = RayRewardWorkers(changed(config, {"reward.name": measuring(config), "reward.workers": 1}))
                for workers in (fleet, reward_workers, measurer):
                    # Before anyone waits for them: a worker that cannot start must not leave the others behind.
                    stack.callback(workers.close)
                fleet.ready()
                reward_workers.ready()
                measurer.ready()
                # Only now, so that a run that cannot start leaves no folder.
                if invocation.resume is None:
                    made(folder)
                    stack.enter_context(claimed(folder))
                    keep_start(config, folder)
                    save(config, folder / "config.yaml")
                elif invocation.longer:
                    lengthen(folder / "config.yaml", config.run.updates)
                rename_arms(folder)
            except (KeyboardInterrupt, SystemExit) as error:  # the latter by Ray's handler of SIGTERM, while it starts
                again = f"; go on with --resume {folder}" if folder.exists() else " before the run began"
                raise RunStopped(f"stopped{again}", stop.code if isinstance(error, KeyboardInterrupt) else 128 + signal.SIGTERM) from None
            try:
                yield cls(with_own_start(config, folder), folder, fleet, reward_workers, measurer, stop=stop)
            except (KeyboardInterrupt, Exception) as error:
                # Schedulers signal the workers as well: what fails because of it is no fault of the run.
                if stop.asked is not None or isinstance(error, KeyboardInterrupt):
                    raise RunStopped(f"stopped; go on with --resume {folder}", stop.code) from None
                raise RunError(f"{in_words(error)} ({kept(folder)}once mended, go on with --resume {folder})") from error

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms of the run, in their order; validation has seen to their names."""
        return cast(tuple[Arm, ...], self.config.run.arms)

    # ---- measuring

    def calibration(self) -> Calibration | None:
        """What the reward is standardised by, made once a run and kept in its folder; None where its scores are taken as they are.

        From one output of the base for each of the first prompts of the curriculum; no arm is charged for these reward calls. Raises
        ValueError when they all score the same.
        """
        count, path = self.config.reward.calibration, self.folder / "calibration.json"
        if not (count and names.is_clip(self.config.reward.name)):
            return None
        if path.exists():
            return cast(Calibration, record_of(lambda kept: Calibration(**kept), read_json(path, AGAIN), path, AGAIN))
        # One of its own, so that no arm's cursor moves.
        curriculum, prompts = Curriculum(self.config), list[Prompt]()
        while len(prompts) < count:
            prompts += curriculum.next()
        # Update 0, whose seeds no update of an arm has.
        rollouts = self.fleet.generate(
            prompts, 1, BASE, self.config.run.seed, replace(sampling_of(self.config.rollout), guesses=0), update=0
        )
        found = Calibration.of([judgement.final for judgement in self.reward_workers.score(rollouts)])
        write_json(path, asdict(found))
        self.say(f"reward {self.config.reward.name} on {found.count} outputs of the base: {found.mean:.4f} +/- {found.deviation:.4f}")
        return found

    def evaluate(self, version: int, splits: Sequence[str], count: int) -> Evaluation:
        """Measure the base (version BASE), the start (0) or the published adapter at the prompts and seeds that all policies share."""
        sampling = eval_sampling(self.config.rollout)

        def generate(prompts: Sequence[Prompt]) -> list[Rollout]:
            # Update 0 whatever the version: only the policy differs between the measurements that are compared.
            return self.fleet.generate(prompts, 1, version, self.config.eval.seed, sampling, update=0)

        return evaluate(generate, self.measurer.score, self.config, splits, count)

    def measured(self, name: str) -> Measured | None:
        """The stored evaluation of ``base`` or of a finished arm; None where it is still to be made."""
        found = checkpoint.load(self.folder / "results" / name)
        if found is None:
            return None
        return cast(Measured, record_of(Measured.of, found, self.folder / "results" / name, checkpoint.REMEDY))

    def measure(self, name: str, version: int) -> tuple[Measured, Evaluation]:
        """Evaluate on every split and keep the result under ``name``."""
        done = self.evaluate(version, self.config.eval.splits, self.config.eval.prompts)
        samples = done.samples(max(SHOWN, self.config.track.images))
        arrays: dict[str, np.ndarray] = {}
        facts: list[dict[str, Any]] = []
        for i, row in enumerate(samples):
            (cell,) = row.cells
            arrays |= {f"{name}.{i}": x for name, x in (("image", cell.image), ("shown", row.shown)) if x is not None}
            kept = {"value": cell.value, "strict": cell.strict, "failed": cell.failed, "text": cell.text}
            facts.append({"prompt": row.prompt, "cell": kept})
        kinds = {kind: {split: asdict(result) for split, result in results.items()} for kind, results in done.kinds.items()}
        c = self.config.eval
        during = done.first(c.during) if c.every and c.during < c.prompts and c.splits[0] == "id" else {}
        checkpoint.save(self.folder / "results" / name, arrays, {"kinds": kinds, "samples": facts, "during": during})
        return Measured(done.kinds, samples, during), done

    def base(self) -> Measured:
        """The base's evaluation, made once a run."""
        return self.measured("base") or self.measure("base", BASE)[0]

    def start(self) -> Measured:
        """The evaluation of the adapter that the run starts from, made once a run. Its workers must have been told of it."""
        return self.measured("start") or self.measure("start", 0)[0]

    # ---- the end

    def finished(self, arm: str) -> ArmResult | None:
        """The result of an arm that an earlier attempt at this run has finished; None where the run is longer now."""
        path = self.folder / "results" / f"{arm}.json"
        if not path.exists():
            return None
        result: ArmResult = record_of(ArmResult.from_json, read_json(path, AGAIN), path, AGAIN)
        return result if result.updates >= self.config.run.updates else None

    def finish(self, results: Mapping[str, ArmResult]) -> Summary:
        """Write ``summary.json`` and the pictures, that of LAST at the end; print the table."""
        base, start = self.base(), self.measured("start")
        summary = Summary(self.config.run.seed, base.result, results, *([start.result] if start else []))
        # Before the pictures: a plot that fails does not cost the summary, and a resume draws what is missing.
        write_json(self.folder / "summary.json", summary.to_json())
        self.draw_samples(list(results))
        self.draw_kinds(summary)
        curves_png(self.folder / LAST, read_lines(self.tracker.metrics_path, METRIC_ROW), base=base.id.metrics("id"))
        self.say(closing(self.folder, summary))
        return summary

    def draw_kinds(self, summary: Summary) -> None:
        """Bars of accuracy by kind of prompt, base against arms; none where there is a single kind."""
        groups: dict[str, list[Bar]] = {}
        for kind in summary.base.kinds if len(summary.base.kinds) > 1 else ():
            systems = {"base": summary.base.kinds[kind], **{arm: result.kinds[kind] for arm, result in summary.arms.items()}}
            groups[f"{kind} (n = {systems['base']['id'].n})"] = [_bar(name, results["id"]) for name, results in systems.items()]
        if groups:
            label = LABELS["soft" if summary.base.id.strict is None else "strict"]
            bars_png(self.folder / "kinds.png", groups, f"ID {label}", OVER_PROMPTS)

    def draw_samples(self, arms: Sequence[str], per_sheet: int = 8) -> None:
        """Contact sheets of ID prompts from easy to hard: what the base and each arm make of them, with the reasons of what failed.

        Of prompts that all of them were shown with: an older version that began the run may have kept others.
        """
        systems = {name: _by_prompt(m.samples) for name in ("base", *arms) if (m := self.measured(name))}
        same = [[kept[key] for kept in systems.values()] for key in systems["base"] if all(key in kept for kept in systems.values())]
        rows = [SampleRow(row.prompt, tuple(other.cells[0] for other in (row, *rest)), row.shown) for row, *rest in same]
        for start in range(0, len(rows), per_sheet):
            samples_png(self.folder / "samples" / f"id-{start:03d}.png", list(systems), rows[start : start + per_sheet])


def made(folder: Path) -> None:
    """Make the folder of a new run. Raises ConfigError where another run has just made it."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"another run has just made {folder}: choose another name (set --run.name or --run.dir)") from None


def kept(folder: Path) -> str:
    """Write the traceback of the error at hand to the run's ``errors.log``; where to find it, in words. Nothing where the disk is full."""
    try:
        with (folder / "errors.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{traceback.format_exc()}\n")
    except OSError:
        return ""
    return f"details in {folder / 'errors.log'}; "


def _by_prompt(rows: Sequence[SampleRow]) -> dict[tuple[str, bytes, int], SampleRow]:
    """The rows by the text of the prompt, its picture where it has one, and how many such came before."""
    found: dict[tuple[str, bytes, int], SampleRow] = {}
    seen: Counter[tuple[str, bytes]] = Counter()
    for row in rows:
        key = row.prompt, b"" if row.shown is None else row.shown.tobytes()
        found[(*key, seen[key])] = row
        seen[key] += 1
    return found


def _bar(system: str, found: SplitResult) -> Bar:
    """Strict accuracy with its interval; the soft one where the reward has no strict notion."""
    if found.strict is not None:
        return Bar(system, found.strict, *share_interval(found.strict, found.n))
    return Bar(system, found.soft, *mean_interval(found.soft, found.error or 0.0))
