"""Invariant 3: one rollout actor = two rollout actors = in-process, bit for bit on CPU; also when an actor dies on the way."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from pararl import scenes, sync
from pararl.config import Config, changed
from pararl.rollout.actors import Actors, Call
from pararl.rollout.fleet import Fleet, LocalFleet, RayFleet, chunks_of, in_order, requests_of
from pararl.rollout.waiting import Limit
from pararl.rollout.workers import rollout_seed
from pararl.sync import AdapterBuffer, SyncError
from pararl.types import Prompt, Rollout
from policies import Sampling
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[3]
SAMPLING = Sampling(steps=4, recorded=2)
PROMPTS = [scenes.prompt("train", 0), scenes.prompt("id", 1, task="interleaved"), scenes.prompt("train", 2)]
GROUP = 5
LIMIT = Limit(120.0, "run.timeout")


@pytest.fixture(scope="module")
def config(tiny_policy_dir: Path) -> Config:
    # 15 rollouts in chunks of 4: chunks mix prompts and tasks, and the last one is short.
    return changed(Config(), {"policy.name": str(tiny_policy_dir), "policy.lora_rank": 4, "policy.lora_alpha": 8, "rollout.chunk": 4})


@pytest.fixture(scope="module")
def local(config: Config) -> LocalFleet:
    return LocalFleet(config)


@pytest.fixture(scope="module")
def fleets(config: Config, ray_cluster: None) -> Iterator[dict[int, RayFleet]]:
    """Fleets of one and of two actors, started at the same time."""
    started = {n: RayFleet(changed(config, {"rollout.workers": n})) for n in (1, 2)}
    for fleet in started.values():
        fleet.ready()
    yield started
    for fleet in started.values():
        fleet.close()


@pytest.fixture
def two(fleets: dict[int, RayFleet]) -> RayFleet:
    return fleets[2]


def trained(local: LocalFleet, version: int) -> AdapterBuffer:
    """An adapter with random values, its own for each version."""
    from pararl import adapter

    g = torch.Generator().manual_seed(version)
    own = adapter.tensors(local.worker.model)
    return sync.pack({name: 0.3 * torch.randn(t.shape, generator=g) for name, t in own.items()}, version)


def flat(value: Any) -> Any:
    """A record as nested tuples, arrays as (dtype, shape, bytes), so that == compares every bit of every field."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if hasattr(value, "__dataclass_fields__"):
        return type(value).__name__, *((name, flat(getattr(value, name))) for name in value.__dataclass_fields__)
    if isinstance(value, (list, tuple)):
        return tuple(flat(item) for item in value)
    return value


def tokens(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [r.segments[0].tokens.tolist() for r in rollouts]


def test_one_actor_two_actors_and_in_process_agree_bit_for_bit(local: LocalFleet, fleets: dict[int, RayFleet]) -> None:
    adapter = trained(local, 1)
    everyone: list[Fleet] = [local, *fleets.values()]
    for fleet in everyone:
        receipts = fleet.publish(adapter)
        assert {(r.version, r.checksum) for r in receipts} == {(1, adapter.checksum)} and all(r.canary > 0 for r in receipts)
    base, tuned = ([flat(f.generate(PROMPTS, GROUP, version, 7, SAMPLING)) for f in everyone] for version in (0, 1))
    assert base[0] == base[1] == base[2] and tuned[0] == tuned[1] == tuned[2]
    assert base[0] != tuned[0]


def test_rollouts_come_prompt_by_prompt_with_their_index_version_and_seed(local: LocalFleet) -> None:
    local.publish(trained(local, 3))
    rollouts = local.generate(PROMPTS, GROUP, 3, 7, SAMPLING)
    assert [(r.prompt, r.index) for r in rollouts] == [(p, k) for p in PROMPTS for k in range(GROUP)]
    assert {r.version for r in rollouts} == {3}
    assert [r.seed for r in rollouts] == [rollout_seed(7, 3, p.id, k) for p in PROMPTS for k in range(GROUP)]
    assert all(len(r.guesses) == len(r.recorded) == SAMPLING.recorded for r in rollouts)


def test_update_gives_fresh_samples_of_the_same_version(local: LocalFleet) -> None:
    first, second, again = (tokens(local.generate(PROMPTS[:1], 4, 0, 7, SAMPLING, update=u)) for u in (1, 2, 1))
    assert first == again != second


def test_adapter_off_in_a_worker_is_the_base(local: LocalFleet, config: Config) -> None:
    local.publish(trained(local, 1))
    untouched = LocalFleet(config)
    assert flat(local.generate(PROMPTS, 2, 0, 1, SAMPLING)) == flat(untouched.generate(PROMPTS, 2, 0, 1, SAMPLING))


def test_the_seed_is_a_fixed_hash_of_its_four_parts() -> None:
    # python -c "import hashlib; print(int(hashlib.blake2b(b'1|2|train-3|4', digest_size=8).hexdigest(), 16) // 2)"
    assert rollout_seed(1, 2, "train-3", 4) == 7392812278102049564
    parts = [(r, u, f"train-{p}", k) for r in (1, 11) for u in (1, 11) for p in range(50) for k in range(8)]
    seeds = [rollout_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts) and 0 <= min(seeds) and max(seeds) < 2**63


def test_chunks_keep_the_order_and_are_cut_at_fixed_places() -> None:
    requests = requests_of(PROMPTS, GROUP, 0, 0)
    chunks = chunks_of(requests, 4)
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 3]
    assert [request for chunk in chunks for request in chunk] == requests


def test_chunks_that_finish_out_of_order_are_put_in_order(two: RayFleet, local: LocalFleet) -> None:
    chunks = list(two.generate_iter(PROMPTS, GROUP, 0, 7, SAMPLING))
    assert sorted(start for start, _ in chunks) == [0, 4, 8, 12]
    expected = flat(local.generate(PROMPTS, GROUP, 0, 7, SAMPLING))
    assert flat(in_order(iter(chunks[::-1]))) == flat(in_order(iter(chunks))) == expected


def test_an_actor_that_dies_on_the_way_comes_back_with_the_adapter(two: RayFleet, local: LocalFleet) -> None:
    """Restarted, it holds the base; its chunk and all later ones must still be sampled with the published version."""
    adapter = trained(local, 5)
    local.publish(adapter)
    two.publish(adapter)
    expected = flat(local.generate(PROMPTS, 24, 5, 7, SAMPLING))
    victim = two.actors.handles[0]
    before = ray.get(victim.__ray_call__.remote(lambda actor: os.getpid()))
    stream = two.generate_iter(PROMPTS, 24, 5, 7, SAMPLING)
    chunks = [next(stream)]
    ray.kill(victim, no_restart=False)  # it is at work on a chunk now: there are 18
    chunks += stream
    assert flat(in_order(iter(chunks))) == expected
    assert ray.get(victim.__ray_call__.remote(lambda actor: os.getpid())) != before
    assert {r.version for r in two.publish(trained(local, 6))} == {6}


def test_a_version_that_is_not_published_is_refused(two: RayFleet, local: LocalFleet) -> None:
    two.publish(trained(local, 8))
    with pytest.raises(ValueError, match=telling(7, 8)):
        two.generate(PROMPTS, 1, 7, 0, SAMPLING)


def test_an_adapter_that_does_not_fit_stops_the_run_and_is_not_remembered(two: RayFleet, local: LocalFleet) -> None:
    good = trained(local, 8)
    two.publish(good)
    halved = sync.pack({name: t[: len(t) // 2] for name, t in sync.unpack(trained(local, 9)).items()}, 9)
    with pytest.raises(SyncError, match=telling("rollout-0", "version 9", 28, "float32 [16, 4]", "float32 [32, 4]")):
        two.publish(halved)
    assert two.published is good


def test_an_error_in_an_actor_is_one_clear_line(two: RayFleet) -> None:
    wrong = Prompt("train-99", "i2t", "what is this")
    with pytest.raises(RuntimeError, match=telling("ValueError", "train-99", "i2t")) as caught:
        two.generate([wrong], 2, 0, 0, SAMPLING)
    assert "\n" not in str(caught.value)
    assert two.generate(PROMPTS, 1, 0, 0, SAMPLING), "the actors live on"


@pytest.fixture(scope="module")
def helpers(ray_cluster: None) -> Iterator[Actors]:
    """Two small actors under our options. Their class goes to them by value, so that they need not load what this module does."""

    class Helper:
        def environment(self) -> dict[str, str]:
            return dict(os.environ)

        def work(self, seconds: float) -> int:
            time.sleep(seconds)
            return os.getpid()

    started = Actors(Helper, [("one", ()), ("two", ())], LIMIT, threads=3)
    started.ready()
    yield started
    started.close()


def work(seconds: float) -> Call:
    return Call("work", (seconds,), "work", LIMIT)


def test_a_worker_that_is_free_takes_the_next_call(helpers: Actors) -> None:
    pids = helpers.every(work(0.0))
    done = list(helpers.whoever_is_free(map(work, (3.0, 0.0, 0.0, 0.0, 0.0))))
    slow = done[-1][1]
    (quick,) = set(pids) - {slow}
    assert done == [(1, quick), (2, quick), (3, quick), (4, quick), (0, slow)]


def test_calls_in_turn_keep_their_order_whoever_is_slow(helpers: Actors) -> None:
    first, second = helpers.every(work(0.0))
    assert helpers.in_turn(map(work, (0.5, 0.0, 0.0))) == [first, second, first]


def test_an_error_names_the_actor_and_the_others_are_waited_for(helpers: Actors) -> None:
    with pytest.raises(RuntimeError, match=telling("one could not work", "ValueError", "sleep length")):
        helpers.every(work(-1.0))
    with pytest.raises(RuntimeError, match=telling("could not work", "ValueError", "sleep length")):
        list(helpers.whoever_is_free(map(work, (0.0, -1.0, 0.0))))
    assert len(set(helpers.every(work(0.0)))) == 2, "both live on"


def test_actors_get_their_threads_their_allocator_and_our_packages(helpers: Actors) -> None:
    seen = helpers.every(Call("environment", (), "tell", LIMIT))[0]
    assert {seen[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {"3"}
    assert seen["MALLOC_MMAP_MAX_"] == "0" and int(seen["MALLOC_TRIM_THRESHOLD_"]) == 100_000_000_000
    assert int(seen["MALLOC_TOP_PAD_"]) == 1_000_000_000 and seen["TOKENIZERS_PARALLELISM"] == "false"
    assert str(ROOT) in seen["PYTHONPATH"].split(os.pathsep)


JOIN = """
import ray
from pararl.config import Config
from pararl.rollout.cluster import start_ray
start_ray(Config())
print("gcs", ray.get_runtime_context().gcs_address, "cpus", int(ray.cluster_resources()["CPU"]))
"""


@pytest.mark.parametrize("joins", [True, False])
def test_ray_is_joined_where_there_is_one_and_started_privately_elsewhere(joins: bool, ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")} | ({"RAY_ADDRESS": address} if joins else {})
    done = subprocess.run([sys.executable, "-c", JOIN], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (f"gcs {address} cpus 2" in done.stdout) == joins and (joins or done.stdout.strip().endswith("cpus 1"))
