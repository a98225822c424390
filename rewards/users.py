"""Rewards of the user's own: found by name, imported, and looked at before anything is scored."""

import sys
import traceback
import zlib
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.base import Reward
from rewards.names import file_of


def own(name: str) -> Any:
    """What the name of a reward of the user's own stands for, ``module:attribute`` or ``FILE.py:attribute``; imported but not made.

    FILE is relative to the working folder; it may import what lies beside it. Raises ValueError that says what is missing or wrong; an
    error inside the user's module passes through.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise ValueError(f"unknown reward {name!r}: a function of yours is named 'module:function' or 'FILE.py:function'")
    file = file_of(name)
    module = _module(name, module_name) if file is None else _file(name, file)
    if not hasattr(module, attribute):
        beside = Path(f"{module_name.replace('.', '/')}.py")
        hint = ""
        if file is None and beside.is_file() and beside.resolve() != Path(module.__file__ or "").resolve():
            hint = f" (that is {module.__file__}; for the file of yours write {beside}:{attribute})"
        raise ValueError(f"reward {name!r}: module {module_name!r} has no {attribute!r}{hint}")
    found = getattr(module, attribute)
    if not (isinstance(found, Reward) or callable(found)):
        raise ValueError(f"reward {name!r} is a {type(found).__name__}: it must be a function, or a Reward")
    return found


def _module(name: str, module_name: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = "install it, put its folder on PYTHONPATH, or name its file: FILE.py:function"
        raise ValueError(f"reward {name!r}: no module {error.name!r}; {hint}") from error


def _file(name: str, file: Path) -> ModuleType:
    """The module in a file, imported once, under a name that no other module has."""
    if not file.is_file():
        raise ValueError(f"reward {name!r}: there is no file {file} (it is looked for in {Path.cwd()})")
    place = file.resolve()
    known = f"{place.stem}_{zlib.crc32(str(place).encode()):08x}"
    if known in sys.modules:
        return sys.modules[known]
    spec = spec_from_file_location(known, place)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has a loader
    if str(place.parent) not in sys.path:
        sys.path.append(str(place.parent))
    module = sys.modules[known] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known]
        raise
    return module


def place_of(error: BaseException) -> str:
    """File and line of an error: where the user's code raised it, or what cannot be parsed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = Path(__file__).parent
    # Libraries may stand in for what was called (W&B for sys.exit): the user's own line says more.
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(("<", str(ours), sys.base_prefix))]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}"
