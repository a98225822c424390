"""One arm of a run while it trains: its learner, its data, its place in the run, and what is written down after every update."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from pararl.arms import ARM_SPECS
from pararl.card import commit
from pararl.config import Arm, for_arm
from pararl.evaluation.evaluation import Evaluation, split_result
from pararl.evaluation.evaluation import metrics as split_metrics
from pararl.evaluation.summary import ArmResult
from pararl.evaluation.told import told
from pararl.files import keep_lines, write_json
from pararl.learner.handle import LearnerHandle, RayLearner
from pararl.learner.prefer import Feedback, prefer
from pararl.loop import checkpoint
from pararl.loop.best import BestAdapter
from pararl.loop.idle import idle_reason, idle_warning
from pararl.loop.session import Session
from pararl.loop.source import ScoredRollouts, Source, Stream
from pararl.readers import FileError, record_of
from pararl.tracking.progress import Progress
from pararl.types import Judgement, Metrics, Prompt, Receipt


@dataclass
class Counters:
    """What an arm has spent so far; kept in its checkpoint."""

    update: int = 0
    reward_calls: int = 0
    samples: int = 0
    seconds: float = 0.0
    idle: int = 0
    """Updates in a row that taught nothing."""


class ArmRun:
    """One arm while it trains. Use ``ArmRun.open``."""

    def __init__(self, session: Session, arm: Arm, learner: LearnerHandle) -> None:
        self.session, self.arm, self.learner = session, arm, learner
        self.config, self.spec = for_arm(session.config, arm), ARM_SPECS[arm]
        self.checkpoint_path = session.folder / "checkpoints" / arm
        self.source = Source(self.config, self.spec, session.fleet, session.reward_workers, session.folder / "rollouts" / arm, session.say)
        self.scale = session.calibration()
        self.counters = Counters()
        self.began = 0.0
        self.seconds: Metrics = {}
        """Where the time of the update went."""
        self.best = BestAdapter(session.folder, arm)
        self.kl: float | None = None
        """KL to the base as last measured."""
        self.progress: Progress | None = None

    @classmethod
    @contextmanager
    def open(cls, session: Session, arm: Arm) -> Iterator["ArmRun"]:
        """Start the arm's learner and tracking, restored from its checkpoint where there is one."""
        learner = RayLearner(for_arm(session.config, arm), arm)
        try:
            run = cls(session, arm, learner)
            learner.ready()  # so that the first update is timed without it
            run._restore()
            # Set to False behind the block alone: whatever else ends the arm, Ctrl-C too, marks its W&B run as failed.
            failed = True
            try:
                what = "reward" if run.spec.data == "current" else "reward of the base's samples"
                with Progress(run.config.run.updates, arm, done=run.counters.update, reward=what) as run.progress:
                    yield run
                failed = False
            finally:
                session.tracker.finish(arm, failed=failed)
        finally:
            learner.close()

    # ---- the loop's calls

    def updates(self) -> Iterator[int]:
        """The updates still to be done: 1, 2, ... Times each and counts it when the loop comes back for the next.

        Raises KeyboardInterrupt, with a checkpoint, behind an update in which somebody asked the run to stop.
        """
        stop = self.session.stop
        for update in range(self.counters.update + 1, self.config.run.updates + 1):
            self.began, self.seconds = time.monotonic(), {}
            with stop.update():
                yield update
                # Only now: what breaks off before the loop is back is done again by a resume.
                self.counters.update = update
                self.counters.seconds += time.monotonic() - self.began
            asked = stop.asked is not None
            # Behind the last update too: its optimiser is what an extension goes on with.
            if asked or update % self.config.run.checkpoint_every == 0 or update == self.config.run.updates:
                self._save()
            if asked:
                raise KeyboardInterrupt

    def prompts(self, update: int) -> list[Prompt]:
        """What the update asks."""
        return self.source.prompts(update)

    def generate(self, prompts: Sequence[Prompt], update: int) -> Stream:
        """The rollouts of these prompts, chunk by chunk as workers finish them."""
        return self.source.generate(prompts, update, self.counters.update)

    def score(self, rollouts: Stream) -> ScoredRollouts:
        """The rollouts with their scores: chunks are scored while later ones are still sampled."""
        batch = self.source.score(rollouts)
        self.counters.reward_calls += batch.calls
        self.counters.samples += len(batch.rollouts)
        self.seconds |= {"perf/rollout": batch.rollout_seconds, "perf/reward": batch.reward_seconds}
        return batch

    def prefer(self, batch: ScoredRollouts) -> Feedback:
        """What the batch teaches this arm, by its scores as they are or, where the run has a calibration, standardised."""
        c, scale = self.config, self.scale
        judgements = [scale.judgement(j) for j in batch.judgements] if scale else batch.judgements
        return prefer(batch.rollouts, judgements, self.spec, c.prefer, c.reward.step_mix, c.rollout.group, c.reward.strict_mix)

    def learn(self, batch: ScoredRollouts, feedback: Feedback) -> Metrics:
        """One update of the adapter."""
        with self._timed("perf/learn"):
            return self.learner.update(batch.rollouts, feedback)

    def publish(self, update: int) -> list[Receipt]:
        """Give the adapter to the rollout workers, verified; nothing for arms that sample from the base, unless they are measured now."""
        if self.spec.data != "current" and not self._measures(update):
            return []
        with self._timed("perf/publish"):
            return self.session.fleet.publish(self.learner.adapter())

    def log(self, update: int, batch: ScoredRollouts, feedback: Feedback, metrics: Metrics, receipts: list[Receipt]) -> None:
        """Write the update down and show it; measure the ID split where it is due."""
        total = time.monotonic() - self.began
        perf = {**self.seconds, "perf/wait": total - sum(self.seconds.values()), "perf/update": total}
        reward = dict(feedback.metrics) | self.beside(batch)
        row = {**reward, **metrics, **perf, **receipt_metrics(receipts)}
        why = idle_reason(row)
        self.counters.idle = 0 if why is None else self.counters.idle + 1
        if why is not None:
            row["learner/idle"] = float(self.counters.idle)
        # The last update is measured on every split, in result.
        if self._measures(update) and update < self.config.run.updates:
            row |= self._during(update)
        self.session.tracker.log(update, row, self.counters.samples)
        assert self.progress is not None
        # Arms on data of the base estimate it at evaluations only: their rollouts do not come from the policy.
        self.kl = row.get("kl/total", row.get("eval/kl_total", self.kl))
        # A static arm samples once, before its first update: that says nothing of the updates that are left.
        once = batch.rollout_seconds + batch.reward_seconds if self.spec.data == "static" else 0.0
        strict = reward.get("reward/strict", reward.get("reward/measured_strict"))
        self.progress.update(reward.get("reward/mean"), strict, self.kl, total - once)
        if why is not None and (told := idle_warning(self.counters.idle, why, self.config.run.patience)):
            self.progress.note(f"{self.arm}: {told}")
            self.session.tracker.alert(f"{self.arm} learns nothing", told)

    def beside(self, batch: ScoredRollouts) -> Metrics:
        """Metrics of a batch beside the reward that it is learnt from: raw where that is standardised, and by the reward that measures.

        The latter not for rollouts that were sampled once, whose outputs are not kept.
        """
        found = mean_metrics("raw", batch.judgements) if self.scale else {}
        if self.session.measurer is not self.session.reward_workers and self.spec.data != "static":
            found |= mean_metrics("measured", self.session.measurer.score([replace(r, guesses=()) for r in batch.rollouts]))
        return found

    def result(self) -> ArmResult:
        """Measure the trained adapter on every split, save it, and close the arm's books."""
        measured, evaluation = self.session.measure(self.arm, self.counters.update)
        kl = self.learner.kl(evaluation.rollouts)
        metrics = split_metrics(measured.kinds)
        adapter, c = Path("adapters") / self.arm, self.counters
        spent = (c.update, c.reward_calls, round(c.seconds, 1))
        result = ArmResult(measured.id, measured.ood, *spent, kl["kl/total"], str(adapter), measured.kinds, self.best.found)
        self.learner.save(self.session.folder / adapter, told(self.session.config, self.arm, self.session.base().result, result, commit()))
        self.session.tracker.log(
            self.counters.update,
            {**metrics, **measured.during, **{f"eval/{name.replace('/', '_')}": v for name, v in kl.items()}},
            self.counters.samples,
        )
        self._show(self.counters.update, evaluation)
        self.session.tracker.artifact(self.arm, self.session.folder / adapter, self.counters.update, metrics)
        # Last of all: a resume passes over an arm that has this file.
        write_json(self.session.folder / "results" / f"{self.arm}.json", asdict(result))
        return result

    # ---- inside

    def _measures(self, update: int) -> bool:
        every = self.config.eval.every
        return update == self.config.run.updates or bool(every and update % every == 0)

    def _during(self, update: int) -> Metrics:
        """Metrics of the small evaluation during training."""
        done = self.session.evaluate(update, ("id",), self.config.eval.during)
        self._show(update, done)
        self.best.offer(update, done.splits["id"], self.learner.save)
        metrics = split_metrics(done.kinds)
        return metrics | {f"eval/{name.replace('/', '_')}": value for name, value in self.learner.kl(done.rollouts).items()}

    def _show(self, update: int, evaluation: Evaluation) -> None:
        c = self.config
        self.session.tracker.images(update, evaluation.samples(c.track.images, among=min(c.eval.during, c.eval.prompts)))

    def _save(self) -> None:
        arrays, facts = self.learner.state()
        checkpoint.save(
            self.checkpoint_path,
            arrays,
            {
                "learner": facts,
                "counters": asdict(self.counters),
                "curriculum": self.source.curriculum.state(),
                "best": self.best.state(),
                "last": self.counters.update == self.config.run.updates,
                "wandb": self.session.tracker.ids(),
            },
        )
        self.best.commit()

    def _restore(self) -> None:
        session = self.session
        if self.config.policy.adapter:
            session.fleet.begin(self.learner.adapter())
        # Earlier versions did not count idle updates.
        found = checkpoint.load_arm(self.checkpoint_path, [field.name for field in fields(Counters) if field.name != "idle"])
        if found is None:
            self.best.load_state(None)
            # An arm that was killed before its first checkpoint begins anew, so that all its rows go.
            session.tracker.truncate(self.arm, -1)
            session.tracker.start(self.arm)
            session.tracker.log(0, self._before(), 0)
            return
        arrays, facts = found
        try:
            self.learner.load_state(arrays, facts["learner"])
        except (RuntimeError, ValueError) as error:
            raise FileError(self.checkpoint_path, f"does not fit the learner: {error}", checkpoint.REMEDY) from error
        self.counters = record_of(lambda own: Counters(**own), facts["counters"], self.checkpoint_path, checkpoint.REMEDY)
        record_of(self.source.curriculum.load_state, facts["curriculum"], self.checkpoint_path, checkpoint.REMEDY)
        self.best.load_state(facts.get("best"))
        update = self.counters.update
        session.tracker.truncate(self.arm, update)
        # What was measured behind the last update is measured again, there or behind a later one.
        keep_lines(session.tracker.metrics_path, lambda row: row["arm"] != self.arm or row["update"] < update or "perf/update" in row)
        session.tracker.start(self.arm)
        # In a run that is extended here, the small evaluation that a longer one would have made.
        late = facts.get("last", False) and update < self.config.run.updates and self._measures(update)
        # Or only its result is left to make, for which the workers sample from the adapter, whatever the arm samples from.
        if late or update == self.config.run.updates or self.spec.data == "current":
            session.fleet.publish(self.learner.adapter())
        if late:
            session.tracker.log(update, self._during(update), self.counters.samples)

    def _before(self) -> Metrics:
        """Metrics of the policy that the arm starts from: the base, or its adapter, which is then some KL away."""
        if not self.config.policy.adapter:
            base = self.session.base()
            return split_metrics(base.kinds, ("id",)) | base.during
        outputs = self.session.evaluate(0, ("id",), self.config.eval.during).rollouts
        kl = {f"eval/{name.replace('/', '_')}": value for name, value in self.learner.kl(outputs).items()}
        start = self.session.start()
        return split_metrics(start.kinds, ("id",)) | start.during | kl

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def mean_metrics(name: str, judgements: list[Judgement]) -> Metrics:
    """``reward/<name>``, the mean final score, and ``reward/<name>_strict``; nothing where the reward has none."""
    if all(judgement.final is None for judgement in judgements):
        return {}
    result = split_result(judgements)
    return {f"reward/{name}": result.soft} | ({} if result.strict is None else {f"reward/{name}_strict": result.strict})


def receipt_metrics(receipts: list[Receipt]) -> Metrics:
    """``sync/...`` of a publish: version, tensors bound and the smallest change of canary logits over the workers."""
    if not receipts:
        return {}
    return {
        "sync/version": float(receipts[0].version),
        "sync/tensors": float(receipts[0].tensors),
        "sync/canary": min(r.canary for r in receipts),
    }
