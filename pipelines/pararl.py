"""Align a unified multimodal model on-policy, next to its offline DPO baseline.

python pipelines/pararl.py [--config FILE.yaml] [--section.key VALUE ...] [--resume RUN]
"""

import sys
from pathlib import Path

# Python puts this file's folder first on sys.path, where `import pararl` would find this very file instead of the package, here and,
# because Ray hands the driver's path on, in every worker. The repository root takes its place, before any import of ours.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]

from typing import TYPE_CHECKING

from pararl.cli import fail, parse
from pararl.config import Arm, ConfigError

if TYPE_CHECKING:
    from pararl.session import Session
    from pararl.summary import ArmResult

DEFAULT = ROOT / "pipelines" / "configs" / "default.yaml"


def train(session: "Session", arm: Arm) -> "ArmResult":
    """One arm, from the base or its last checkpoint to its result."""
    from pararl.training import Training

    with Training.open(session, arm) as t:
        for update in t.updates():
            batch = t.batch(update)
            feedback = t.prefer(batch)
            figures = t.learn(batch, feedback)
            receipts = t.publish(update)
            t.log(update, batch, feedback, figures, receipts)
        return t.result()


def main() -> None:
    """Run the job that the command line and the configuration file describe."""
    invocation = parse(default=DEFAULT)
    # What loads torch or Ray is imported below this line only, so that --help and mistakes are answered within a second.
    from pararl.session import Session

    try:
        with Session.open(invocation) as session:
            session.base()
            session.finish({arm: session.finished(arm) or train(session, arm) for arm in session.arms})
    except ConfigError as error:
        fail(str(error))
    except (RuntimeError, OSError) as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("stopped before the run began", code=130)


if __name__ == "__main__":
    main()
