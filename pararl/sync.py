"""The adapter on its way from the learner to the workers: one flat buffer, and the proof that it landed.

One buffer because Ray moves one array of 336 MB in 27 ms and the same adapter as 448 arrays in 1.2 s. Proof because the usual fault of such
pipelines is silent: an adapter that binds to nothing while the run goes on as if it learned.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pararl.types import Receipt

if TYPE_CHECKING:  # the driver and the reward workers pass buffers and receipts on without loading torch
    from torch import Tensor

ALIGNMENT = 64
"""Bytes; every tensor starts at a multiple, so that its view is aligned for any dtype."""

WORDS = {"float64": np.uint64, "float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}
"""Unsigned integers as wide as the floating-point types of torch, by their names."""

_Part = tuple[str, str, tuple[int, ...], np.ndarray]
"""Name, dtype, shape and bytes (uint8 [n]) of one tensor."""


class SyncError(RuntimeError):
    """A publish that did not land: the run must stop, since it would sample from another policy than it trains."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies in the buffer."""

    name: str
    dtype: str
    """torch's name of it, for example ``"bfloat16"``."""
    shape: tuple[int, ...]
    offset: int
    """In bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterBuffer:
    """An adapter as one flat array and its table of contents."""

    version: int
    buffer: np.ndarray
    """uint8 [bytes]; read-only where it came through Ray's object store."""
    manifest: tuple[Entry, ...]
    checksum: str
    """``checksum_of`` its tensors."""

    @property
    def changes_base(self) -> bool:
        """Whether any LoRA B is non-zero; while all are 0, the model with the adapter is the base. Read without torch, for the driver."""
        return any(self._words(entry).any() for entry in self.manifest if "lora_B" in entry.name)

    def _words(self, entry: Entry) -> np.ndarray:
        """The bits of a tensor without their signs, one unsigned integer a number: numpy has no bfloat16, and -0.0 is 0."""
        words = WORDS[entry.dtype]
        size = math.prod(entry.shape) * np.dtype(words).itemsize
        return self.buffer[entry.offset : entry.offset + size].view(words) << 1


def pack(tensors: Mapping[str, "Tensor"], version: int) -> AdapterBuffer:
    """Copy tensors of any device into one buffer, in the order of their names."""
    parts = _parts(tensors)
    entries = []
    end = 0
    for name, dtype, shape, data in parts:
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        entries.append(Entry(name, dtype, shape, offset))
        end = offset + data.size
    buffer = np.zeros(end, dtype=np.uint8)
    for entry, (_, _, _, data) in zip(entries, parts, strict=True):
        buffer[entry.offset : entry.offset + data.size] = data
    return AdapterBuffer(version, buffer, tuple(entries), _digest(parts))


def unpack(adapter: AdapterBuffer) -> dict[str, "Tensor"]:
    """The tensors, on the CPU, as views of the buffer: read from them, do not write to them."""
    import torch

    out = {}
    with warnings.catch_warnings():
        # Arrays from the object store are read-only, and torch has no such notion.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        whole = torch.from_numpy(adapter.buffer)
    for entry in adapter.manifest:
        dtype = getattr(torch, entry.dtype)
        size = int(np.prod(entry.shape)) * dtype.itemsize
        out[entry.name] = whole[entry.offset : entry.offset + size].view(dtype).view(entry.shape)
    return out


def checksum_of(tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every tensor, in the order of the names."""
    return _digest(_parts(tensors))


def verify(receipts: Sequence[Receipt], sent: AdapterBuffer, workers: Sequence[str]) -> None:
    """Raise SyncError unless every one of ``workers`` has shown by its receipt that it now samples with ``sent``."""
    problems = [] if sent.manifest else ["the adapter holds no tensors"]
    answered = {receipt.worker for receipt in receipts}
    problems += [f"{name} gave no receipt" for name in workers if name not in answered]
    # Version 0 and an adapter whose every B is 0 are the base: there no canary can change.
    must_change = sent.changes_base
    for receipt in receipts:
        if receipt.version != sent.version:
            problems.append(f"{receipt.worker} holds version {receipt.version}")
        if receipt.tensors != len(sent.manifest):
            problems.append(f"{receipt.worker} bound {receipt.tensors} of {len(sent.manifest)} tensors")
        if receipt.checksum != sent.checksum:
            problems.append(f"{receipt.worker} holds other values (checksum {receipt.checksum[:12]}, sent {sent.checksum[:12]})")
        if math.isnan(receipt.canary):
            problems.append(f"{receipt.worker} gives NaN logits")
        elif must_change and receipt.canary == 0:
            problems.append(f"{receipt.worker} samples from the base: the adapter is not zero, but no canary logit changed")
    if problems:
        raise SyncError(
            f"adapter version {sent.version} did not land: {'; '.join(problems)}. Samples would not come from the policy that is trained. "
            "Check that workers and learner attach the adapter to the same policy, with the same rank and targets, and that it is on"
        )


def _parts(tensors: Mapping[str, "Tensor"]) -> list[_Part]:
    import torch

    parts = []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # Bytes through torch's own view, because numpy has no bfloat16.
        data = tensor.flatten().view(torch.uint8).numpy()
        parts.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data))
    return parts


def _digest(parts: Sequence[_Part]) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, data in parts:
        # Names and shapes as well: the same bytes under other names are another adapter.
        digest.update(f"{name}|{dtype}|{shape}|".encode())
        digest.update(data.data)
    return digest.hexdigest()
