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
    env = environment(tmp_path)
    call(RAY, "get-auth-token", "--generate", env=env)
    call(RAY, "start", "--head", "--num-cpus", "2", "--disable-usage-stats", *(x for pair in PORTS.items() for x in pair), env=env)
    yield env
    call(RAY, "stop", "--force", env=env)
    time.sleep(1)


def test_the_job_runs_on_a_cluster_with_token_authentication(cluster: dict[str, str], tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{PORTS['--dashboard-port']}"
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
        address,
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
