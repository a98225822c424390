"""Invariant 2: a publish that binds no tensor, or changes no canary output after a non-zero update, stops the run."""

import copy
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from pararl import adapter, sync
from pararl.rollout.workers import RolloutWorker, WorkerSettings
from pararl.sync import AdapterBuffer, SyncError
from pararl.types import Receipt
from policies.cpu import computing
from tests.wording import telling


def mixed() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "b.lora_B": torch.randn(3, 5, generator=g).bfloat16(),
        "a.lora_A": torch.randn(7, generator=g),
        "c": torch.arange(6).view(2, 3).t(),  # not contiguous
        "d": torch.tensor(2.5, dtype=torch.float16),
    }


def trained(worker: RolloutWorker, version: int, seed: int = 0) -> AdapterBuffer:
    """An adapter of the worker's shapes with random values."""
    g = torch.Generator().manual_seed(seed)
    return sync.pack({name: 0.3 * torch.randn(t.shape, generator=g) for name, t in adapter.tensors(worker.model).items()}, version)


@pytest.fixture
def worker(tiny_policy_dir: Path) -> RolloutWorker:
    return RolloutWorker(WorkerSettings(str(tiny_policy_dir), rank=4, alpha=8), "rollout-0")


def test_a_buffer_gives_back_every_tensor_also_through_pickle() -> None:
    tensors = mixed()
    packed = sync.pack(tensors, 3)
    assert packed.version == 3 and packed.buffer.dtype == np.uint8 and packed.buffer.ndim == 1
    for got in (sync.unpack(packed), sync.unpack(pickle.loads(pickle.dumps(packed)))):
        assert list(got) == sorted(tensors)
        for name, tensor in tensors.items():
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)


def test_unpacked_tensors_are_views_even_of_a_read_only_buffer() -> None:
    packed = sync.pack(mixed(), 0)
    packed.buffer.flags.writeable = False
    first, last = packed.buffer.ctypes.data, packed.buffer.ctypes.data + packed.buffer.nbytes
    assert all(first <= t.data_ptr() < last for t in sync.unpack(packed).values())


def test_the_checksum_is_sha256_of_names_kinds_and_bytes() -> None:
    tensor = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"x|float32|(1, 2)|" + np.array([1.0, 2.0], "<f4").tobytes()).hexdigest()
    assert sync.checksum_of({"x": tensor}) == sync.pack({"x": tensor}, 9).checksum == expected
    others = [{"y": tensor}, {"x": tensor.view(2, 1)}, {"x": torch.tensor([[1.0, 2.0000002]])}, {"x": tensor.view(torch.int32)}]
    assert len({expected, *(sync.checksum_of(o) for o in others)}) == 5


def test_a_good_publish_is_accepted_and_shows_its_effect(worker: RolloutWorker) -> None:
    sent = trained(worker, 1)
    receipt = worker.load(sent)
    sync.verify([receipt], sent, ["rollout-0"])
    assert receipt == Receipt("rollout-0", 1, 28, sent.checksum, receipt.canary) and receipt.canary > 0
    with computing(worker.threads):  # canary outputs differ by rounding between numbers of threads and libraries
        with adapter.base(worker.model):
            base = worker.policy.canary()
        assert receipt.canary == (worker.policy.canary() - base).abs().max().item()


def test_version_0_changes_nothing_and_is_accepted(worker: RolloutWorker) -> None:
    start = sync.pack(adapter.tensors(worker.model), 0)
    receipt = worker.load(start)
    sync.verify([receipt], start, ["rollout-0"])
    assert receipt.canary == 0.0 and not start.changes_base
    worker.load(trained(worker, 4))
    assert worker.load(start).canary == 0.0, "a new arm starts again from the base"


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        ({"tensors": 0}, (0, 28)),
        ({"tensors": 27}, (27, 28)),
        ({"version": 0}, ("version 0",)),
        ({"checksum": "0" * 64}, ("0" * 12,)),
        ({"canary": 0.0}, ("canary",)),
        ({"canary": float("nan")}, ("NaN",)),
        ({"worker": "stranger"}, ("receipt",)),
    ],
)
def test_a_receipt_that_proves_nothing_stops_the_run(worker: RolloutWorker, change: dict, tokens: tuple[object, ...]) -> None:
    sent = trained(worker, 1)
    with pytest.raises(SyncError, match=telling("version 1", "rollout-0", *tokens)):
        sync.verify([replace(worker.load(sent), **change)], sent, ["rollout-0"])


def test_an_adapter_without_tensors_stops_the_run() -> None:
    with pytest.raises(SyncError, match=telling("version 1", "tensors")):
        sync.verify([Receipt("rollout-0", 1, 0, sync.checksum_of({}), 0.0)], sync.pack({}, 1), ["rollout-0"])


def test_wrong_names_bind_nothing_and_stop_the_run(worker: RolloutWorker) -> None:
    renamed = {name.replace("base_model.", ""): t for name, t in sync.unpack(trained(worker, 1)).items()}
    before = sync.checksum_of(adapter.tensors(worker.model))
    with pytest.raises(SyncError, match=telling("rollout-0", "version 1", 28, *list(renamed)[:1])):
        worker.load(sync.pack(renamed, 1))
    assert sync.checksum_of(adapter.tensors(worker.model)) == before


def switch_off(worker: RolloutWorker) -> None:
    cast(BaseTuner, worker.model.base_model).disable_adapter_layers()


def sample_with_another_model(worker: RolloutWorker) -> None:
    worker.policy.model = copy.deepcopy(worker.policy.model)


@pytest.mark.parametrize("detach", [switch_off, sample_with_another_model])
def test_a_detached_adapter_stops_the_run(worker: RolloutWorker, detach: Callable[[RolloutWorker], None]) -> None:
    """The tensors bind and their checksum is right, but what samples does not use them: a checksum alone would miss it."""
    sent = trained(worker, 1)
    detach(worker)
    with pytest.raises(SyncError, match=telling("version 1", "canary")):
        worker.load(sent)


def test_an_adapter_that_is_stuck_at_an_old_version_stops_the_run(worker: RolloutWorker) -> None:
    """The old version still differs from the base, so the difference to the base alone would miss it."""
    worker.load(trained(worker, 1))
    sample_with_another_model(worker)
    with pytest.raises(SyncError, match=telling("version 2", "canary")):
        worker.load(trained(worker, 2, seed=1))


def test_the_same_values_under_a_new_version_are_no_fault(worker: RolloutWorker) -> None:
    first, again = trained(worker, 1), trained(worker, 2)
    assert worker.load(first).canary == worker.load(again).canary > 0
    sync.verify([worker.load(again)], again, ["rollout-0"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, -0.0, 6e-8, -1.0, float("nan")])
def test_whether_an_adapter_changes_the_base_is_what_torch_says(dtype: torch.dtype, value: float) -> None:
    b = torch.zeros(3, 5, dtype=dtype)
    b[2, 4] = value
    packed = sync.pack({"x.lora_A": torch.ones(7), "y.lora_B": b, "z.lora_B": torch.zeros(0, 4)}, 1)
    assert packed.changes_base == b.any().item()
