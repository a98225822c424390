"""Show-o: masks, logits, greedy answers, text-to-image with the recorded draws fed back, and the training losses."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.readers import read_json
from policies.attention.masks import Omni, omni
from policies.backbones.showo import Showo, ShowoConfig
from policies.families.showo import image_blocks
from policies.parity.case import LOGITS, LOSSES, Case, Comparison
from policies.parity.mmada import branches, image_run
from policies.sampling.context import Context, write
from policies.weights import load_exactly


def compare(case: Case) -> Comparison:
    """All of a recorded Show-o case. Of masks and logits the rows of padding are left out: nobody reads them."""
    model, found, t = Reader(read(case), case), Comparison(), case.tensors
    for name in ("t2i", "mmu", "lm", "lvg", "train", "t2igen"):
        if f"{name}.mask_allowed" not in t:
            continue
        ids = _ids(case, name)
        mask = model.mask(ids)
        rows, seen = mask.real, mask.dense()[:, 0]
        if name == "lvg":
            seen = seen | _unhidden(mask)
        found.equal(f"{name}.mask_allowed", seen[rows].long(), t[f"{name}.mask_allowed"][:, 0][rows].long())
        if f"{name}.logits" in t:
            found.close(f"{name}.logits", model(ids)[rows], t[f"{name}.logits"][rows], LOGITS)
    if "mmu.generated_ids" in t:
        found.equal("mmu.generated_ids", model.answer(t["mmu.input_ids"][:1], len(t["mmu.generated_ids"])), t["mmu.generated_ids"])
    if any(name.startswith("t2igen.trace") for name in t):
        image_run(case, model, case.setting("num_vq_tokens"), found)
    if "train.losses" in t:
        _losses(case, model, found)
    return found


def read(case: Case) -> Showo:
    """The model of a case; the sizes of its Phi are in a file of their own, where they are not the released ones."""
    phi = case.directory / "phi_config.json"
    sizes = read_json(phi) if phi.exists() else None
    model = Showo(ShowoConfig(**case.config, phi=sizes))
    load_exactly(model, case.directory, ("model.safetensors",))
    return model.eval()


@dataclass(frozen=True, slots=True)
class Reader:
    """The model with the masks of its ids."""

    model: Showo
    case: Case

    def mask(self, ids: Tensor) -> Omni:
        """Who sees whom among ids [batch, length]."""
        s = self.case.setting("special")
        return omni(image_blocks(ids, s["soi"], s["eoi"], s["mmu"]), ids != s["pad"])

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary]."""
        mask = self.mask(ids)
        return self.model(ids, mask.dense()[:, 0], mask.positions())

    def answer(self, ids: Tensor, n: int) -> Tensor:
        """The n most probable next tokens behind one row of ids, one at a time, with kept keys and values."""
        context, mask = Context(self.model.states, 1, ids.device), self.mask(ids)
        hidden = context.read(ids, mask.real, mask.blocks)[:, -1]
        return write(context, hidden, self.model.head, torch.zeros(1, n), 0.0, ())[0][0]


def _unhidden(mask: Omni) -> Tensor:
    """What ``create_attention_mask_lvg`` shows and ours does not, bool [batch, row, column]: padding, to the text in front of the first
    image."""
    before = (mask.blocks > 0).cumsum(1) == 0
    causal = torch.ones(mask.real.shape[1:] * 2, dtype=torch.bool).tril()
    return causal & before[:, :, None] & ~mask.real[:, None]


def _ids(case: Case, name: str) -> Tensor:
    """The input ids of a mask: of the text-to-image run those of both branches of guidance."""
    if name != "t2igen":
        return case.tensors[f"{name}.input_ids"]
    return torch.cat([case.tensors[f"t2igen.{branch}input_ids"] for branch in branches(case.run("t2i_generate"))])


def _losses(case: Case, model: Reader, found: Comparison) -> None:
    """``Showo.forward``: cross-entropy of masked image tokens where they stand, of text one place before."""
    ids, labels = case.tensors["train.input_ids"], case.tensors["train.labels"]
    images, texts, answers = case.setting("train_batch")
    logits = model(ids)
    before = case.setting("max_seq_length") + 1
    entropy = partial(F.cross_entropy, ignore_index=-100)
    image, text, answer = logits.split((images, texts, answers))
    wanted = labels.split((images, texts, answers))
    losses = [entropy(image[:, before:].flatten(0, 1), wanted[0][:, before:].flatten())]
    losses += [entropy(x[:, :-1].flatten(0, 1), y[:, 1:].flatten()) for x, y in ((text, wanted[1]), (answer, wanted[2]))]
    found.close("train.losses", torch.stack(losses), case.tensors["train.losses"], LOSSES)
