"""``deidbench train classifier``: a recipe, a folder of labelled faces and the command line become one training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.training import read_recipe, recipes_in
from deidbench.types import Floats, Sample

if TYPE_CHECKING:
    from deidbench.metrics.models.classifier_training import Result

#: What a recipe may say beside its settings.
ABOUT = {
    "task": str, "role": str, "validation_role": str, "persons_of": str, "data": str, "trained_on": list, "licence": str,
    "citation": str,
}  # fmt: skip
_VOTES = "votes_"


@dataclass(frozen=True)
class ClassifierRecipe:
    """A training's settings and what its data is.

    task: "emotion" or "attributes".  role: only persons of this role are learnt from ("" for all).  validation_role: these are
    held out ("": a share of the persons).  persons_of: word of the data set whose ids the persons have, "" to keep none.
    data, trained_on, licence, citation: go into file and card.
    settings: of :class:`deidbench.metrics.models.classifier_training.Settings`, those that differ from its defaults.
    """

    task: str = "emotion"
    role: str = ""
    validation_role: str = ""
    persons_of: str = ""
    data: str = ""
    trained_on: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


def bundled_recipes() -> dict[str, str]:
    """Names and texts of the recipes for classifiers that ship."""
    return recipes_in("deidbench.metrics.models")


def load_recipe(source: str) -> ClassifierRecipe:
    """A bundled recipe's name, or a TOML file.  Raises InputError for one that is not there or does not validate."""
    values, settings = read_recipe(source, bundled_recipes(), ABOUT)
    return ClassifierRecipe(settings=settings, **values)


def train_classifier(
    data: Path,
    out: Path,
    recipe: ClassifierRecipe,
    overrides: Mapping[str, Any],
    *,
    workers: int = 0,
    threads: int = 0,
    cache: Path | None = None,
    quiet: bool = False,
    command: str = "",
) -> Result:
    """Cuts out the faces of the folder ``data`` and trains, or goes on where ``out`` stopped.

    overrides: settings over the recipe's.  workers: of the preparation, 0 for one per core.  threads: of torch, 0 for its own
    number.  Raises InputError, MissingError with what to type next.
    """
    from deidbench.anonymizers.ganonymization.train import default_cache
    from deidbench.datasets.folder import Folder
    from deidbench.executors import make_executor
    from deidbench.metrics.models.classifier_training import About, assemble, prepare, settings_from, train

    settings = settings_from({**recipe.settings, "task": recipe.task, **overrides})
    wanted = {recipe.role, recipe.validation_role} - {""}
    samples = [s for s in Folder(data).samples() if not recipe.role or s.role in wanted]
    if not samples:
        raise InputError(
            f"no image in {data} has the role {recipe.role!r}", "correct the role in the manifest, or the recipe's"
        )
    names, targets = _targets(data, samples, settings.task, settings.least_votes)
    known = [i for i, row in enumerate(targets) if np.isfinite(row).any()]
    if not known:
        raise InputError(
            f"no image in {data} has a label for task {settings.task}",
            "columns of manifest.csv: emotion or votes_CLASS; or attributes named as CelebA's",
        )
    cut = prepare(
        [samples[i] for i in known], settings, cache or default_cache().with_name("classifier-faces"), quiet=quiet,
        make_pool=lambda initialise, arguments: make_executor(workers, initialise, arguments),
    )  # fmt: skip
    place = {samples[i].id: i for i in known}
    rows = [place[id] for id in cut.ids]
    held_out = None
    if recipe.validation_role:
        held_out = np.array([samples[i].role == recipe.validation_role for i in rows], np.bool_)
    faces = assemble(
        cut.pixels,
        targets[rows],
        names,
        [samples[i].subject_id for i in rows],
        [samples[i].sha256 for i in rows],
        settings,
        held_out,
    )
    persons = len(set(faces.subjects))
    about = About(
        recipe.data or f"{len(faces.subjects):,} images of {persons:,} persons of the user's own ({data.resolve().name})",
        recipe.trained_on or (data.resolve().name,),
        recipe.licence or "not stated",
        recipe.citation,
        recipe.persons_of,
        command,
    )
    result = train(faces, settings, out, about=about, threads=threads, quiet=quiet)
    assert result is not None
    return result


def _targets(data: Path, samples: Sequence[Sample], task: str, least_votes: int) -> tuple[tuple[str, ...], Floats]:
    """Names of the classes, and their targets per sample (n, K), NaN where unknown."""
    from deidbench.metrics.models.classifier_training import emotion_targets, one_hot
    from deidbench.metrics.models.labels import ATTRIBUTES, EMOTIONS

    if task == "attributes":
        rows = [[float(s.attributes.get(name, np.nan)) for name in ATTRIBUTES] for s in samples]
        return ATTRIBUTES, np.array(rows, np.float32).reshape(len(samples), len(ATTRIBUTES))
    voted = _votes(data / "manifest.csv")
    if voted is None:
        return EMOTIONS, one_hot([s.emotion for s in samples])
    names, table = voted
    none = np.zeros(len(names), np.int64)
    return EMOTIONS, emotion_targets(np.stack([table.get(s.id, none) for s in samples]), names, least_votes)


def _votes(manifest: Path) -> tuple[list[str], dict[str, npt.NDArray[np.int64]]] | None:
    """The classes voted on and path -> votes, from the columns ``votes_CLASS``; None where there are none."""
    if not manifest.is_file():
        return None
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = [c[len(_VOTES) :] for c in reader.fieldnames or () if c.startswith(_VOTES)]
        if not names:
            return None
        out = {}
        for row in reader:
            try:
                votes = np.array([int(row[_VOTES + name] or 0) for name in names], np.int64)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{manifest}, line {reader.line_num}: votes are no whole numbers: {error}", "correct that line"
                ) from error
            if (votes < 0).any():
                raise InputError(f"{manifest}, line {reader.line_num}: there are negative votes", "correct that line")
            out[row["path"]] = votes
    return names, out
