"""Starting the programs as users do: in subprocesses, with real Ray and W&B offline."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "pipelines" / "configs" / "scenes_smoke.yaml"
SMALL = [
    "--config",
    str(SMOKE),
    "--eval.splits",
    "id,ood_pair",
    "--eval.prompts",
    "8",
    "--run.checkpoint_every",
    "1",
    "--learner.lr",
    "1e-2",
    "--learner.schedule",
    "linear",
    "--curriculum.tasks",
    "t2i,i2t,interleaved_edit",
]
ONE_TASK = ["--curriculum.tasks", "t2i"]


WATCHED = """
import atexit, pathlib, runpy, sys
place, script = sys.argv[1:3]
sys.argv[:] = sys.argv[2:]
sys.path[0] = str(pathlib.Path(script).parent)
atexit.register(lambda: pathlib.Path(place).write_text("\\n".join(sorted(sys.modules))))
runpy.run_path(script, run_name="__main__")
"""
"""Runs a program as Python does, and writes down which modules its process holds at the end."""


def start(*arguments: str, script: str = "pararl.py", modules: Path | None = None, **options: object) -> subprocess.Popen[str]:
    """``modules``: file for the names of the modules that the program's own process has loaded at its end."""
    watch = [] if modules is None else ["-c", WATCHED, str(modules)]
    command = [sys.executable, *watch, str(ROOT / "pipelines" / script), *arguments]
    # A wandb service of this process must not be shared with a run that is about to be killed.
    kept = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    environment = {**kept, "WANDB_MODE": "offline"}
    environment.pop("RAY_ADDRESS", None)
    options.setdefault("env", environment)
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "\r" not in output, "a log file has no bars"
    return output


def kill_in(arm: str, process: subprocess.Popen[str], folder: Path, seconds: float = 200) -> None:
    """Kill a run, and all processes of its session, as soon as an arm has a checkpoint."""
    wait_for(arm, process, folder, seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "summary.json").exists()


def wait_for(arm: str, process: subprocess.Popen[str], folder: Path, seconds: float = 200) -> None:
    """Until an arm has a checkpoint."""
    wait_until(lambda: (folder / "checkpoints" / arm / "state.json").exists(), process, seconds)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Until something holds of a run that is at work."""
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.02)
