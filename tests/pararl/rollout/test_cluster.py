"""A cluster that does not answer, or refuses the token, is told within seconds and before Ray starts; so is an address that is none."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pararl.config import Config, changed
from pararl.rollout import cluster
from pararl.rollout.cluster import asked_for, lacking_gpus, problem_at

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that takes calls and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, None),
        ({"RAY_ADDRESS": ""}, None),
        ({"RAY_ADDRESS": "local"}, None),
        ({"RAY_ADDRESS": "local", cluster.JOB: "{}"}, None),
        ({"RAY_ADDRESS": "auto"}, "auto"),
        ({"RAY_ADDRESS": "ray://host:10001"}, "ray://host:10001"),
        ({"RAY_ADDRESS": "host:6379", cluster.JOB: "{}"}, "host:6379"),
        ({cluster.JOB: "{}"}, "auto"),
    ],
)
def test_a_run_joins_the_cluster_that_its_environment_names(environment: dict[str, str], asked: str | None) -> None:
    assert asked_for(environment) == asked


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_takes_calls_and_never_answers_is_told_in_time(scheme: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    began = time.monotonic()
    told = problem_at(f"{scheme}127.0.0.1:{port}")
    assert time.monotonic() - began < 5
    assert told and f"RAY_ADDRESS={scheme}127.0.0.1:{port}" in told and "1 s" in told


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "[::1]:1"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    began = time.monotonic()
    told = problem_at(address)
    assert time.monotonic() - began < cluster.PATIENCE + 2
    assert told and f"RAY_ADDRESS={address}" in told and "no Ray cluster" in told


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "http://127.0.0.1:8265",
        "other://host:1",
        "host:",
        ":6379",
        "host:port",
        "host:0",
        "host:99999",
        "ray://",
        "Auto",
        "x y",
    ],
)
def test_an_address_that_is_none_is_told_with_those_that_are(address: str) -> None:
    told = problem_at(address)
    assert told and all(form in told for form in (f"RAY_ADDRESS={address}:", "host:port", "ray://host:port", "auto", "local"))


ASK = "from pararl.rollout.cluster import unreachable; print(unreachable())"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("None",)),
        ({"RAY_AUTH_TOKEN": "not-the-token"}, ("refuses", "RAY_AUTH_TOKEN")),
        ({"RAY_AUTH_TOKEN_PATH": "{folder}/token"}, ("refuses", "{folder}/token")),
        ({"HOME": "{folder}"}, ("refuses", "{folder}/.ray/auth_token")),
        ({"HOME": "/nowhere"}, ("RAY_AUTH_MODE=token", "no token")),
        ({"RAY_AUTH_MODE": "disabled"}, ("wants a token", "RAY_AUTH_MODE is disabled")),
    ],
)
def test_a_refused_token_is_told_with_where_it_came_from(
    environment: dict[str, str], words: tuple[str, ...], ray_cluster: None, tmp_path: Path
) -> None:
    assert os.environ.get("RAY_AUTH_MODE") == "token", "Ray turns tokens on for the clusters that it starts"
    (tmp_path / ".ray").mkdir()
    for file in (tmp_path / "token", tmp_path / ".ray" / "auth_token"):
        file.write_text("0123456789abcdef" * 4)
    filled = {name: value.format(folder=tmp_path) for name, value in environment.items()}
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, **filled}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(word.format(folder=tmp_path) in done.stdout for word in words), done.stdout
    assert done.stdout.count("\n") == 1 and "0123456789abcdef" not in done.stdout + done.stderr


@pytest.mark.parametrize(("there", "enough"), [(1.5, False), (2.0, True), (2.5, True)])
def test_as_many_gpus_as_a_run_asks_for_are_enough(there: float, enough: bool) -> None:
    config = changed(Config(), {"rollout.workers": 2, "rollout.gpus": 0.5, "learner.gpus": 1})
    told = lacking_gpus(config, there, "here")
    assert (told is None) == enough
    assert enough or all(
        word in str(told) for word in ("= 2 GPUs", "here has 1.5", "--rollout.gpus", "--rollout.workers", "--learner.gpus")
    )
