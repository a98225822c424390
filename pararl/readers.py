"""Reading what others wrote: JSON, YAML and weights, each with one error that names the file, what is wrong and what to do.

Whatever the program reads that may be cut short, a stand-in or another file than it should be goes through here. Nothing here loads torch
before it reads tensors of torch.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pararl.config import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Kinds = dict[str, tuple[str, tuple[int, ...]]]
"""Tensors of a file by name: dtype as safetensors spells it (``"F32"``), and shape."""

COPY = "copy or fetch it again"
"""What helps against a file that is not whole."""
POINTER = b"version https://git-lfs"
"""How a git-lfs pointer begins, which stands for a file that was not fetched."""
PICKLES = (b"\x80", b"PK\x03\x04")
"""How files of ``torch.save`` begin."""


class FileError(ConfigError):
    """A file that cannot be read; its message is one line that names it, what is wrong with it and what to do."""

    def __init__(self, path: Path, wrong: str, remedy: str, line: int | None = None) -> None:
        where = path if line is None else f"{path}, line {line}"
        super().__init__(f"{where} {' '.join(wrong.split())} ({remedy})")
        self._given = (path, wrong, remedy, line)

    def __reduce__(self) -> tuple[type["FileError"], tuple[Path, str, str, int | None]]:
        return type(self), self._given  # so that it survives the way from an actor


# ---- text


def read_text(path: Path, remedy: str = COPY) -> str:
    """The text of a file in UTF-8, without the mark that Windows puts in front.

    Raises FileError for a file that is missing, a folder, not readable, a git-lfs pointer or not UTF-8.
    """
    data = _head(path, None, remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(path, f"is not UTF-8 (byte {error.start})", f"save it as UTF-8, or {remedy}") from None


def read_json(path: Path, remedy: str = COPY, keys: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in a file, which must have ``keys``. Raises FileError for anything else."""
    found = parse_json(read_text(path, remedy), path, remedy)
    if not isinstance(found, dict):
        raise FileError(path, f"holds {_name(found)} where a JSON object is expected", remedy)
    if lacking := [key for key in keys if key not in found]:
        raise FileError(path, f"lacks {', '.join(lacking)}", remedy)
    return found


def parse_json(text: str, path: Path, remedy: str = COPY, line: int | None = None) -> Any:
    """The JSON value of the text of a file, or of one ``line`` of it.

    Raises FileError, also for a key given twice, NaN and infinities, and too deep a nesting.
    """
    if not text.strip():
        raise FileError(path, "is empty", remedy, line)
    try:
        return strict_json(text)
    except RecursionError:
        raise FileError(path, "is nested too deeply to be read as JSON", remedy, line) from None
    except ValueError as error:
        raise FileError(path, f"is not JSON: {error}", remedy, line) from None


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is no JSON, also where Python would take it, and for a key given twice.

    Raises RecursionError for too deep a nesting.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"it has a {name}, which JSON does not have")


def _finite(text: str) -> float:
    if math.isfinite(found := float(text)):
        return found
    raise ValueError(f"{text[:20]} is no number that a float can hold")


def read_yaml(path: Path, remedy: str = COPY) -> Any:
    """The YAML value in a file, of plain types. Raises FileError, also for a key given twice and too deep a nesting."""
    text = read_text(path, remedy)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise FileError(path, f"is not readable as YAML: {problem}", remedy, mark.line + 1 if mark else None) from None


def parse_yaml(text: str) -> Any:
    """The YAML value of a text, of plain types. Raises yaml.YAMLError alone, whatever is wrong with it."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # PyYAML's constructors let through what their conversions raise: a thirteenth month, `!!bool maybe`.
        raise yaml.YAMLError(f"a value cannot be converted ({type(error).__name__}: {error})") from None


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.value[place][0].start_mark)
        return super().construct_mapping(node, deep)


def told(value: object) -> str:
    """A value as it may stand in a message: in part where it is long or deep."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


# ---- records


def record_of(make: Any, values: Any, path: Path, remedy: str) -> Any:
    """``make(values)``, where a file held ``values``. Raises FileError in place of what ``make`` raises for values of another form."""
    try:
        return make(values)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        cause = f"lacks {error.args[0]!r}" if isinstance(error, KeyError) and error.args else f"is of another form: {error}"
        raise FileError(path, cause, remedy) from error


# ---- tensors


def tensor_kinds(path: Path, remedy: str = COPY) -> Kinds:
    """The tensors of a safetensors file, read from its header alone. Raises FileError for a file that is not whole or another thing."""
    from safetensors import SafetensorError, safe_open

    start = _head(path, 200, remedy)
    if not start:
        raise FileError(path, "is empty", remedy)
    _check_safetensors(path, start, remedy)
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise FileError(path, _not_safetensors(path, start, str(error)), remedy) from None


def read_arrays(path: Path, remedy: str = COPY) -> "dict[str, np.ndarray]":
    """The tensors of a safetensors file as numpy's. Raises FileError as ``tensor_kinds`` does."""
    from safetensors.numpy import load_file

    return _loaded(load_file, path, remedy)


def read_tensors(path: Path, remedy: str = COPY) -> "dict[str, Tensor]":
    """The tensors of a safetensors file as torch's, on the CPU. Raises FileError as ``tensor_kinds`` does."""
    from safetensors.torch import load_file

    return _loaded(load_file, path, remedy)


def _loaded(load: Callable[[Path], dict[str, Any]], path: Path, remedy: str) -> dict[str, Any]:
    from safetensors import SafetensorError

    tensor_kinds(path, remedy)
    try:
        return load(path)
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise FileError(path, f"cannot be read: {error}", remedy) from None


def weight_files(directory: Path, names: Sequence[str] = ("model.safetensors",), remedy: str = COPY) -> list[Path]:
    """The files of a model's weights: the first of ``names`` that there is, or the parts that its ``.index.json`` lists.

    Each is seen to be whole by its header. Raises FileError where one is not, and where there are none.
    """
    for name in names:
        file, index = directory / name, directory / f"{name}.index.json"
        if not file.exists() and not index.exists():
            continue
        files = [file] if file.exists() else [directory / part for part in dict.fromkeys(parts_of(index, remedy).values())]
        for part in files:
            if part.suffix == ".safetensors":
                tensor_kinds(part, remedy)
            else:
                _check_pickle(part, remedy)
        return files
    pickled = next((file.name for form in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in sorted(directory.glob(form))), None)
    beside = f"; {pickled} is a pickle, which may run code: save it as safetensors" if pickled else ""
    raise FileError(directory, f"holds no weights: none of {', '.join(names)}{beside}", remedy)


def parts_of(index: Path, remedy: str = COPY) -> dict[str, str]:
    """The file of each tensor by an index of weights that are in several. Raises FileError for an index of another form."""
    parts = read_json(index, remedy, keys=("weight_map",))["weight_map"]
    plain = isinstance(parts, Mapping) and all(isinstance(name, str) and Path(name).name == name for name in parts.values())
    if not plain or not parts:
        raise FileError(index, "does not list the file of each tensor in its weight_map", remedy)
    return dict(parts)


def _check_pickle(path: Path, remedy: str) -> None:
    if not _head(path, 200, remedy).startswith(PICKLES):
        raise FileError(path, "is no file of torch.save", remedy)


def _check_safetensors(path: Path, start: bytes, remedy: str) -> None:
    if start[8:9] == b"{":  # behind the length of its header, which may begin with any byte
        return
    if start.startswith(PICKLES):
        raise FileError(path, "is a pickle of torch where safetensors is expected", "save it with safetensors: a pickle may run code")
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise FileError(path, "is a web page where safetensors is expected", remedy)


def _not_safetensors(path: Path, start: bytes, cause: str) -> str:
    """In words: the file's length, or what safetensors says of its header."""
    header, size = int.from_bytes(start[:8], "little"), path.stat().st_size
    short = "file not fully covered" in cause or "incomplete" in cause.lower()
    if len(start) < 9 or short or (start[8:9] == b"{" and size < header + 8 < 10**8):
        return f"is not whole: it ends after {size:,} bytes, before its last tensor"
    return f"is not safetensors: {cause}"


def _head(path: Path, size: int | None, remedy: str) -> bytes:
    """The first bytes of a file, all with None. Raises FileError where there are none, and for a git-lfs pointer."""
    if path.is_dir():
        raise FileError(path, "is a folder where a file is expected", remedy)
    if not path.exists():
        raise FileError(path, "is missing", remedy)
    if not path.is_file():
        raise FileError(path, "is no plain file", remedy)
    try:
        with path.open("rb") as file:
            data = file.read() if size is None else file.read(size)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}", "see to its permissions") from None
    if data.startswith(POINTER):
        raise FileError(path, "is a git-lfs pointer in place of the file", "fetch the file itself: git lfs pull")
    return data


def _name(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
