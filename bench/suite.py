"""The suite: one validated TOML file that says what is compared, on what, and how.

Unknown keys and wrong values are refused with the file's line.  A suite may extend another one (a bundled suite by
name, or a file); its tables are laid over the base's, and its methods are added to the base's::

    [suite]
    name = "mine"
    extends = "deidbench-v1"

    [[methods]]
    name = "my-method"

What differs from the frozen protocol that the suite names is found here and printed with every result.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deidbench.errors import SuiteError
from deidbench.toml_errors import complaint, line_of, loads

#: Frozen protocols; each is the bundled suite of that name.
PROTOCOLS = ("deidbench-v1", "deidbench-v2", "deidbench-v3")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteTable(_Strict):
    #: Of the suite and of its folder under ``results``: letters, digits, dot, dash and underscore.
    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    #: For people: stands above the report.
    title: str = ""
    #: The frozen protocol that figures are quoted under; what differs from it is printed with every result.
    protocol: str = "deidbench-v1"
    #: The suite that this one is laid over: a bundled one by name, or a file (beside this one, or a path).
    extends: str = ""
    #: With ``extends``: false leaves the base's methods out.
    inherit_methods: bool = True

    @field_validator("protocol")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in PROTOCOLS:
            raise ValueError(f"unknown protocol {value!r}; known: {', '.join(PROTOCOLS)}")
        return value


class PartTable(_Strict):
    """A registered part with its parameters."""

    #: As ``deidbench ls`` shows it; a variant may follow a colon.
    name: str = Field(min_length=1)
    #: Its parameters; those left out have their defaults.
    params: dict[str, Any] = Field(default_factory=dict)


class DatasetTable(PartTable):
    #: Samples of these roles are evaluated.
    roles: list[str] = Field(default=["evaluate"], min_length=1)


class AttackersTable(_Strict):
    """Where attackers learn: persons who are never evaluated.

    name, params: a data set of its own; "" is the one under evaluation.  roles: of the samples to learn from.
    """

    name: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    roles: list[str] = Field(default=["attacker_train"], min_length=1)


class MethodTable(PartTable):
    #: What results call it, unique in the suite; without one its name.
    label: str = Field(default="", max_length=60)
    #: One method per value: parameter -> values.  Exactly one parameter is swept.
    sweep: dict[str, list[float | int | str]] = Field(default_factory=dict)
    #: Control rows (original, blackout) are drawn and read differently.
    control: bool = False

    @field_validator("sweep")
    @classmethod
    def _one(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if len(value) > 1:
            raise ValueError("one parameter is swept per method; add a second [[methods]] for the other")
        if any(not values for values in value.values()):
            raise ValueError("a sweep needs at least one value")
        return value


class ProtocolTable(_Strict):
    """Numbers of the protocol; see :class:`deidbench.metrics.base.Protocol`."""

    #: "frame": whole images are anonymised.  "crop": the clear face is aligned to 112 pixels first, then anonymised.
    level: str = Field(default="frame", pattern=r"^(frame|crop)$")
    #: Of everything random: methods, splits, bootstrap draws, permutations, attackers.
    seed: int = Field(ge=0)
    #: "leave-one-out": each image against all others.  "split": ``enrolled`` images of each person are the gallery, the rest probes.
    comparison: str = Field(pattern=r"^(leave-one-out|split)$")
    #: Gallery images of each person in a split.
    enrolled: int = Field(default=1, ge=1)
    #: Ranks of the identification rates.
    ranks: list[int] = Field(min_length=1)
    #: False match rates that verification thresholds are fixed for.
    fmr: list[float] = Field(min_length=1)
    #: False positive identification rates that thresholds of open-set identification are fixed for.
    fpir: list[float] = Field(default=[0.1, 0.01], min_length=1)
    #: What a probe is compared with: each enrolled "image", or each person by the "mean" or "max" of the scores of their images.
    templates: str = Field(default="image", pattern=r"^(image|mean|max)$")
    #: How often each trained attacker learns; the attempt that does best on held-out persons counts.
    seeds: int = Field(default=3, ge=1, le=100)
    #: Level of the intervals, two-sided.
    confidence: float = Field(gt=0.5, lt=1)
    #: Bootstrap draws of persons for means and rates.
    replicates: int = Field(ge=100)
    #: Bootstrap draws for what is read off pairs of images (EER, AUC, Cllr_min, D_sys).
    curve_replicates: int = Field(ge=100)
    #: A recogniser whose rank-1 on clear images is lower is not trusted.
    min_clear_rank1: float = Field(ge=0, le=1)
    #: A recogniser whose equal error rate on clear images is higher is not trusted.
    max_clear_eer: float = Field(ge=0, le=1)


class FacesTable(_Strict):
    #: Least confidence of the face detector.
    min_score: float = Field(default=0.5, gt=0, lt=1)
    #: Images whose shorter side has at least so many pixels are also searched in tiles.
    tile_from: int = Field(default=800, ge=64)


class ThroughputTable(_Strict):
    """Timing: how many images, how often, and what the machine costs.  images = 0 leaves it out."""

    #: How many images are timed (the first ones); 0: nothing is timed.
    images: int = Field(default=24, ge=0)
    #: How often; six support a 95 % interval of the median by order statistics.
    repeats: int = Field(default=6, ge=2)
    #: How many of the images are also timed end to end, from file to file; 0: none.  A 99th percentile takes 100 calls: 17 and 6 repeats.
    end_to_end_images: int = Field(default=5, ge=0)
    #: Seconds that one method may take; a slower one is timed on fewer images or repeats, and its rows say so.
    max_seconds: float = Field(default=30, gt=0)
    #: Label of the method that others are compared with in speed; without one the first that is no control.
    reference: str = ""
    #: What the machine costs an hour, for the price of 1,000 images; without one no price is given.
    price_per_hour: float | None = Field(default=None, ge=0)
    #: Of that price, e.g. "EUR".
    currency: str = Field(default="", max_length=12)

    @model_validator(mode="after")
    def _priced(self) -> ThroughputTable:
        if self.price_per_hour is not None and not self.currency.strip():
            raise ValueError('price_per_hour needs a currency: currency = "EUR"')
        return self


class ReportTable(_Strict):
    #: Persons shown in the sample grid; 0 for no pictures at all.
    samples: int = Field(default=6, ge=0, le=40)


class SuiteFile(_Strict):
    #: What the suite is called, and what it is laid over.
    suite: SuiteTable
    #: What is evaluated.
    dataset: DatasetTable
    #: The numbers of the evaluation.
    protocol: ProtocolTable
    #: What is compared.
    methods: list[MethodTable] = Field(min_length=1)
    #: With whose eyes attackers look.
    recognizers: list[PartTable] = Field(min_length=1)
    #: What is measured.
    metrics: list[PartTable] = Field(min_length=1)
    #: Of emotions and attributes; metrics of utility read what they say.
    classifiers: list[PartTable] = []
    #: How faces are looked for.
    faces: FacesTable = FacesTable()
    #: Whom attackers learn from.
    attackers: AttackersTable = AttackersTable()
    #: How methods are timed.
    throughput: ThroughputTable = ThroughputTable()
    #: What the report shows.
    report: ReportTable = ReportTable()


@dataclass(frozen=True)
class MethodSpec:
    """One configured method of a comparison.

    label: unique in the suite, shown to people.  slug: unique, for file names.  family: label of the sweep it belongs
    to (its own label where it is not swept).  strength: the swept value.
    """

    label: str
    slug: str
    name: str
    params: Mapping[str, Any]
    family: str
    strength: float | None
    control: bool


@dataclass(frozen=True)
class Suite:
    """A validated suite."""

    file: SuiteFile
    origin: str
    sha256: str
    methods: tuple[MethodSpec, ...]
    deviations: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.file.suite.name


def bundled(*, collections: bool = False) -> dict[str, str]:
    """Bundled suites (or the collections of several, :mod:`deidbench.collection`): name -> text."""
    folder = resources.files("deidbench.suites")
    texts = {f.name.removesuffix(".toml"): f.read_text("utf-8") for f in folder.iterdir() if f.name.endswith(".toml")}
    return {name: text for name, text in texts.items() if holds_several(text) == collections}


def holds_several(text: str) -> bool:
    """Whether the TOML ``text`` is a collection of suites and no suite itself."""
    return re.search(r"^[ \t]*\[[ \t]*collection[ \t]*\]", text, re.MULTILINE) is not None


def load_suite(source: str | Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Suite:
    """Reads a suite: the name of a bundled one, or a file.

    only: labels or sweep names; other methods are left out (controls too, unless named).

    overrides: ``table.key=value`` with a TOML value (a bare word is taken as a string), laid over the file.
    Raises SuiteError naming file and line.
    """
    return _made(*_read(str(source), ()), overrides, only)


def suite_of(raw: Mapping[str, Any], origin: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Suite:
    """The suite of tables that are at hand, as :func:`load_suite` reads them from a file.  origin: named in errors."""
    merged, inherited = _merged(copy.deepcopy(dict(raw)), Path(), (origin,))
    return _made(merged, "", origin, inherited, overrides, only)


def _made(raw: dict[str, Any], text: str, origin: str, inherited: int, overrides: Sequence[str], only: Sequence[str]) -> Suite:
    for override in overrides:
        _override(raw, override)
    file = _validate(raw, text, origin, inherited)
    frozen = _validate(*_read(file.suite.protocol, ()))
    methods = _expand(file, text, origin, inherited)
    if (against := file.throughput.reference) and against not in {m.label for m in methods}:
        raise SuiteError(
            f"throughput.reference: the suite {file.suite.name!r} has no method {against!r}",
            f"it has: {', '.join(m.label for m in methods)}",
        )
    if only:
        known = {name for m in methods for name in (m.label, m.family, m.slug)}
        for name in only:
            if name not in known:
                raise SuiteError(
                    f"--only {name}: the suite {file.suite.name!r} has no such method",
                    f"it has: {', '.join(m.label for m in methods)}",
                )
        methods = tuple(m for m in methods if {m.label, m.family, m.slug} & set(only))
        kept = {m.family for m in methods}
        file = file.model_copy(update={"methods": [m for m in file.methods if (m.label or m.name) in kept]})
    digest = hashlib.sha256(file.model_dump_json().encode()).hexdigest()
    return Suite(file, Path(origin).name, digest, methods, _deviations(file, frozen))


def _is_file(path: Path) -> bool:
    """False also for what no file can be called, where pathlib raises OSError."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(source: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], str, str, int]:
    """(raw tables with bases laid under, text, origin, number of inherited methods) of a suite by name or path."""
    import difflib

    path = Path(source)
    names = bundled()
    if source in names:
        text, origin = names[source], f"{source}.toml"
    elif _is_file(path):
        try:
            text, origin = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"cannot read the suite {path}: {error}", "a suite is a UTF-8 TOML file") from error
    else:
        several = bundled(collections=True)
        if source in several:
            raise _several(source)
        close = difflib.get_close_matches(source, [*names, *several], n=2, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else f"bundled suites: {', '.join(sorted([*names, *several]))}"
        )
        raise SuiteError(f"no suite {source!r}: neither a file nor a bundled suite", hint)
    if origin in seen:
        raise SuiteError(
            f"{origin}: suites extend one another in a circle: {' -> '.join((*seen, origin))}", "take one 'extends' out"
        )
    try:
        raw = loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{origin}: not valid TOML: {error}", "see https://toml.io for the format") from error
    if "collection" in raw:
        raise _several(source)
    merged, inherited = _merged(raw, path if _is_file(path) else Path(), (*seen, origin))
    return merged, text, origin, inherited


def _several(source: str) -> SuiteError:
    return SuiteError(
        f"{source} is no suite, it holds several of them", f"deidbench run {source} lists them and says what data each needs"
    )


def _merged(raw: dict[str, Any], path: Path, seen: tuple[str, ...]) -> tuple[dict[str, Any], int]:
    """``raw`` with the tables of its base laid under, and the number of inherited methods.  path: of its file."""
    head = raw.get("suite")
    base_name = head.get("extends", "") if isinstance(head, dict) else ""
    if not base_name or not isinstance(base_name, str):
        return raw, 0
    sibling = path.parent / base_name
    base, _, _, _ = _read(str(sibling) if path.name and _is_file(sibling) else base_name, seen)
    assert isinstance(head, dict)
    merged, inherited = {**base, **raw}, 0
    for name in ("dataset", "protocol", "faces", "attackers", "throughput", "report", "suite"):
        ours, theirs = raw.get(name), base.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            # another data set brings its own parameters
            if name in ("dataset", "attackers") and ours.get("name", theirs.get("name")) != theirs.get("name"):
                continue
            merged[name] = {**theirs, **ours}
    if head.get("inherit_methods", True) is True and isinstance(raw.get("methods"), list):
        merged["methods"] = [*base.get("methods", []), *raw["methods"]]
        inherited = len(base.get("methods", []))
    return merged, inherited


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SuiteError(f"override {override!r} is not of the form table.key=value", "e.g. --set protocol.seed=7")
    try:
        parsed = loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    table: Any = raw
    if keys[0] in ("methods", "recognizers", "classifiers", "metrics") and len(keys) == 3:
        table, keys = _params_of(raw, override, keys), keys[2:]
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise SuiteError(
                f"override {override!r}: {key!r} is not a table", "lists such as methods are changed in the suite file"
            )
    if keys == ["dataset", "name"] and table.get("name") != parsed:
        table.pop("params", None)
    table[keys[-1]] = parsed


def _params_of(raw: Mapping[str, Any], override: str, keys: Sequence[str]) -> dict[str, Any]:
    """The parameters of a part of a list: ``methods.NAME.PARAMETER=value``, by label or name."""
    parts = [p for p in raw.get(keys[0], []) if isinstance(p, dict)]
    found = [p for p in parts if p.get("label") == keys[1]] or [p for p in parts if p.get("name") == keys[1]]
    if len(found) != 1:
        names = ", ".join(str(p.get("label") or p.get("name")) for p in parts)
        how_many = "several" if found else "no"
        raise SuiteError(
            f"override {override!r}: {keys[0]} has {how_many} {keys[1]!r}", f"it has: {names}; labels tell them apart"
        )
    params: dict[str, Any] = found[0].setdefault("params", {})
    return params


def _validate(raw: Mapping[str, Any], text: str, origin: str, inherited: int) -> SuiteFile:
    try:
        return SuiteFile.model_validate(raw)
    except ValidationError as error:
        raise SuiteError(*complaint(error, SuiteFile, text, origin, inherited)) from None


def _expand(file: SuiteFile, text: str, origin: str, inherited: int) -> tuple[MethodSpec, ...]:
    """Sweeps unrolled, labels and slugs made unique."""
    specs: list[MethodSpec] = []
    labels: set[str] = set()
    slugs: set[str] = set()
    for i, method in enumerate(file.methods):
        family = method.label or method.name
        variants: list[tuple[str, dict[str, Any], float | None]] = [(family, dict(method.params), None)]
        for key, values in method.sweep.items():
            variants = [
                (
                    f"{family} {v:g}" if isinstance(v, float | int) else f"{family} {v}",
                    {**method.params, key: v},
                    float(v) if isinstance(v, float | int) else None,
                )
                for v in values
            ]
        for label, params, strength in variants:
            if label in labels:
                raise SuiteError(
                    f"{origin}:{line_of(text, ('methods', i - inherited))}: two methods are called {label!r}",
                    'give one of them a label = "..."',
                )
            labels.add(label)
            base = re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "method"
            slug, n = base, 2
            while slug in slugs:
                slug, n = f"{base}-{n}", n + 1
            slugs.add(slug)
            specs.append(MethodSpec(label, slug, method.name, params, family, strength, method.control))
    return tuple(specs)


def _deviations(file: SuiteFile, frozen: SuiteFile) -> tuple[str, ...]:
    """In words, what differs from the frozen protocol.  Data set and methods are what a user brings; they may differ."""
    found = []
    for table in ("protocol", "faces"):
        ours, theirs = getattr(file, table), getattr(frozen, table)
        for key in type(ours).model_fields:
            if getattr(ours, key) != getattr(theirs, key):
                found.append(f"{table}.{key} is {getattr(ours, key)}, {frozen.suite.name} has {getattr(theirs, key)}")
    for table in ("recognizers", "classifiers", "metrics"):
        for part in getattr(frozen, table):
            if part not in getattr(file, table):
                found.append(f"{table}: {part.name} is left out or changed")
        for part in getattr(file, table):
            if part.name not in {p.name for p in getattr(frozen, table)}:
                found.append(f"{table}: {part.name} is added")
    controls = {m.name for m in frozen.methods if m.control}
    for name in sorted(controls - {m.name for m in file.methods if m.control}):
        found.append(f"the control row {name!r} is missing")
    if file.dataset.name == frozen.dataset.name:
        if file.dataset.params != frozen.dataset.params:
            found.append(f"dataset.params is {file.dataset.params}, {frozen.suite.name} has {frozen.dataset.params}")
        if file.dataset.roles != frozen.dataset.roles:
            found.append(f"dataset.roles is {file.dataset.roles}, {frozen.suite.name} has {frozen.dataset.roles}")
    return tuple(found)
