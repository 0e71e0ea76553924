"""``deidbench train``: a recipe, a data set and the command line become one training."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deidbench.errors import InputError
from deidbench.toml_errors import loads

if TYPE_CHECKING:
    from deidbench.anonymizers.ganonymization.train import Result

#: What a recipe may say beside its settings.
ABOUT = {"role": str, "data": str, "trained_on": list, "licence": str}


@dataclass(frozen=True)
class Recipe:
    """A training's settings and what its data is.

    role: only persons of this role are read ("" for all).  data, trained_on, licence: go into checkpoint and card.
    settings: of :class:`deidbench.anonymizers.ganonymization.train.Settings`, those that differ from its defaults.
    """

    role: str = ""
    data: str = ""
    trained_on: tuple[str, ...] = ()
    licence: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def recipes_in(package: str) -> dict[str, str]:
    """Names and texts of the recipes that ship in a package's folder ``recipes``."""
    folder = resources.files(package) / "recipes"
    return {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml")}


def bundled_recipes() -> dict[str, str]:
    """Names and texts of the recipes for GANonymization that ship."""
    return recipes_in("deidbench.anonymizers.ganonymization")


def read_recipe(source: str, texts: Mapping[str, str], about: Mapping[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a recipe says of its training, and its settings.  source: a name out of ``texts``, or a TOML file.

    about: what it may say beside its settings, with types.  Raises InputError for one that is not there or does not validate.
    """
    if source in texts:
        text = texts[source]
    else:
        path = Path(source).expanduser()
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(sorted(texts))
            raise InputError(f"recipe {source!r} cannot be read: {error}", f"a TOML file, or one of {known}") from error
    try:
        values = loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {source}: {error}", "correct the TOML at that line") from error
    settings = values.pop("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"recipe {source}: settings is no table", "[settings] and its keys below")
    for key, value in values.items():
        if key not in about or not isinstance(value, about[key]):
            raise InputError(
                f"recipe {source}: {key} = {value!r} is not allowed", f"beside [settings] it may have {', '.join(about)}"
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}, settings


def load_recipe(source: str) -> Recipe:
    """A bundled recipe's name, or a TOML file.  Raises InputError for one that is not there or does not validate."""
    values, settings = read_recipe(source, bundled_recipes(), ABOUT)
    return Recipe(settings=settings, **values)


def train_ganonymization(
    data: Path,
    out: Path,
    recipe: Recipe,
    overrides: Mapping[str, Any],
    *,
    role: str | None = None,
    device: str = "auto",
    workers: int = 0,
    cache: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Prepares the faces of the folder ``data`` and trains, or goes on where ``out`` stopped.

    overrides: settings over the recipe's.  role: instead of the recipe's.  workers: of the preparation, 0 for one per core.
    Raises InputError, MissingError with what to type next.
    """
    from deidbench.anonymizers.ganonymization.preprocess import prepare
    from deidbench.anonymizers.ganonymization.train import default_cache, settings_from, train
    from deidbench.datasets.base import manifest_sha256
    from deidbench.datasets.folder import Folder
    from deidbench.executors import make_executor

    settings = settings_from({**recipe.settings, **overrides})
    dataset = Folder(data, role=(recipe.role if role is None else role) or None)
    samples = list(dataset.samples())
    sha = manifest_sha256({"id": s.id, "subject_id": s.subject_id, "sha256": s.sha256} for s in samples)
    pairs = prepare(
        samples, sha, settings.preparation, cache or default_cache(), quiet=quiet,
        make_pool=lambda initialise, arguments: make_executor(workers, initialise, arguments),
    )  # fmt: skip
    persons = len({s.subject_id for s in samples})
    about = {
        "data": recipe.data or f"{len(samples):,} images of {persons:,} persons of the user's own ({data.resolve().name})",
        "trained_on": recipe.trained_on or (data.resolve().name,),
        "licence": recipe.licence or "not stated",
        "data_sha256": sha,
    }
    return train(pairs, settings, out, about=about, device=device, quiet=quiet)
