"""DeepPrivacy2 (Hukkelås & Lindseth 2023): faces are painted anew by a GAN that never sees them.

The real program runs, in an environment of its own: see :mod:`deidbench.anonymizers.external.program` for the machinery
and ``drivers/deepprivacy2.py`` for what runs inside.  ``python -m deidbench.anonymizers.external deepprivacy2 --help``
makes the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from deidbench.anonymizers.external.files import Checkpoint, hash_of_folder, one_hash, verified
from deidbench.anonymizers.external.program import Environment, ExternalAnonymizer, Launch, run_steps, user_data
from deidbench.anonymizers.regions import check_choice, check_number
from deidbench.errors import InputError, MissingError
from deidbench.kinds import anonymizers
from deidbench.types import Anonymized, FaceResult, Item, Status

#: Names the checkout where the parameter ``repo`` does not.
REPO_ENV = "DEIDBENCH_DEEPPRIVACY2"
#: Names the interpreter of its environment where neither ``python`` nor ``environment`` does.
PYTHON_ENV = "DEIDBENCH_DEEPPRIVACY2_PYTHON"
SOURCE = "https://github.com/hukkelas/deep_privacy2"
MIRROR = "https://huggingface.co/spaces/haakohu/deep_privacy2_face"
DRIVER = Path(__file__).with_name("drivers") / "deepprivacy2.py"
#: Inside a container.
_TORCH_HOME = "/torch_home"


#: DeepPrivacy2 takes them from the package face_detection and from torchvision.  No hash is published for the first.
DSFD = Checkpoint(
    "face detector DSFD",
    "61be4ec7-8c11-4a4a-a9f4-827144e4ab4f0c2764c1-80a0-4083-bbfa-68419f889b80e4692358-979b-458e-97da-c1a1660b3314",
)
KEYPOINTS = Checkpoint(
    "keypoint detector of torchvision",
    "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
    sha256="fc266e95",
    url="https://download.pytorch.org/models/keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
)


@dataclass(frozen=True)
class Known:
    """What is known of one of its configs.

    trained_on: data sets of the generator.  detectors: their weights.  seeded: whether the output depends on the seed,
    "never", "always", or "truncation" (only where ``truncation_value`` is above 0).
    """

    trained_on: tuple[str, ...]
    seeded: str
    detectors: tuple[Checkpoint, ...] = (DSFD,)
    boxes: bool = True


_ROOT = "configs/anonymizers/"
CONFIGS = {
    "face.py": Known(("FDF256",), "truncation"),
    "face_fdf128.py": Known(("FDF128",), "truncation"),
    # Its generator is called without the latent that was drawn and truncated, and draws another: always random.
    # It needs seven body keypoints of every face, so boxes alone are not enough.
    "deep_privacy1.py": Known(("FDF128",), "always", (DSFD, KEYPOINTS), boxes=False),
    "traditional/face/gaussian.py": Known((), "never"),
    "traditional/face/maskout.py": Known((), "never"),
}


def default_repo() -> Path:
    """The checkout where no parameter names it: ``$DEIDBENCH_DEEPPRIVACY2``, else in the user's data folder."""
    named = os.environ.get(REPO_ENV)
    return Path(named).expanduser() if named else user_data() / "programs" / "deep_privacy2"


def default_environment() -> Path:
    """The virtual environment where no parameter names one."""
    return user_data() / "environments" / "deepprivacy2"


def default_weights() -> Path:
    """Where torch.hub keeps what it downloads: ``$TORCH_HOME/hub/checkpoints``, by default below ``~/.cache/torch``."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")  # noqa: PTH118
    return Path(home).expanduser() / "hub" / "checkpoints"


def how_to_create(repo: Path | None = None) -> str:
    """The commands that make checkout and environment, as they can be typed."""
    repo = repo or default_repo()
    return (
        f"git clone {SOURCE} {repo} && "
        f"python -m deidbench.anonymizers.external deepprivacy2 --create {default_environment()} --repo {repo} --download"
    )


@anonymizers.register("deepprivacy2")
class DeepPrivacy2(ExternalAnonymizer):
    """DeepPrivacy2: its own program and environment; faces inpainted by a GAN trained on FDF.

    repo: checkout of hukkelas/deep_privacy2 ("": ``$DEIDBENCH_DEEPPRIVACY2``, else the user's data folder).
    python: interpreter of its environment ("": ``$DEIDBENCH_DEEPPRIVACY2_PYTHON``, else the one that ``--create`` makes).
    environment: instead of that, "conda:NAME", "uv:FOLDER", "docker:IMAGE" or "podman:IMAGE".
    config: "configs/anonymizers/face.py" and the like (the first two folders may be left out).
    truncation_value: 0 (every face has the mean latent) to 1.
    detections: "own" (its DSFD, threshold 0.3) or "suite" (the faces that the suite found are handed over as boxes).
    device: "auto", "cpu" or "cuda"; a container gets the GPUs with "cuda" alone.
    timeout: seconds for one image (on a GPU the first one may compile kernels).  startup: seconds until it is ready.
    weights: folder of the checkpoints ("": ``$TORCH_HOME/hub/checkpoints``).

    Only the pixels within the face's box are painted; hair and surroundings stay.  Where it finds no face it returns
    its input, which is reported as ``no_face`` and withheld.
    """

    citation = "Hukkelås & Lindseth (2023), DeepPrivacy2: Towards Realistic Full-Body Anonymization, WACV, arXiv:2211.09454"
    licence = "Apache-2.0 (code); the checkpoints follow the licences of their data sets (FDF: non-commercial, research)"

    def __init__(
        self,
        repo: str = "",
        python: str = "",
        environment: str = "",
        config: str = "configs/anonymizers/face.py",
        truncation_value: float = 0.0,
        detections: str = "own",
        device: str = "auto",
        timeout: float = 300.0,
        startup: float = 600.0,
        weights: str = "",
    ) -> None:
        self.repo = repo
        self.python = python
        self.environment = environment
        self.config = config
        self.truncation_value = truncation_value
        self.detections = detections
        self.device = device
        self.timeout = timeout
        self.startup = startup
        self.weights = weights

    # -- what it declares --------------------------------------------------------------------------------------

    @property
    def _known(self) -> Known | None:
        return CONFIGS.get(self._config.removeprefix(_ROOT))

    @property
    def _config(self) -> str:
        """The config relative to the checkout, with forward slashes."""
        return self.config if self.config.startswith("configs/") else _ROOT + self.config

    @property
    def trained_on(self) -> tuple[str, ...]:  # type: ignore[override]
        """Data sets of the generator; empty for the traditional configs, and for a config that is not its own."""
        return self._known.trained_on if self._known else ()

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """With truncation 0 the seed has no effect, but for DeepPrivacy1, which draws a latent in any case."""
        seeded = self._known.seeded if self._known else "always"
        return seeded == "never" or (seeded == "truncation" and self.truncation_value == 0)

    @property
    def needs_faces(self) -> bool:  # type: ignore[override]
        return self.detections == "suite"

    @property
    def recipe(self) -> str:  # type: ignore[override]
        return f"mend what it names; an environment that works: {how_to_create(self._repo())}"

    def validate(self) -> None:
        """Raises InputError for a parameter that makes no sense.  Nothing is looked up."""
        for key in ("repo", "python", "environment", "config", "weights"):
            if not isinstance(getattr(self, key), str):
                raise InputError(f"{self.name}: {key} = {getattr(self, key)!r} is not text", f"write {key} in quotes")
        check_choice(self.name, "detections", self.detections, ("own", "suite"))
        check_choice(self.name, "device", self.device, ("auto", "cpu", "cuda"))
        check_number(self.name, "truncation_value", self.truncation_value, 0, 1)
        check_number(self.name, "timeout", self.timeout, 0, 86400, open_low=True)
        check_number(self.name, "startup", self.startup, 0, 86400, open_low=True)
        Environment.check(self.name, self.python, self.environment)
        path = PurePosixPath(self._config)
        if path.suffix != ".py" or ".." in path.parts or self.config.startswith("/") or "\\" in self.config:
            raise InputError(
                f"{self.name}: config = {self.config!r} is no config of the program",
                f"a path within its checkout: {', '.join(_ROOT + name for name in CONFIGS)}",
            )
        if self._known and not self._known.boxes and self.needs_faces:
            raise InputError(
                f"{self.name}: detections = 'suite' does not go with {self._config}: it needs body keypoints, not boxes",
                "detections = 'own', or another config",
            )

    # -- what it needs -----------------------------------------------------------------------------------------

    def _repo(self) -> Path:
        return Path(self.repo).expanduser() if self.repo else default_repo()

    def _weights(self) -> Path:
        return Path(self.weights).expanduser() if self.weights else default_weights()

    def _checkout(self) -> Path:
        """The checkout with the config in it.  Raises MissingError, InputError."""
        repo = self._repo().absolute()
        if not (repo / "dp2").is_dir():
            what = "is no checkout of it (no folder dp2)" if repo.is_dir() else "does not exist"
            raise MissingError(f"{self.name}: the program is not here: {repo} {what}", how_to_create(repo))
        if not (repo / self._config).is_file():
            there = sorted(p.relative_to(repo).as_posix() for p in (repo / "configs" / "anonymizers").rglob("*.py"))
            raise InputError(f"{self.name}: {repo} has no {self._config}", f"it has: {', '.join(there) or 'none'}")
        return repo

    def _where(self) -> Environment:
        python = self.python or ("" if self.environment else os.environ.get(PYTHON_ENV, ""))
        return Environment.resolve(self.name, python, self.environment, default_environment(), self.recipe)

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The weight files that this configuration needs, as the checkout names them.  Raises MissingError, InputError."""
        repo = self._checkout()
        needed = list(self._known.detectors if self._known and not self.needs_faces else ())
        named = re.findall(r"face_G_cfg\s*=\s*[\"']([^\"']+)[\"']", _text(repo / self._config))
        if not named:
            raise InputError(f"{self.name}: {self._config} names no face generator (face_G_cfg)", "this adapter is for faces")
        generator = repo / named[-1]
        if not generator.is_file():
            raise InputError(f"{self.name}: {self._config} names {named[-1]}, which the checkout lacks", "check the checkout")
        text = _text(generator)
        if url := re.search(r"model_url\s*=\s*[\"']([^\"']+)[\"']", text):
            md5 = re.search(r"model_md5sum\s*=\s*[\"']([0-9a-fA-F]{32})[\"']", text)
            if md5 is None:
                raise InputError(
                    f"{self.name}: {named[-1]} names weights without an MD5 to check them against", "add common.model_md5sum"
                )
            needed.insert(0, Checkpoint(f"generator of {named[-1]}", url[1].rsplit("/", 1)[-1], md5[1].lower()))
        return tuple(needed)

    def verify(self) -> dict[str, str]:
        """File name -> SHA-256 of every checkpoint, checked.  Raises MissingError, InputError."""
        folder = self._weights()
        mirror = (
            "the official host, api.loke.aws.unit.no, no longer gives them out; a mirror is the Hugging Face space "
            "haakohu/deep_privacy2_face, folder torch_home/hub/checkpoints: git lfs install && "
            f"git clone {MIRROR} && mkdir -p {folder} && cp deep_privacy2_face/torch_home/hub/checkpoints/* {folder}/"
        )
        return verified(self.name, folder, self.checkpoints(), mirror, f"{MIRROR} (torch_home/hub/checkpoints)")

    def weights_sha256(self) -> str:
        """SHA-256 over the checkpoints' SHA-256, "" for a configuration without any.  Raises as :meth:`verify` does."""
        return one_hash(self.verify())

    @property
    def fingerprint(self) -> str:
        """Hash of program, environment, driver, weights and parameters; where they lie and time-outs do not count.

        Raises MissingError where one of them is not there.
        """
        params = {k: getattr(self, k) for k in ("truncation_value", "detections", "device")}
        what = [
            type(self).__qualname__,
            self.name,
            self.version,
            self._config,
            params,
            self._where().identity(),
            hash_of_folder(self._checkout()),
            hashlib.sha256(DRIVER.read_bytes()).hexdigest(),
            self.weights_sha256(),
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    # -- how it runs -------------------------------------------------------------------------------------------

    def _launch(self, exchange: Path) -> Launch:
        repo, where, folder = self._checkout(), self._where(), self._weights()
        self.verify()
        variables = {
            "BASE_OUTPUT_DIR": "{exchange}/outputs",  # it makes folders for its caches when it starts
            "WANDB_MODE": "disabled",
            "TORCH_HOME": "{exchange}/torch_home",
        }
        mounts = {}
        if where.python is None:
            variables["TORCH_HOME"] = _TORCH_HOME
            if folder.is_dir():
                mounts[folder.absolute()] = f"{_TORCH_HOME}/hub/checkpoints"
        else:  # a link, because the folder may be called anything, and the program looks in TORCH_HOME/hub/checkpoints
            hub = exchange / "torch_home" / "hub"
            hub.mkdir(parents=True)
            if folder.is_dir():
                (hub / "checkpoints").symlink_to(folder.absolute(), target_is_directory=True)
        if self.device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        arguments = ["--exchange", "{exchange}", "--config", self._config, "--detections", self.detections]
        arguments += ["--device", self.device, "--truncation", repr(float(self.truncation_value))]
        return where.launch(
            DRIVER, arguments, program=repo, exchange=exchange, variables=variables, mounts=mounts, gpu=self.device == "cuda"
        )

    def _request(self, item: Item) -> dict[str, Any] | Anonymized:
        if not self.needs_faces:
            return {"boxes": None}
        if item.faces is None:
            return Anonymized.failed(item.id, f"{self.name} needs to know the faces: pass Item(faces=FaceFinder().find(image))")
        if not item.faces:
            return Anonymized.no_face(item.id)
        height, width = item.image.shape[:2]
        boxes, bad = [], []
        for index, face in enumerate(item.faces, 1):
            # Whole pixels within the image, as its own detector gives them.
            inside = face.box.clipped(width, height) if all(map(isfinite, face.box)) else None
            box = [] if inside is None else [round(v) for v in inside]
            if not box or box[2] <= box[0] or box[3] <= box[1]:
                bad.append((index, face.box))
            boxes.append(box)
        if bad:
            reason = "; ".join(
                f"face {i} of {len(item.faces)}: box {tuple(round(v, 1) for v in box)} has no pixel in the image"
                for i, box in bad
            )
            faces = tuple(FaceResult(Status.FAILED, reason="no pixel in the image") for _ in bad)
            return Anonymized(item.id, Status.FAILED, None, faces, f"image withheld; {reason}")
        return {"boxes": boxes}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


# ------------------------------------------------------------------------------------------------- its environment

#: Versions that were tried together (Python 3.9).  Torch is the release that its Dockerfile has.  DeepPrivacy2 asks for
#: Pillow 8.3.1, which every torchvision that it can use refuses (``pillow!=8.3.*``); setuptools and scipy are as it asks.
TORCH = ("torch==1.13.1", "torchvision==0.14.1")
PINS = ("numpy==1.22.4", "pillow==8.4.0", "scipy==1.7.1", "setuptools==59.5.0")
OTHERS = (
    *("opencv-python-headless==4.5.5.64", "scikit-image<0.20", "matplotlib<3.8", "imageio<2.28", "moviepy<2", "pyspng"),
    *("click", "cloudpickle", "cython", "easydict", "einops", "einops_exts", "filterpy", "ftfy", "ninja", "omegaconf"),
    *("pygments", "regex", "requests", "resize_right==0.0.2", "tensorboard", "termcolor", "tqdm", "validators"),
    *("webdataset==0.2.26", "wheel", "fvcore==0.1.5.post20221221", "hydra-core>=1.1", "iopath<0.1.10", "packaging"),
    *("av", "pycocotools", "pydot", "tabulate", "yacs"),
)
#: Without their dependencies, which would bring another torch.
ALONE = ("torch_fidelity==0.3.0", "timm==0.6.7", "fast_pytorch_kmeans", "fairscale")
#: Not in the package index; the two of detectron2 are compiled.  name -> (git address, commit, folder within).
FROM_GIT = {
    "tops": ("https://github.com/hukkelas/torch_ops", "", ""),
    "face_detection": ("https://github.com/hukkelas/DSFD-Pytorch-Inference", "", ""),
    "motpy": ("https://github.com/wmuron/motpy", "c77f85d27e371c0a298e9a88ca99292d9b9cbe6b", ""),
    "clip": ("https://github.com/openai/CLIP", "b46f5ac7587d2e1862f8b7b1573179d80dcdd620", ""),
    "detectron2": ("https://github.com/facebookresearch/detectron2", "96c752ce821a3340e27edd51c28a00665dd32a30", ""),
    "detectron2-densepose": (
        "https://github.com/facebookresearch/detectron2",
        "96c752ce821a3340e27edd51c28a00665dd32a30",
        "projects/DensePose",
    ),
}
#: What must import in the end.
_TRIAL = "import torch, torchvision, tops, motpy, clip, face_detection, detectron2, densepose.modeling.cse.utils"


def environment_commands(folder: Path, python: str = "3.9", sources: Mapping[str, Path] | None = None) -> list[tuple[str, ...]]:
    """The commands that make the environment in ``folder``, in order.

    python: version (3.8 or 3.9), or the path of an interpreter.  sources: name in :data:`FROM_GIT` -> a local folder to
    install instead of the git address.  Raises InputError, MissingError.
    """
    if unknown := set(sources or {}) - set(FROM_GIT):
        raise InputError(f"no such source: {', '.join(sorted(unknown))}", f"one of {', '.join(FROM_GIT)}")
    commands: list[tuple[str, ...]] = []
    uv = shutil.which("uv")
    own = python if shutil.which(python) and not re.fullmatch(r"[\d.]+", python) else shutil.which(f"python{python}")
    if uv:
        commands.append((uv, "venv", "--seed", "--python", own or python, str(folder)))
    elif own:
        commands.append((own, "-m", "venv", str(folder)))
    else:
        raise MissingError(
            f"there is no Python {python}, which DeepPrivacy2's pins need",
            "install it, or uv (which brings its own), or name an interpreter of version 3.8 or 3.9 with --python PATH",
        )
    interpreter = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    pip = (interpreter, "-m", "pip", "install", "--no-input", "--disable-pip-version-check")
    bare = (*pip, "--no-deps", "--no-build-isolation")  # their setup.py imports torch
    commands.append((*pip, "pip<24", "wheel", "setuptools==59.5.0"))
    commands.append((*pip, *TORCH, *PINS))
    commands.append((*pip, *TORCH, *PINS, *OTHERS))
    commands.append((*pip, "--no-deps", *ALONE))
    for name, (address, commit, inner) in FROM_GIT.items():
        if sources and name in sources:
            commands.append((*bare, str(sources[name].expanduser().absolute())))
        else:
            where = f"git+{address}" + (f"@{commit}" if commit else "") + (f"#subdirectory={inner}" if inner else "")
            commands.append((*bare, where))
    commands.append((interpreter, "-c", _TRIAL))
    return commands


def create_environment(
    folder: str | Path,
    repo: str | Path,
    *,
    consent: bool,
    python: str = "3.9",
    sources: Mapping[str, Path] | None = None,
    show: Callable[[str], None] = lambda _: None,
    commands: Sequence[Sequence[str]] | None = None,
) -> Path:
    """Makes an environment in which the checkout ``repo`` runs; returns its interpreter.  Minutes, and some gigabytes.

    consent: must be True, given by the user: packages are downloaded and detectron2 is compiled.
    show: is told every command before it runs.  commands: instead of :func:`environment_commands`.

    Raises InputError (no consent, folder in use), MissingError (no checkout, no Python), EnvironmentFault (a command
    failed; with the tail of what it wrote).
    """
    folder, repo = Path(folder).expanduser().absolute(), Path(repo).expanduser().absolute()
    if not (repo / "dp2").is_dir():
        raise MissingError(f"{repo} is no checkout of DeepPrivacy2", f"git clone {SOURCE} {repo}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is already there", "name another folder, or delete it")
    steps = [tuple(c) for c in (commands if commands is not None else environment_commands(folder, python, sources))]
    what = "making the environment downloads several gigabytes of packages and compiles detectron2"
    run_steps(steps, what=what, consent=consent, show=show, folder=repo, undo=f"delete {folder}")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def command_line(arguments: Sequence[str] | None = None) -> int:
    """``python -m deidbench.anonymizers.external deepprivacy2 ...``; returns the exit code."""
    import argparse

    from deidbench.errors import DeidbenchError

    parser = argparse.ArgumentParser(
        prog="python -m deidbench.anonymizers.external deepprivacy2", description="Makes the environment of DeepPrivacy2."
    )
    parser.add_argument(
        "--create", metavar="FOLDER", type=Path, default=None, help="new virtual environment (default: user's data)"
    )
    parser.add_argument("--repo", type=Path, default=None, help=f"checkout of {SOURCE}")
    parser.add_argument("--python", default="3.9", help="version (3.8, 3.9) or path of an interpreter")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER", help="local copy instead of git")
    parser.add_argument("--download", action="store_true", help="agree to the downloads; without it the commands are shown")
    given = parser.parse_args(arguments)

    def show(line: str) -> None:
        sys.stderr.write(f"+ {line}\n")

    try:
        sources = {}
        for pair in given.source:
            name, equals, path = pair.partition("=")
            if not equals:
                raise InputError(f"--source {pair} is not understood", "--source NAME=FOLDER")
            sources[name] = Path(path)
        python = create_environment(
            given.create or default_environment(),
            given.repo or default_repo(),
            consent=given.download,
            python=given.python,
            sources=sources,
            show=show,
        )
    except DeidbenchError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    sys.stdout.write(f"{python}\n")
    return 0
