"""From what a user types to a class: a registered name, ``module:Class``, or a file.

A file's code is run by importing it, as ``python file.py`` would; nobody but the user may name one (suites cannot).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.errors import InputError, MissingError

if TYPE_CHECKING:
    from deidbench.anonymizers.base import Anonymizer
    from deidbench.types import Item


def is_file(target: str) -> bool:
    """``path/to/file.py`` or ``path/to/file.py:Class``."""
    return _split_file(target)[0].endswith(".py")


def _split_file(target: str) -> tuple[str, str]:
    path, colon, name = target.rpartition(":")
    return (path, name) if colon and path.endswith(".py") else (target, "")


def find_class(target: str) -> type[Anonymizer]:
    """The anonymizer class behind ``target``; a class without a registered name gets one from its own name.

    Raises InputError where there is no such thing or it is no anonymizer, MissingError where its module cannot be imported.
    """
    from deidbench import kinds

    if is_file(target):
        path, name = _split_file(target)
        return _named(_class_in(_from_file(Path(path)), name, target))
    module, colon, name = target.partition(":")
    if not colon and target not in kinds.anonymizers and Path(f"{target}.py").is_file():
        raise InputError(f"unknown anonymizer {target!r}", f"did you mean the file {target}.py?")
    if not colon or target in kinds.anonymizers:
        return kinds.anonymizers.get(target)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise InputError(
            f"{target!r} is neither a registered name, nor module:Class, nor a file",
            "e.g. blur, my_package.method:MyMethod, path/to/my_method.py:MyMethod",
        )
    _look_in(Path.cwd())
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise _import_failed(f"the module {module!r}", error) from error
    return _named(_class_in(found, name, target))


def create(target: str, params: dict[str, Any]) -> Anonymizer:
    """An instance.  Raises as :func:`find_class`, and InputError for parameters that the class does not take."""
    from deidbench import kinds

    cls = find_class(target)
    if not is_file(target) and target in kinds.anonymizers:
        return kinds.anonymizers.create(target, **params)
    known = list(inspect.signature(cls).parameters.values())
    names = [p.name for p in known]
    if not any(p.kind is p.VAR_KEYWORD for p in known) and (stray := [key for key in params if key not in names]):
        raise InputError(f"{cls.__name__} has no parameter {stray[0]!r}", f"it takes: {', '.join(names) or 'none'}")
    try:
        return cls(**params)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{cls.__name__}({_arguments(params)}): {error}", f"its parameters: {inspect.signature(cls)}"
        ) from error


def answers_elsewhere(target: str, path: Sequence[str], pickled: bytes, name: str, items: Sequence[Item]) -> Any:
    """Runs in a fresh process: fingerprint and answers of the method that travelled there.

    target: a file that the class comes from, "" where it can be imported.  path: where modules are found.
    name: what the registry called the class in the first process.
    """
    sys.path[:] = path
    if target:
        find_class(target)
    anonymizer: Anonymizer = pickle.loads(pickled)
    type(anonymizer).name = name
    anonymizer.load()
    return anonymizer.fingerprint, anonymizer.anonymize(items)


def _arguments(params: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in params.items())


def _look_in(folder: Path) -> None:
    """Modules in ``folder`` can be imported from now on, after all that could be before."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _from_file(path: Path) -> Any:
    """The module in ``path``, under its own name where that is free, so that it can be pickled and reads well in messages."""
    path = path.absolute()
    if not path.is_file():
        raise InputError(f"there is no file {path}", "check the path; a module is named my_package.method:MyMethod")
    stem = re.sub(r"\W", "_", path.stem)
    known = sys.modules.get(stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = stem if known is None and _free(stem, path) else f"checked_{stem}"
    if (known := sys.modules.get(name)) is not None and getattr(known, "__file__", None) == str(path):
        return known
    _look_in(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the ending is .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _import_failed(str(path), error) from error
    return module


def _free(stem: str, path: Path) -> bool:
    """Does ``import stem`` find nothing, or this very file (in a process that got the search path from another one)?"""
    spec = importlib.util.find_spec(stem)
    return spec is None or spec.origin == str(path)


def _import_failed(what: str, error: Exception) -> MissingError:
    from deidbench.contract import described

    if isinstance(error, ModuleNotFoundError):
        remedy = f"install what provides {error.name!r} into this environment, or name another module or file"
    else:
        remedy = f"mend it until this works: {Path(sys.executable).name} -c 'import ...'"
    return MissingError(f"{what} cannot be imported: {described(error)}", remedy)


def _class_in(module: Any, name: str, target: str) -> type[Anonymizer]:
    from deidbench.anonymizers.base import Anonymizer

    mine = {
        n: v
        for n, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, Anonymizer) and v.__module__ == module.__name__
        if not inspect.isabstract(v) and not n.startswith("_")
    }
    if not name:
        if len(mine) == 1:
            return next(iter(mine.values()))
        which = f"it holds {', '.join(mine)}" if mine else "it holds no class that derives from Anonymizer"
        remedy = f"name one: {target}:{next(iter(mine))}" if mine else _DERIVE
        raise InputError(f"{target}: which class? {which}", remedy)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise InputError(f"{target}: there is no {name!r} in it", f"it holds: {', '.join(mine) or 'no anonymizers'}")
    if not (isinstance(found, type) and issubclass(found, Anonymizer)):
        raise InputError(f"{target}: {name} is no class that derives from Anonymizer", _DERIVE)
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise InputError(f"{target}: {name} is abstract, it lacks {lacking}", f"write {lacking} in it")
    return found


_DERIVE = "from deidbench.anonymizers.base import Anonymizer;  class MyMethod(Anonymizer): ..."


def _named(cls: type[Anonymizer]) -> type[Anonymizer]:
    """A class that nobody registered is called by its own name in words: ``MyMethod`` becomes ``my-method``."""
    if "name" not in vars(cls):  # an inherited one is the parent's
        cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).replace("_", "-").lower()
    return cls
