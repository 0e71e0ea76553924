"""One typed, lazy registry for everything that can be plugged in.

A class joins by decorator in its own file, or from an outside package by entry point::

    @anonymizers.register("blur")
    class Blur(Anonymizer): ...

    [project.entry-points."deidbench.anonymizers"]      # pyproject.toml of the outside package
    my-method = "my_package.method:MyMethod"

Built-in files are found by walking the room's package on the first look-up, so nobody edits a list.
Modules of the rooms keep heavy imports (torch, mediapipe, ...) inside functions; a look-up stays quick.
A name may carry a variant after a colon, ``deepface:ArcFace``: the class is looked up by ``deepface`` and
receives ``variant="ArcFace"``.
"""

from __future__ import annotations

import copyreg
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from deidbench.errors import InputError, MissingError

T = TypeVar("T")


def _carry_name(cls: type) -> None:
    """Pickles of ``cls`` bring its registered name along.

    A built-in class has its name as soon as its module is imported; one from an entry point only gets it here, and a worker
    process imports the module without asking the registry.  Without the name its fingerprints there would be others.
    """

    def reduce(part: Any) -> Any:
        whole = part.__reduce_ex__(4)
        return whole if isinstance(whole, str) else (_rebuilt, (type(part).name, whole[0], whole[1]), *whole[2:])

    copyreg.pickle(cls, reduce)


def _rebuilt(name: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    part = make(*arguments)
    type(part).name = name
    return part


class Registry(Generic[T]):
    """Names to classes of one kind.

    kind: singular word for messages ("anonymizer").  group: entry-point group.  package: the room that is
    walked for built-in modules.
    """

    def __init__(self, kind: str, group: str, package: str) -> None:
        self.kind, self.group, self.package = kind, group, package
        self._classes: dict[str, type[T]] = {}
        self._outside: dict[str, EntryPoint] = {}
        self._walked = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that enters the class under ``name``; a name can be taken once."""

        def enter(cls: type[T]) -> type[T]:
            old = self._classes.get(name)
            if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{self.kind} {name!r} is registered twice: {old!r} and {cls!r}")
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return enter

    def _walk(self) -> None:
        if self._walked:
            return
        self._walked = True
        room = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(room.__path__, prefix=f"{self.package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self.group):
            if point.name not in self._classes:
                self._outside[point.name] = point

    def names(self) -> list[str]:
        """All names, built-in and from outside, sorted.  Outside modules are not imported."""
        self._walk()
        return sorted({*self._classes, *self._outside})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name.partition(":")[0] in self.names()

    def get(self, name: str) -> type[T]:
        """The class behind ``name`` (without its ``:variant``).

        Raises InputError with the nearest names when there is none, MissingError when an outside package
        is there but cannot be imported.
        """
        self._walk()
        base = name.partition(":")[0]
        if base in self._classes:
            return self._classes[base]
        if base in self._outside:
            point = self._outside[base]
            try:
                cls = point.load()
            except Exception as error:  # an outsider's code may raise anything; name it and go on
                owner = point.dist.name if point.dist else point.value
                raise MissingError(
                    f"{self.kind} {base!r} from {owner} cannot be imported: {type(error).__name__}: {error}",
                    f"mend or uninstall that package (entry point {point.value!r} in group {self.group!r})",
                ) from error
            _carry_name(cls)
            return self.register(base)(cls)
        close = difflib.get_close_matches(base, self.names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(self.names())}"
        raise InputError(f"unknown {self.kind} {name!r}", f"{hint}  (deidbench ls {self.kind}s)")

    def create(self, name: str, **params: Any) -> T:
        """An instance of ``name`` with ``params``; wrong parameters are named in an InputError."""
        import inspect

        cls: Any = self.get(name)
        _, colon, variant = name.partition(":")
        if colon:
            params = {"variant": variant, **params}
        known = list(inspect.signature(cls).parameters.values())
        if not any(p.kind is p.VAR_KEYWORD for p in known):
            names = [p.name for p in known]
            for key in params:
                if key not in names:
                    if key == "variant":
                        raise InputError(
                            f"{self.kind} {name!r}: {cls.__name__} has no variants", f"use {name.partition(':')[0]!r}"
                        )
                    close = difflib.get_close_matches(key, names, n=1)
                    raise InputError(
                        f"{self.kind} {name!r} has no parameter {key!r}",
                        f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(names) or 'none'}",
                    )
        try:
            return cls(**params)  # type: ignore[no-any-return]
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.kind} {name!r}: {error}", f"deidbench ls {self.kind}s shows its parameters") from error
