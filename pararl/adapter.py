"""The LoRA adapter of a policy, through PEFT: attach, read, load, save, and switch it off.

Learner and rollout workers attach it the same way, so that the same tensors give the same model on both sides.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor

from pararl.adapter_files import CONFIG, REMEDY, TENSORS, AdapterFiles, refuse
from pararl.card import CARD, Told, adapter_card
from pararl.files import atomic_folder
from pararl.readers import FileError, read_tensors

if TYPE_CHECKING:
    from policies.policy import Policy

NAME = "default"
"""PEFT's name of the adapter that is trained. A model may hold others, a reference for instance; they are left alone here."""


def attach(policy: "Policy", rank: int, alpha: int, seed: int = 0) -> PeftModel:
    """Inject a new LoRA adapter into ``policy.model``, in place, at ``policy.lora_targets``.

    A is drawn from ``seed`` (torch's own random state is left as it was), B is 0: version 0 equals the base exactly. ``policy.model`` stays
    the same object, frozen but for the adapter and in the mode (train or eval) it was in. Raises ValueError when the policy already has an
    adapter, or when its targets match no layer.
    """
    if tuner_layers(policy.model):
        raise ValueError("this policy already has an adapter: load a fresh policy, or load_tensors into the adapter it has")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(policy.model, lora_config(policy, rank, alpha), adapter_name=NAME)
    # PEFT's new modules start in training mode.
    model.train(policy.model.training)
    return model


def lora_config(policy: "Policy", rank: int, alpha: int) -> LoraConfig:
    """PEFT's configuration of an adapter of the policy."""
    parameters = list(policy.lora_parameters) or None
    # No dropout: learner and workers must give a rollout the same log-probabilities right after a sync.
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=policy.lora_targets, target_parameters=parameters)


def tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by name, sorted; detached, but sharing memory with the model. The names are those of the saved file."""
    found = {name.replace(f".{NAME}.", "."): p.detach() for name, p in model.named_parameters() if "lora_" in name and f".{NAME}." in name}
    return dict(sorted(found.items()))


def load_tensors(model: PeftModel, values: Mapping[str, Tensor]) -> int:
    """Copy ``values`` into the adapter, in place; returns how many tensors were bound.

    Raises ValueError, with nothing copied, unless names, shapes and dtypes are exactly those of the adapter.
    """
    own = tensors(model)
    if not own:
        raise ValueError("the model has no adapter to load into: attach one first")
    # copy_ would cast another dtype and broadcast another shape without a word.
    kinds = {name: (_kind(own[name]), _kind(values[name])) for name in own if name in values}
    problems = {
        "missing": [name for name in own if name not in values],
        "left over": [name for name in sorted(values) if name not in own],
        "different": [f"{name} is {theirs}, not {ours}" for name, (ours, theirs) in kinds.items() if ours != theirs],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if names[3:] else ''}" for what, names in problems.items() if names
        )
        raise ValueError(f"the tensors do not fit the adapter ({told}): use the same policy, rank and targets on both sides")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])
    return len(own)


def start_from(model: PeftModel, directory: Path) -> None:
    """Give the adapter the values of another one in a PEFT directory, whatever their dtype. Raises FileError where they do not fit, or are
    not finite."""
    _fill(model, AdapterFiles.read(directory))


def load(policy: "Policy", directory: Path) -> PeftModel:
    """Attach the adapter of a PEFT directory to ``policy.model``, in place and frozen, in the mode (train or eval) that it was in.

    Raises FileError unless the directory holds every tensor of its configuration on this policy, none more, and finite numbers alone. The
    policy is then as it was. Raises ValueError when the policy already has an adapter.
    """
    if tuner_layers(policy.model):
        raise ValueError("this policy already has an adapter: load a fresh policy")
    found = AdapterFiles.read(directory)
    training = policy.model.training
    try:
        config = LoraConfig.from_pretrained(str(directory), inference_mode=True)
        with torch.random.fork_rng():  # PEFT draws values that are replaced below
            model = get_peft_model(policy.model, config, adapter_name=NAME)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FileError(directory / CONFIG, f"does not fit the policy: {error}", REMEDY) from error
    model.train(training)
    try:
        _fill(model, found)
    except FileError:
        cast(Any, model.base_model).unload()
        raise
    return model


def _fill(model: PeftModel, found: AdapterFiles) -> None:
    """Copy the tensors of a directory into an adapter. Raises FileError where they are not its own, or not finite."""
    own, file = tensors(model), found.directory / TENSORS
    shapes = {name: (tuple(x.shape), found.kinds[name][1]) for name, x in own.items() if name in found.kinds}
    problems = {
        "missing": [name for name in own if name not in found.kinds],
        "left over": [name for name in found.kinds if name not in own],
        "of another shape": [f"{name} is {list(theirs)}, not {list(ours)}" for name, (ours, theirs) in shapes.items() if ours != theirs],
    }
    refuse(found.directory, "the policy", problems)
    values = read_tensors(file, REMEDY)
    if broken := [name for name, x in values.items() if not x.isfinite().all()]:
        raise FileError(file, f"has numbers that are not finite in {len(broken)} of its tensors ({broken[0]}, ...)", REMEDY)
    load_tensors(model, {name: values[name].to(x.device, x.dtype) for name, x in own.items()})


def save(model: PeftModel, directory: Path, policy_name: str, told: Told | None = None) -> None:
    """Write the adapter as a plain PEFT directory: ``adapter_config.json``, ``adapter_model.safetensors`` and its card, all or none.

    ``policy_name`` (what ``policies.load`` takes) is recorded as the base model, and ``told`` is what the card says of the run. A directory
    that exists is replaced as a whole. ``PeftModel.from_pretrained(policies.load(policy_name).model, directory)`` loads it.
    """
    model.peft_config[NAME].base_model_name_or_path = policy_name
    with atomic_folder(directory) as temporary:
        # Asked to find out by itself whether the embeddings changed, PEFT would look for the base model on the hub.
        model.save_pretrained(str(temporary), selected_adapters=[NAME], save_embedding_layers=False)
        # In place of PEFT's, which leaves every field open.
        (temporary / CARD).write_text(adapter_card(policy_name, told), encoding="utf-8")


@contextmanager
def base(model: PeftModel) -> Iterator[None]:
    """Within the block the adapter is off and the model is the base, bit for bit. Blocks may be nested.

    It does what ``PeftModel.disable_adapter`` does, but for the inventory of the whole model, in a fifth of the time. PEFT freezes an
    adapter that is off: do not call ``backward`` inside.
    """
    # The outer of two nested blocks keeps it off: the inner one must not switch it on at its end.
    if any(layer.disable_adapters for layer in tuner_layers(model)):
        yield
        return
    tuner = cast(BaseTuner, model.base_model)
    tuner.disable_adapter_layers()
    try:
        yield
    finally:
        tuner.enable_adapter_layers()


def tuner_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    """The layers of ``model`` that an adapter wraps."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
