"""Align a unified multimodal model on-policy, next to its offline DPO baseline.

python pipelines/pararl.py [--config NAME] [--section.key VALUE ...] [--resume RUN] [--plan [GPU]]
"""

import sys

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

from typing import TYPE_CHECKING

from pararl.cli.help import CONFIGS
from pararl.cli.parse import parse
from pararl.config import Arm, Config
from pararl.errors import fail, told
from pararl.plan.gpus import gpu
from pararl.plan.plan import Plan, refusal
from pararl.plan.shapes import shape_of
from pararl.plan.text import describe
from pararl.policy_files import policy_directory
from pararl.terminal import no_bars_in_logs

if TYPE_CHECKING:
    from pararl.evaluation.summary import ArmResult
    from pararl.loop.session import Session

DEFAULT = CONFIGS / "default.yaml"


def train(session: "Session", arm: Arm) -> "ArmResult":
    """One arm, from the base or its last checkpoint to its result."""
    from pararl.loop.arm_run import ArmRun

    with ArmRun.open(session, arm) as run:
        for update in run.updates():
            prompts = run.prompts(update)  # task quotas, seeded cursor
            rollouts = run.generate(prompts, update)  # Ray actors: a pure function of prompts, seed and version
            batch = run.score(rollouts)  # Ray actors: final outputs and guesses at recorded steps
            feedback = run.prefer(batch)  # pairs or advantages; pure
            metrics = run.learn(batch, feedback)  # one update of the LoRA adapter
            receipts = run.publish(update)  # the rollout workers load the adapter and prove it
            run.log(update, batch, feedback, metrics, receipts)
        return run.result()


def show_plan(config: Config, name: str) -> None:
    """Print what the job takes, on the GPU ``name`` or on each named one; exits with one line and code 1 where it cannot fit."""
    plan = Plan.of(config, shape_of(config.policy.name, policy_directory(config)))
    asked = gpu(name) if name else None
    print(describe(plan, asked))
    if problem := refusal(plan, asked):
        fail(problem, code=1)


@told
def main() -> None:
    """Run the job that the command line and the configuration file describe."""
    no_bars_in_logs()
    invocation = parse(default=DEFAULT)
    if invocation.plan is not None:
        return show_plan(invocation.config, invocation.plan)
    # What loads Ray is imported below this line only, so that --help, mistakes and finished runs are answered within a second.
    from pararl.loop.resumed import closing, finished

    updates = invocation.config.run.updates
    if invocation.resume and (summary := finished(invocation.resume, invocation.config.run.arms, updates)):
        return print(closing(invocation.resume, summary))
    from pararl.loop.session import RunStopped, Session

    try:
        with Session.open(invocation) as session:
            session.base()
            session.finish({arm: session.finished(arm) or train(session, arm) for arm in session.arms})
    except RunStopped as stopped:
        fail(str(stopped), code=stopped.code)


if __name__ == "__main__":
    main()
