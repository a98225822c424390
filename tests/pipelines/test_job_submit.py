"""`ray job submit` on a cluster that `ray start --head` made, with the commands of the README."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PORTS = {"--port": "26379", "--dashboard-port": "28265", "--ray-client-server-port": "21001", "--dashboard-agent-listen-port": "25365"}

ADDRESS = f"http://127.0.0.1:{PORTS['--dashboard-port']}"


def environment(home: Path) -> dict[str, str]:
    """A user's shell with a home of its own, so that the cluster's token is made for this test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_AUTH_MODE": "token", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def call(*command: str, env: dict[str, str], seconds: float = 240, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster of its own. Held by a foreground process, because `ray stop` would end every Ray process of this machine."""
    env = environment(tmp_path)
    call(RAY, "get-auth-token", "--generate", env=env)
    options = ["--num-cpus", "2", "--disable-usage-stats", "--block", *(x for pair in PORTS.items() for x in pair)]
    head = subprocess.Popen([RAY, "start", "--head", *options], env=env, start_new_session=True, stdout=subprocess.DEVNULL)
    for _ in range(60):
        up = subprocess.run([RAY, "job", "list", "--address", ADDRESS], env=env, cwd=ROOT, capture_output=True)
        if up.returncode == 0:
            break
        assert head.poll() is None, "ray start --head ended"
        time.sleep(1)
    yield env
    head.terminate()
    head.wait(timeout=60)


def test_the_job_runs_on_a_cluster_with_token_authentication(cluster: dict[str, str], tmp_path: Path) -> None:
    job = [
        "python",
        "pipelines/pararl.py",
        "--config",
        "pipelines/configs/scenes_smoke.yaml",
        "--run.dir",
        str(tmp_path / "out"),
        "--run.name",
        "job",
    ]
    output = call(
        RAY,
        "job",
        "submit",
        "--address",
        ADDRESS,
        "--working-dir",
        ".",
        "--",
        *job,
        "--run.arms",
        "pararl",
        "--eval.splits",
        "id",
        env=cluster,
    )
    assert "succeeded" in output and re.search(r"pararl\s+0\.\d{3}", output), output
    assert (tmp_path / "out" / "job" / "summary.json").exists()
