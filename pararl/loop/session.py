"""One run: its folder, its workers and what its arms share. The loop itself is in ``pipelines/pararl.py``."""

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pararl.cli.parse import Invocation, as_dict, lengthen, run_folder, save
from pararl.config import Arm, Config, changed, measuring
from pararl.data.curriculum import Curriculum
from pararl.evaluation.evaluation import CANARY, Evaluation, eval_sampling, evaluate
from pararl.evaluation.summary import ArmResult, BaseResult, Kinds, SplitResult, Summary, pooled
from pararl.files import claimed, read_lines, write_json
from pararl.loop import checkpoint
from pararl.loop.preflight import preflight
from pararl.loop.resumed import LAST, closing, rename_arms
from pararl.loop.start import keep_start, with_own_start
from pararl.rollout.actors import start_ray
from pararl.rollout.fleet import BASE, Fleet, RayFleet
from pararl.rollout.reward_workers import RayRewardWorkers, RewardWorkers
from pararl.sampling import sampling_of
from pararl.tracking.pictures import Sample, SampleRow, samples_png
from pararl.tracking.plots import OVER_PROMPTS, Bar, bars_png, curves_png, share_bar
from pararl.tracking.tracking import Tracker
from pararl.types import Prompt, Rollout
from rewards import Calibration, names


class RunError(RuntimeError):
    """A run that broke off: a worker, a reward or the learner failed. Its message says what failed, and how to go on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of a policy's evaluation: metrics of every split, and the cells of its pictures."""

    kinds: Kinds
    samples: list[SampleRow]

    @property
    def id(self) -> SplitResult:
        return pooled([results["id"] for results in self.kinds.values()])

    @property
    def ood(self) -> SplitResult | None:
        """The held-out splits pooled; None where none is measured."""
        held_out = [r for results in self.kinds.values() for split, r in results.items() if split not in ("id", CANARY)]
        return pooled(held_out) if held_out else None


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
    ) -> None:
        """``reward_workers`` give the reward that is trained on, ``measurer`` the one that measures: the same where both are one reward."""
        self.config, self.folder, self.fleet, self.say = config, folder, fleet, say
        self.reward_workers, self.measurer = reward_workers, measurer
        self.tracker = Tracker(folder, config.track, folder.name, as_dict(config))

    @classmethod
    @contextmanager
    def open(cls, invocation: Invocation) -> Iterator["Session"]:
        """Make the run's folder (or take the one to resume), start Ray and the workers; end them with the block.

        Raises ConfigError for what this machine lacks, BlockingIOError where another process is at work on the run, and RuntimeError
        when the workers cannot start. Any error that ends the run later is raised as RunError; the folder keeps its traceback.
        """
        config = invocation.config
        folder = invocation.resume or run_folder(config, invocation.stem)
        with ExitStack() as stack:
            if invocation.resume:
                stack.enter_context(claimed(folder))
            preflight(config, folder)
            start_ray(config)
            _interrupt_on_sigterm()
            # Both load at the same time, and neither waits for its actors yet.
            reward_workers, fleet = RayRewardWorkers(config), RayFleet(config)
            measurer = reward_workers
            if measuring(config) != config.reward.name:
                measurer = RayRewardWorkers(changed(config, {"reward.name": measuring(config), "reward.workers": 1}))
            for workers in (fleet, reward_workers, measurer):
                stack.callback(workers.close)
            fleet.ready()
            reward_workers.ready()
            measurer.ready()
            # Only now, so that a run that cannot start leaves no folder.
            if invocation.resume is None:
                folder.mkdir(parents=True)
                stack.enter_context(claimed(folder))
                keep_start(config, folder)
                save(config, folder / "config.yaml")
            elif invocation.longer:
                lengthen(folder / "config.yaml", config.run.updates)
            try:
                rename_arms(folder)
                yield cls(with_own_start(config, folder), folder, fleet, reward_workers, measurer)
            except KeyboardInterrupt:
                raise RunError(f"stopped; go on with --resume {folder}") from None
            except (RuntimeError, ValueError, OSError) as error:
                with (folder / "errors.log").open("a", encoding="utf-8") as log:
                    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{traceback.format_exc()}\n")
                raise RunError(f"{error} (details in {folder / 'errors.log'}; once mended, go on with --resume {folder})") from error

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
            return Calibration(**json.loads(path.read_text(encoding="utf-8")))
        curriculum, prompts = Curriculum(self.config), list[Prompt]()
        while len(prompts) < count:
            prompts += curriculum.next()
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
            return self.fleet.generate(prompts, 1, version, self.config.eval.seed, sampling, update=0)

        return evaluate(generate, self.measurer.score, self.config, splits, count)

    def measured(self, name: str) -> Measured | None:
        """The stored evaluation of ``base`` or of a finished arm; None where it is still to be made."""
        found = checkpoint.load(self.folder / "results" / name)
        if found is None:
            return None
        arrays, facts = found
        kinds = {kind: {split: SplitResult(**r) for split, r in results.items()} for kind, results in facts["kinds"].items()}
        rows = []
        for i, fact in enumerate(facts["samples"]):
            cell = Sample(arrays.get(f"image.{i}"), **{**fact["cell"], "failed": tuple(fact["cell"]["failed"])})
            rows.append(SampleRow(fact["prompt"], (cell,), arrays.get(f"shown.{i}")))
        return Measured(kinds, rows)

    def measure(self, name: str, version: int) -> tuple[Measured, Evaluation]:
        """Evaluate on every split and keep the result under ``name``."""
        done = self.evaluate(version, self.config.eval.splits, self.config.eval.prompts)
        samples = done.samples(self.config.track.images)
        arrays: dict[str, np.ndarray] = {}
        facts: list[dict[str, Any]] = []
        for i, row in enumerate(samples):
            (cell,) = row.cells
            arrays |= {f"{name}.{i}": x for name, x in (("image", cell.image), ("shown", row.shown)) if x is not None}
            kept = {"value": cell.value, "strict": cell.strict, "failed": cell.failed, "text": cell.text}
            facts.append({"prompt": row.prompt, "cell": kept})
        kinds = {kind: {split: asdict(result) for split, result in results.items()} for kind, results in done.kinds.items()}
        checkpoint.save(self.folder / "results" / name, arrays, {"kinds": kinds, "samples": facts})
        return Measured(done.kinds, samples), done

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
        result = ArmResult.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
        return result if result and result.updates >= self.config.run.updates else None

    def finish(self, results: Mapping[str, ArmResult]) -> Summary:
        """Write ``summary.json`` and the pictures, that of LAST at the end; print the table."""
        base, start = self.base(), self.measured("start")
        before = [BaseResult(m.id, m.ood, m.kinds) for m in (base, start) if m]
        summary = Summary(self.config.run.seed, before[0], results, *before[1:])
        write_json(self.folder / "summary.json", summary.to_json())
        self.draw_samples(list(results))
        self.draw_kinds(summary)
        curves_png(self.folder / LAST, read_lines(self.tracker.metrics_path), base=base.id.metrics("id"))
        self.say(closing(self.folder, summary))
        return summary

    def draw_kinds(self, summary: Summary) -> None:
        """Bars of strict accuracy by kind of prompt, base against arms; none where there is a single kind or no strict notion."""
        groups: dict[str, list[Bar]] = {}
        for kind in summary.base.kinds if len(summary.base.kinds) > 1 else ():
            systems = {"base": summary.base.kinds[kind], **{arm: result.kinds[kind] for arm, result in summary.arms.items()}}
            groups[kind] = [share_bar(s, r["id"].strict, r["id"].n) for s, r in systems.items() if r["id"].strict is not None]
        if any(groups.values()):
            bars_png(self.folder / "kinds.png", groups, "ID strict accuracy", OVER_PROMPTS)

    def draw_samples(self, arms: Sequence[str], per_sheet: int = 8) -> None:
        """Contact sheets of the first ID prompts: what the base and each arm make of them, with the reasons of what failed."""
        systems = {name: m.samples for name in ("base", *arms) if (m := self.measured(name))}
        rows = [
            SampleRow(same[0].prompt, tuple(row.cells[0] for row in same), same[0].shown) for same in zip(*systems.values(), strict=True)
        ]
        for start in range(0, len(rows), per_sheet):
            samples_png(self.folder / "samples" / f"id-{start:03d}.png", list(systems), rows[start : start + per_sheet])


def _interrupt_on_sigterm() -> None:
    """Take SIGTERM, which schedulers and ``ray job stop`` send, as Ctrl-C. To be called behind Ray's start, which sets its own handler:
    that prints a stack and ends the process at once."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
