"""The policy that a loss compares with: the base, or the adapter as it was after some update."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft import PeftModel
from torch import Tensor

from pararl import adapter


class Reference:
    """The base until the first ``refresh``."""

    def __init__(self, peft: PeftModel) -> None:
        self.peft = peft
        self.values: dict[str, Tensor] | None = None
        """Its adapter; None = the base."""
        self.version = 0

    def refresh(self, version: int) -> None:
        """From now on the reference is the policy as it is, of that version."""
        self.values = {name: x.clone() for name, x in adapter.tensors(self.peft).items()}
        self.version = version

    def load(self, values: Mapping[str, Tensor], version: int) -> None:
        """From now on the reference has these values; the base where there are none."""
        self.values, self.version = dict(values) or None, version

    def is_policy(self, version: int) -> bool:
        """Whether it is the policy of that version, refreshed after its last update."""
        return self.values is not None and self.version == version

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block the policy is the reference; the adapter comes back at the end."""
        if self.values is None:
            with adapter.base(self.peft):
                yield
            return
        own = {name: x.clone() for name, x in adapter.tensors(self.peft).items()}
        adapter.load_tensors(self.peft, self.values)
        try:
            yield
        finally:
            adapter.load_tensors(self.peft, own)
