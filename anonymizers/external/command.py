"""Any program as an anonymizer: a recipe, or a command that stands in the suite."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deidbench.anonymizers.base import Anonymizer
from deidbench.anonymizers.external import recipe as recipes
from deidbench.anonymizers.external.files import Checkpoint, hash_of_folder, one_hash, verified
from deidbench.anonymizers.external.program import (
    Environment,
    Exchange,
    ExternalAnonymizer,
    Launch,
    NoOutput,
    OutputFault,
    run_command,
    tail,
    tidy,
    user_data,
)
from deidbench.anonymizers.external.recipe import Recipe
from deidbench.anonymizers.regions import check_choice, check_number, image_fault
from deidbench.errors import InputError, MissingError
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, Image, Item, Status
from deidbench.weights import sha256_of

DRIVERS = Path(__file__).with_name("drivers")


@anonymizers.register("command")
class Command(Anonymizer):
    """Any program: a recipe (``command:deface``, ``command:./mine.toml``) or a command of your own.

    variant: the recipe, after the colon.  Its options are parameters: ``deidbench recipe show NAME`` lists them.
    command: instead of a recipe, the program and its arguments with {in} and {out}, e.g. "python my.py {in} {out}"; also {seed},
        {work} (an empty folder), {device}.  No shell is involved; paths are relative to the folder you are in.
    output: where the program leaves the picture, if not in {out}: may hold {in}, {out}, {work}, {name}, {stem}.
    per: "image" (the default of commands) or "folder" ({in} and {out} are then folders, and one call does a batch).
    repo: the checkout that the recipe names ("": the user's data folder).
    python, environment: where it runs ("": what ``deidbench recipe install`` made, else this interpreter); as for deepprivacy2.
    weights: folder of the weight files ("": the user's data folder).
    device: "auto", "cpu" or "cuda".  timeout: seconds for one image (0: the recipe's).

    What it leaves is checked: a picture that is missing, cannot be read or has another size is a failure, an output that is the
    input is found by the suite.  When a call for a folder fails its images are tried one by one, so that one costs itself only.
    """

    needs_faces = False
    own_process = True
    incidental = ("repo", "weights", "timeout")

    def __init__(
        self,
        variant: str = "",
        command: str = "",
        output: str = "",
        per: str = "",
        repo: str = "",
        python: str = "",
        environment: str = "",
        weights: str = "",
        device: str = "auto",
        timeout: float = 0.0,
        **options: Any,
    ) -> None:
        self.variant = variant
        self.command = command
        self.output = output
        self.per = per
        self.repo = repo
        self.python = python
        self.environment = environment
        self.weights = weights
        self.device = device
        self.timeout = timeout
        self._options = options

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_inner", "_program")}

    def params(self) -> dict[str, Any]:
        """The parameters of ``__init__``, and all options of the recipe with their values."""
        try:
            options = self.values()
        except InputError:  # no such recipe: validate() says so
            options = {}
        return {**super().params(), **options, **self._options}

    def __repr__(self) -> str:
        default = type(self)()
        given = {k: v for k, v in super().params().items() if k != "variant" and v != getattr(default, k)}
        return f"{self._title}({', '.join(f'{k}={v!r}' for k, v in {**given, **self._options}.items())})"

    # -- what the recipe says ----------------------------------------------------------------------------------
    @property
    def recipe(self) -> Recipe:
        """Raises InputError where there is none."""
        return self._loaded()[0]

    def _loaded(self) -> tuple[Recipe, Path | None]:
        if bool(self.variant) == bool(self.command):
            if not self.variant and (close := difflib.get_close_matches("command", self._options, n=1)):
                raise InputError(f"{self.name} has no parameter {close[0]!r}", "did you mean 'command'?")
            raise InputError(
                f"{self.name}: {'a recipe and a command' if self.command else 'no program'} is named",
                'write name = "command:RECIPE" (deidbench ls recipes), or params = { command = "python my.py {in} {out}" }',
            )
        if self.command:
            return recipes.inline(self.command, self.output, self.per), None
        if self.output or self.per:
            raise InputError(f"{self._title}: output and per go with command", "they are the recipe's own")
        return recipes.load(self.variant)

    @property
    def _title(self) -> str:
        return f"command:{Path(self.variant).stem}" if self.variant else self.name

    @property
    def _key(self) -> str:
        """What its folders in the user's data are called."""
        return Path(self.variant).stem if self.variant else "command"

    def _about(self, what: str) -> Any:
        """A field of the recipe, for a property that may be asked before anybody has checked."""
        try:
            inner = self._other()
            found = getattr(self.recipe.recipe, what)
            return found or getattr(inner, what) if inner is not None else found
        except InputError:
            return [] if what == "trained_on" else ""

    @property
    def citation(self) -> str:  # type: ignore[override]
        return str(self._about("citation"))

    @property
    def licence(self) -> str:  # type: ignore[override]
        return str(self._about("licence")) or "the program's own"

    @property
    def trained_on(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._about("trained_on"))

    @property
    def strength(self) -> str:  # type: ignore[override]
        return str(self._about("strength"))

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        other = self._other()
        return other.deterministic if other is not None else self.recipe.call.deterministic

    def values(self) -> dict[str, recipes.Value]:
        """All options with their values: given, else the recipe's default."""
        return {k: self._options.get(k, o.default) for k, o in self.recipe.options.items()}

    def _other(self) -> Anonymizer | None:
        """The method that does the work, where the recipe names another adapter."""
        recipe = self.recipe
        if recipe.recipe.adapter == "command":
            return None
        if "_inner" not in vars(self):
            own = {
                k: v
                for k, v in super().params().items()
                if k not in ("variant", "command", "output", "per") and v not in ("", 0.0)
            }
            if own.get("device") == "auto":
                del own["device"]
            made = anonymizers.create(recipe.recipe.adapter, **{**recipe.recipe.params, **own, **self._options})
            self._inner: Anonymizer = made
        return self._inner

    def validate(self) -> None:
        """Raises InputError for a recipe, command or parameter that makes no sense.  Nothing is looked up."""
        for key in (*recipes.OWN[:7], "weights"):
            if not isinstance(getattr(self, key), str):
                raise InputError(f"{self.name}: {key} = {getattr(self, key)!r} is not text", f"write {key} in quotes")
        check_choice(self._title, "device", self.device, ("auto", "cpu", "cuda"))
        check_choice(self._title, "per", self.per, ("", "image", "folder"))
        check_number(self._title, "timeout", self.timeout, 0, 86400)
        Environment.check(self._title, self.python, self.environment)
        recipe = self.recipe
        if (other := self._other()) is not None:
            other.validate()
            return
        for key, value in self._options.items():
            if key not in recipe.options:
                known = [*recipe.options, *recipes.OWN[4:]]
                close = difflib.get_close_matches(key, known, n=1)
                raise InputError(
                    f"{self._title} has no parameter {key!r}",
                    f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(known)}",
                )
            recipe.options[key].check(self._title, key, value)

    # -- what it needs -----------------------------------------------------------------------------------------
    @property
    def _how(self) -> str:
        """What to type where something is missing."""
        return f"deidbench recipe show {self.variant} says what it needs; deidbench recipe install {self.variant} gets it"

    def _folder(self) -> Path | None:
        """The working directory: checkout, the folder of the user's recipe, where the user is; None for a bundled package."""
        recipe, path = self._loaded()
        if recipe.program is None:
            return Path.cwd() if path is None else None if path in recipes.bundled().values() else path.parent.absolute()
        repo = self._repo()
        marker = repo / recipe.program.marker
        if not marker.exists():
            what = f"has no {recipe.program.marker}" if repo.is_dir() else "does not exist"
            raise MissingError(f"{self._title}: the program is not here: {repo} {what}", f"{self._how}, or repo = FOLDER")
        return repo / recipe.program.folder

    def _repo(self) -> Path:
        return (Path(self.repo).expanduser() if self.repo else user_data() / "programs" / self._key).absolute()

    def _weights(self) -> Path:
        return (Path(self.weights).expanduser() if self.weights else user_data() / "weights" / self._key).absolute()

    def _where(self) -> Environment:
        made = user_data() / "environments" / self._key
        if not self.python and not self.environment and not made.is_dir():
            needed = self.recipe.environment
            try:
                here = not needed.needs or importlib.util.find_spec(needed.needs) is not None
            except (ImportError, ValueError):
                here = False
            if here and (needed.needs or not needed.install):
                return Environment("python", Path(sys.executable))
        return Environment.resolve(self._title, self.python, self.environment, made, self._how)

    def verify(self) -> dict[str, str]:
        """File name -> SHA-256 of every weight file, checked.  Raises MissingError, InputError."""
        needed = [Checkpoint(w.what, w.file, w.md5, w.sha256, w.url) for w in self.recipe.weights]
        return verified(self._title, self._weights(), needed, self._how, "where it came from") if needed else {}

    def weights_sha256(self) -> str:
        """SHA-256 over the weight files' SHA-256, "" where there are none.  Raises as :meth:`verify` does."""
        other = self._other()
        return other.weights_sha256() if other is not None else one_hash(self.verify())

    @property
    def fingerprint(self) -> str:
        """Hash of recipe, options, program, environment and weights; where they lie and time-outs do not count.

        Raises MissingError where one of them is not there.
        """
        if (other := self._other()) is not None:
            return other.fingerprint
        recipe, folder = self.recipe, self._folder()
        call = recipe.call.model_dump(exclude={"timeout", "startup", "batch"})
        what: list[Any] = [type(self).__qualname__, self.version, recipe.recipe.version, call, self.values(), self.device]
        what += [{k: o.words for k, o in recipe.options.items()}, self._identity(folder), self.weights_sha256()]
        if recipe.program is not None:
            assert folder is not None
            what.append(hash_of_folder(self._repo()))
        if recipe.call.driver:
            what.append(sha256_of(self._driver()))
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def _identity(self, folder: Path | None) -> list[str]:
        """What runs: the environment where Python is at work, else the program itself; and every file that is named."""
        where, commands = self._where(), self.recipe.commands
        firsts = [c[0] for c in commands]
        found = []
        if where.python is None or not firsts or any(f == "{python}" or Path(f).name.startswith("python") for f in firsts):
            found.append(where.identity())
        for word in (w for c in commands for w in c):
            path = (folder or Path()) / word
            if word in firsts and word != "{python}" and where.python is not None:
                path = Path(self._executable(word, folder))
            try:
                if path.is_file():
                    found.append(f"{path.name} {sha256_of(path)}")
            except OSError:  # a word that cannot be a file's name
                continue
        return found

    def _executable(self, word: str, folder: Path | None) -> str:
        """The program that ``word`` means on this machine.  Raises MissingError."""
        where = self._where()
        assert where.python is not None
        beside = where.python.parent / word
        found = str(beside) if "/" not in word and beside.is_file() else shutil.which(word)
        if found is None and folder is not None and (folder / word).is_file():
            found = str(folder / word)
        if found is None:
            raise MissingError(
                f"{self._title}: there is no program {word!r}", self._how if self.variant else "check the command"
            )
        return found

    def _driver(self) -> Path:
        recipe, path = self._loaded()
        assert path is not None, "only a recipe has a driver"
        for driver in (path.parent / recipe.call.driver, DRIVERS / recipe.call.driver):
            if driver.is_file():
                return driver.absolute()
        raise MissingError(f"{self._title}: there is no driver {recipe.call.driver}", f"put it beside {path}")

    # -- how it runs -------------------------------------------------------------------------------------------
    def load(self) -> None:
        """Checks what is there; a resident program starts.  Raises MissingError, InputError, EnvironmentFault."""
        self.validate()
        if (other := self._other()) is not None:
            other.load()
            return
        self.verify()
        folder = self._folder()
        if self._where().python is not None:
            for command in self.recipe.commands:
                if command[0] != "{python}":
                    self._executable(command[0], folder)
        if self.recipe.call.per == "resident":
            self._resident().load()

    def close(self) -> None:
        """Ends a resident program.  It comes up again when it is needed."""
        for name in ("_inner", "_program"):
            if (part := vars(self).get(name)) is not None and hasattr(part, "close"):
                part.close()

    def anonymize(self, items: Sequence[Item]) -> list[Anonymized]:
        """One result per item, in order.  Raises MissingError, InputError where the program cannot be called at all."""
        self.validate()
        if (other := self._other()) is not None:
            return other.anonymize(items)
        call = self.recipe.call
        if call.per == "resident":
            return self._resident().anonymize(items)
        results: dict[int, Anonymized] = {}
        good = []
        for i, item in enumerate(items):
            if fault := image_fault(item.image):
                results[i] = Anonymized.failed(item.id, fault)
            else:
                good.append(i)
        size = 1 if call.per == "image" else call.batch
        for start in range(0, len(good), size):
            part = good[start : start + size]
            made = self._call([items[i] for i in part])
            if made is None:  # whose fault it is shows when each goes alone
                made = [one for i in part for one in self._call([items[i]]) or ()]
            results.update(zip(part, made, strict=True))
        return [results[i] for i in range(len(items))]

    def _places(self, exchange: Path, one: str) -> dict[str, recipes.Value]:
        """What the placeholders stand for; ``{exchange}`` and the like are left for the environment to fill in.

        one: name of the picture with per = "image".
        """
        where = self._where()
        single = self.recipe.call.per == "image"
        weights = str(self._weights()) if where.python is not None else "/weights"
        return {
            "in": f"{{exchange}}/in/{one}" if single else "{exchange}/in",
            "out": f"{{exchange}}/out/{one}" if single else "{exchange}/out",
            "work": "{exchange}/work",
            "exchange": "{exchange}",
            "python": "{python}",
            "program": "{program}",
            "weights": weights,
            "device": self._device(),
        }

    def _device(self) -> str:
        return ("cuda" if shutil.which("nvidia-smi") else "cpu") if self.device == "auto" else self.device

    def _launch(self, words: Sequence[str], places: Mapping[str, recipes.Value], exchange: Path, folder: Path | None) -> Launch:
        recipe, where = self.recipe, self._where()
        values = {**places, **self.values()}
        filled = recipes.expanded(words, values, recipe.options)
        variables = {k: recipes.expanded([v], values, {})[0] for k, v in recipe.call.variables.items()}
        if self.device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        if where.python is not None and words[0] != "{python}":
            filled[0] = self._executable(words[0], folder)
        mounts = {self._weights(): "/weights"} if where.python is None and recipe.weights else {}
        return where.start(
            filled, program=folder, exchange=exchange, variables=variables, mounts=mounts, gpu=self._device() == "cuda"
        )

    def _call(self, items: Sequence[Item]) -> list[Anonymized] | None:
        """The results of one call; None where it failed and more than one image was in it."""
        recipe, folder = self.recipe, self._folder()
        call = recipe.call
        timeout = call.startup + (self.timeout or call.timeout) * len(items)
        exchange = Exchange()
        try:
            names = [exchange.put(i, item.image, f".{call.format}") for i, item in enumerate(items)]
            for extra in range(len(items), call.at_least):  # copies that nobody asks for
                exchange.put(900000 + extra, items[0].image, f".{call.format}")
            places = {**self._places(exchange.folder, names[0]), "seed": items[0].seed}
            for words in recipe.commands:
                launch = self._launch(words, places, exchange.folder, folder)
                done = run_command(
                    launch.command,
                    timeout=timeout,
                    folder=launch.folder,
                    variables=launch.variables,
                    guard=exchange.folder,
                    end=launch.end,
                )
                if done.code != 0:
                    exchange.check_room(items[0].image)
                    if len(items) > 1:
                        return None
                    words_of = tail(done.errors) or tail(done.output)
                    said = f"; its last words:\n{words_of}" if words_of else "; it said nothing"
                    reason = f"{self._title} failed ({done.why}){said}"
                    return [Anonymized.failed(items[0].id, tidy(reason, exchange.folder))]
            last = tail(done.errors) or tail(done.output)
            return [self._result(exchange, name, item, last) for name, item in zip(names, items, strict=True)]
        finally:
            exchange.close()

    def _result(self, exchange: Exchange, name: str, item: Item, last: str) -> Anonymized:
        call = self.recipe.call
        single = call.per == "image"
        pattern = call.output or ("{out}" if single else "{out}/{name}")
        folder = exchange.folder
        places = {
            "in": str(folder / "in" / name) if single else str(folder / "in"),
            "out": str(folder / "out" / name) if single else str(folder / "out"),
            "work": str(folder / "work"),
            "name": name,
            "stem": Path(name).stem,
        }
        try:
            output: Image = exchange.get(pattern.format(**places), item.image, call.same_size)
        except NoOutput as fault:
            exchange.check_room(item.image)
            if call.no_output == "no_face":
                return Anonymized.no_face(item.id, f"{self._title} left no picture, as where it finds no face; image withheld")
            said = f"; its last words:\n{last}" if last else ""
            return Anonymized.failed(item.id, tidy(f"{self._title} {fault}{said}", folder))
        except OutputFault as fault:
            exchange.check_room(item.image)
            return Anonymized.failed(item.id, tidy(f"{self._title} {fault}", folder))
        return Anonymized(item.id, Status.OK, output)

    def _resident(self) -> _Driver:
        if "_program" not in vars(self):
            self._program = _Driver(self)
        return self._program


class _Driver(ExternalAnonymizer):
    """The resident program of a recipe."""

    says_boxes = False

    def __init__(self, command: Command) -> None:
        self.command = command
        call = command.recipe.call
        self.timeout = command.timeout or call.timeout
        self.startup = call.startup
        self.same_size = call.same_size
        self.name = command._title  # type: ignore[misc]
        self.recipe = command._how

    def _launch(self, exchange: Path) -> Launch:
        command = self.command
        command.verify()
        recipe, where, folder, driver = command.recipe, command._where(), command._folder(), command._driver()
        values = {**command._places(exchange, ""), **command.values()}
        variables = {k: recipes.expanded([v], values, {})[0] for k, v in recipe.call.variables.items()}
        if command.device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        mounts = {command._weights(): "/weights"} if where.python is None and recipe.weights else {}
        arguments = ["--exchange", "{exchange}", "--weights", str(values["weights"]), "--device", command._device()]
        gpu = command._device() == "cuda"
        return where.launch(driver, arguments, program=folder, exchange=exchange, variables=variables, mounts=mounts, gpu=gpu)

    def _request(self, item: Item) -> dict[str, Any] | Anonymized:
        return {"options": self.command.values()}
