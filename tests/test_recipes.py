"""The bundled recipes, each against a stand-in with the command line of the real program; deface for real."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deidbench import cli, kinds
from deidbench.anonymizers.external import recipe as recipes
from deidbench.anonymizers.external.command import Command
from deidbench.anonymizers.external.deepprivacy2 import DeepPrivacy2
from deidbench.errors import InputError, MissingError
from deidbench.faces import FaceFinder
from deidbench.types import Item, Status

#: What issue and documentation promise.
PROMISED = {
    "deepprivacy1", "ciagan", "falco", "face-anon-simple", "fawkes", "nullface", "deface",
    "deepprivacy2-fdf128", "deepprivacy2-gaussian", "deepprivacy2-maskout", "deepprivacy2-dp1", "deepprivacy2-multimodal",
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def items(orl_folder: Path) -> list[Item]:
    pictures = [np.ascontiguousarray(cv2.imread(str(orl_folder / f"s{p}" / "1.pgm"))[..., ::-1]) for p in (1, 2, 3)]
    return [Item(f"s{i}", p, None, seed=1000 + i) for i, p in enumerate(pictures)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_all_that_was_promised_is_there() -> None:
    assert set(recipes.bundled()) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_says_where_it_comes_from(name: str) -> None:
    recipe, _ = recipes.load(name)
    made = kinds.anonymizers.create(f"command:{name}")
    assert recipe.recipe.homepage.startswith("https://")
    assert made.licence
    assert made.citation
    assert recipe.recipe.notes
    if recipe.recipe.adapter != "falco" and recipe.recipe.adapter == "command":
        made.validate()


@pytest.mark.parametrize("name", sorted(PROMISED - {"deface"}))
def test_what_is_missing_is_named_with_the_way_to_get_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", name]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "missing" in out
    assert "never run" in out or recipes.load(name)[0].recipe.tried


def test_deepprivacy2_variants_are_its_adapters() -> None:
    made: Any = kinds.anonymizers.create("command:deepprivacy2-maskout", repo="/nowhere", timeout=9.0)
    made.validate()
    inner = made._other()
    assert isinstance(inner, DeepPrivacy2)
    assert (inner.config, inner.repo, inner.timeout) == ("configs/anonymizers/traditional/face/maskout.py", "/nowhere", 9.0)
    assert made.deterministic
    assert not kinds.anonymizers.create("command:deepprivacy2-multimodal").deterministic
    assert not kinds.anonymizers.create("command:deepprivacy2-dp1").deterministic
    assert made.trained_on == ()
    assert kinds.anonymizers.create("command:deepprivacy2-fdf128").trained_on == ("FDF128",)
    with pytest.raises(MissingError, match="deepprivacy2"):
        made.load()
    with pytest.raises(InputError, match="no parameter"):
        kinds.anonymizers.create("command:deepprivacy2-maskout", blur=3).validate()


def test_falco_is_a_folder_of_finished_images(items: list[Item], tmp_path: Path) -> None:
    for item in items:
        cv2.imwrite(str(tmp_path / f"{item.id}.png"), cv2.resize(item.image[::-1, ::-1], (256, 256)))
    made = kinds.anonymizers.create("command:falco", root=str(tmp_path))
    made.load()
    made.fit([])
    results = kinds.anonymizers.create("command:falco", root=str(tmp_path)).anonymize(items)
    assert [r.status for r in results] == [Status.OK] * 3
    assert results[0].image is not None
    assert results[0].image.shape == (256, 256, 3)


# ---------------------------------------------------------------------------------------------------- the stand-ins


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def turned(item: Item) -> np.ndarray:
    return item.image[::-1, ::-1]


def test_deepprivacy1(items: list[Item], tmp_path: Path) -> None:
    """Its command line takes the target for a file where it finds a single picture."""
    repo = write(
        tmp_path / "repo",
        {
            "deep_privacy/__init__.py": "",
            "deep_privacy/cli.py": """
                import argparse, os, pathlib
                from PIL import Image
                p = argparse.ArgumentParser()
                p.add_argument("-m", choices=["fdf128_rcnn512", "fdf128_retinanet256"])
                p.add_argument("-s"); p.add_argument("-t"); p.add_argument("--opts")
                a = p.parse_args()
                key, value = a.opts.split("=")
                assert key == "anonymizer.detector_cfg.face_detector_cfg.confidence_threshold" and float(value) == 0.3
                assert os.environ["TORCH_HOME"].endswith("weights/deepprivacy1")
                sources = [c for c in pathlib.Path(a.s).iterdir() if c.suffix in (".png", ".jpg")]
                if len(sources) > 1:
                    targets = [pathlib.Path(a.t) / s.name for s in sources]
                else:
                    targets = [pathlib.Path(a.t)]
                for s, t in zip(sources, targets):
                    Image.open(s).convert("RGB").rotate(180).save(t)
            """,
        },
    )
    made: Any = kinds.anonymizers.create(
        "command:deepprivacy1", repo=str(repo), python=sys.executable, threshold=0.3, model="fdf128_retinanet256"
    )
    made.load()
    for group in (items, items[:1]):
        for item, result in zip(group, made.anonymize(group), strict=True):
            assert result.status is Status.OK, result.reason
            assert (result.image == turned(item)).all()


def test_ciagan(items: list[Item], tmp_path: Path) -> None:
    """Numbered JPEGs in numbered folders go in, a crop under another number comes out, nothing where no face is found."""
    repo = write(
        tmp_path / "repo",
        {
            "source/process_data.py": """
                import argparse, os
                from PIL import Image
                p = argparse.ArgumentParser()
                for name in ("--input", "--output", "--dlib"): p.add_argument(name)
                a = p.parse_args()
                assert os.path.isfile(a.dlib + "shape_predictor_68_face_landmarks.dat")
                for d in ("msk", "orig", "clr", "lndm"): os.mkdir(a.output + d)
                for folder in sorted(os.listdir(a.input)):
                    for d in ("msk", "orig", "clr", "lndm"): os.mkdir(os.path.join(a.output, d, folder))
                    for name in sorted((f[:-4] for f in os.listdir(os.path.join(a.input, folder)) if f[-4:] == ".jpg"), key=int):
                        picture = Image.open(os.path.join(a.input, folder, name + ".jpg"))
                        if picture.getpixel((0, 0))[0] < 5: continue
                        for d in ("clr", "lndm", "msk"): picture.save(os.path.join(a.output, d, folder, name + ".jpg"))
            """,
            "source/shape_predictor_68_face_landmarks.dat": "",
            "source/test.py": """
                import argparse, os
                from PIL import Image
                p = argparse.ArgumentParser()
                p.add_argument("--data"); p.add_argument("--ids", type=int, default=-1); p.add_argument("--model"); p.add_argument("--out")
                a = p.parse_args()
                assert os.path.isfile(a.model + ".pth")
                folders = len(os.listdir(os.path.join(a.data, "lndm")))
                n = 0
                for i in range(folders):
                    for f in sorted(os.listdir(a.data + "lndm/" + str(i))):
                        Image.open(a.data + "clr/" + str(i) + "/" + f).resize((128, 128)).save(os.path.join(a.out, str(n).zfill(6) + ".jpg"))
                        n += 1
            """,
        },
    )
    write(tmp_path / "weights", {"modelG.pth": "weights"})
    made: Any = kinds.anonymizers.create(
        "command:ciagan", repo=str(repo), python=sys.executable, weights=str(tmp_path / "weights")
    )
    made.load()
    dark = Item("dark", np.zeros((60, 60, 3), np.uint8))
    results = made.anonymize([*items, dark])
    assert [r.status.value for r in results] == ["ok", "ok", "ok", "no_face"]
    for item, result in zip(items, results, strict=False):
        assert result.image.shape == (128, 128, 3)
        small = cv2.resize(item.image, (128, 128)).astype(int)
        assert np.abs(result.image - small).mean() < 12, "each picture's own output"


@pytest.fixture(scope="module")
def an_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, str]], str]:
    """Makes a Python environment whose site-packages hold the given modules, beside our own packages; its interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    ours = importlib.util.find_spec("numpy")
    assert ours is not None and ours.origin is not None
    (site / "ours.pth").write_text(str(Path(ours.origin).parent.parent))

    def made(files: dict[str, str]) -> str:
        write(site, files)
        return str(folder / "bin" / "python")

    return made


def test_fawkes(items: list[Item], tmp_path: Path, an_environment: Callable[[dict[str, str]], str]) -> None:
    """It writes beside its input, and reads its extractors from its own package."""
    python = an_environment(
        {
            "fawkes/__init__.py": "",
            "fawkes/__main__.py": """
                import argparse, glob, os, sys
                from PIL import Image
                p = argparse.ArgumentParser()
                p.add_argument("--directory", "-d"); p.add_argument("--mode", "-m", default="low")
                p.add_argument("--batch-size", type=int); p.add_argument("--format"); p.add_argument("--gpu", default="0")
                a = p.parse_args()
                assert a.mode == "high"
                for n in (0, 2):
                    assert os.path.isfile(os.path.join(os.path.dirname(__file__), "model", "extractor_%d.h5" % n))
                for path in [p for p in glob.glob(os.path.join(a.directory, "*")) if "_cloaked" not in os.path.basename(p)]:
                    picture = Image.open(path).convert("RGB")
                    if picture.getpixel((0, 0))[0] >= 5:
                        picture.rotate(180).save("{}_cloaked.{}".format(".".join(path.split(".")[:-1]), a.format))
            """,
        }
    )
    write(tmp_path / "weights", {"extractor_0.h5": "zero", "extractor_2.h5": "two"})
    made: Any = kinds.anonymizers.create("command:fawkes", python=python, weights=str(tmp_path / "weights"), mode="high")
    with pytest.raises(InputError, match="its MD5 is"):
        made.load()
    recipe, _ = recipes.load("fawkes")
    open_recipe = tmp_path / "fawkes.toml"
    text = recipes.bundled()["fawkes"].read_text()
    for weight in recipe.weights:
        text = text.replace(f'md5 = "{weight.md5}"\n', "")
    open_recipe.write_text(text)
    made = kinds.anonymizers.create(f"command:{open_recipe}", python=python, weights=str(tmp_path / "weights"), mode="high")
    made.load()
    results = made.anonymize([*items, Item("dark", np.zeros((60, 60, 3), np.uint8))])
    assert [r.status.value for r in results] == ["ok", "ok", "ok", "no_face"], results[0].reason
    assert all((r.image == turned(i)).all() for r, i in zip(results, items, strict=False))


PIPELINE = "src/diffusers/pipelines/referencenet/pipeline_referencenet.py"
MODELS = "src/diffusers/models/referencenet"


def test_face_anon_simple(items: list[Item], tmp_path: Path, an_environment: Callable[[dict[str, str]], str]) -> None:
    """The driver assembles the pipeline as the README says, stays up, and seeds every picture."""
    pretrained = """
        class {name}:
            def __init__(self, id, subfolder): self.id, self.subfolder = id, subfolder
            @classmethod
            def from_pretrained(cls, id, subfolder=None, use_safetensors=False):
                assert use_safetensors
                return cls(id, subfolder)
    """

    def several(*names: str) -> str:
        return "\n".join(textwrap.dedent(pretrained.format(name=n)) for n in names)

    python = an_environment(
        {
            "diffusers/__init__.py": several("AutoencoderKL", "DDPMScheduler"),
            "transformers/__init__.py": several("CLIPImageProcessor", "CLIPVisionModel"),
            "face_alignment/__init__.py": """
                class LandmarksType: TWO_D = 1
                class FaceAlignment:
                    def __init__(self, kind, face_detector, device): assert (kind, face_detector, device) == (1, "sfd", "cpu")
            """,
        }
    )
    repo = write(
        tmp_path / "repo",
        {
            **{f"{p}/__init__.py": "" for p in ("src", "src/diffusers", "src/diffusers/models", MODELS, "utils")},
            **{f"{p}/__init__.py": "" for p in ("src/diffusers/pipelines", "src/diffusers/pipelines/referencenet")},
            f"{MODELS}/referencenet_unet_2d_condition.py": several("ReferenceNetModel"),
            f"{MODELS}/unet_2d_condition.py": several("UNet2DConditionModel"),
            PIPELINE: """
                class StableDiffusionReferenceNetPipeline:
                    def __init__(self, unet, referencenet, conditioning_referencenet, vae, feature_extractor, image_encoder, scheduler):
                        assert (unet.id, unet.subfolder) == ("hkung/face-anon-simple", "unet")
                        assert conditioning_referencenet.subfolder == "conditioning_referencenet"
                        assert (vae.id, vae.subfolder) == ("stabilityai/stable-diffusion-2-1", "vae")
                        assert image_encoder.id == "openai/clip-vit-large-patch14"
                    def to(self, device):
                        assert device == "cpu"
                        return self
            """,
            "utils/anonymize_faces_in_image.py": """
                import os, torch
                from PIL import Image
                def anonymize_faces_in_image(image, face_alignment, pipe, generator, face_image_size, num_inference_steps,
                                             guidance_scale, anonymization_degree):
                    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["HF_HOME"].endswith("weights/face-anon-simple")
                    assert (face_image_size, num_inference_steps, anonymization_degree) == (512, 7, 1.5)
                    if image.getpixel((0, 0))[0] < 5: return image
                    out = image.rotate(180)
                    out.putpixel((0, 0), (int(torch.randint(0, 256, (1,), generator=generator)),) * 3)
                    return out
            """,
        },
    )
    made: Any = kinds.anonymizers.create(
        "command:face-anon-simple", repo=str(repo), python=python, device="cpu", num_inference_steps=7, anonymization_degree=1.5
    )
    made.load()
    dark = Item("dark", np.zeros((60, 60, 3), np.uint8))
    results = made.anonymize([*items, dark])
    assert [r.status.value for r in results] == ["ok", "ok", "ok", "no_face"], results[0].reason
    for item, result in zip(items, results, strict=False):
        assert (result.image[1:] == turned(item)[1:]).all()
    assert (made.anonymize(items[2:])[0].image == results[2].image).all(), "whatever came before"
    changed = made.anonymize([Item("s0", items[0].image, None, seed=7)])[0]
    assert (changed.image[0, 0] != results[0].image[0, 0]).any()
    made.close()


def test_nullface(items: list[Item], tmp_path: Path) -> None:
    repo = write(
        tmp_path / "repo",
        {
            "anonymize_face.py": """
                from PIL import Image
                def anonymize_face(image_path, mask_image_path, sd_model_path, insightface_model_path, guidance_scale, num_diffusion_steps,
                                   skip, ip_adapter_scale, id_emb_scale, output_log_file, det_thresh, seed):
                    assert mask_image_path == "" and sd_model_path == "stable-diffusion-v1-5/stable-diffusion-v1-5"
                    assert insightface_model_path.endswith("weights/nullface/insightface") and (skip, seed) == (60, 1000)
                    picture = Image.open(image_path).convert("RGB")
                    return None if picture.getpixel((0, 0))[0] < 5 else picture.rotate(180).resize((512, 512))
            """,
        },
    )
    made: Any = kinds.anonymizers.create("command:nullface", repo=str(repo), python=sys.executable, device="cuda", skip=60)
    dark = Item("dark", np.zeros((60, 60, 3), np.uint8), None, seed=1000)
    results = made.anonymize([items[0], dark])
    assert [r.status.value for r in results] == ["ok", "no_face"], results[0].reason
    assert results[0].image.shape == (512, 512, 3)
    made.close()
    on_cpu: Any = kinds.anonymizers.create("command:nullface", repo=str(repo), python=sys.executable, device="cpu")
    with pytest.raises(Exception, match="needs a CUDA GPU"):
        on_cpu.load()


# ------------------------------------------------------------------------------------------------------ the real one


@pytest.fixture
def deface(request: pytest.FixtureRequest) -> Callable[..., Command]:
    if importlib.util.find_spec("deface") is None:
        pytest.skip("deface is not installed (pip install deface)")
    return lambda **params: kinds.anonymizers.create("command:deface", **params)  # type: ignore[return-value]


def test_deface_for_real(deface: Callable[..., Command], items: list[Item], finder: FaceFinder) -> None:
    """The program that people install: faces of the bundled set are found, and only there something changes."""
    # with room about the head: the bundled pictures end where the face does
    items = [Item(i.id, cv2.copyMakeBorder(i.image, 60, 60, 80, 80, cv2.BORDER_REPLICATE)) for i in items]
    results = {}
    for how in ("blur", "solid", "mosaic"):
        made = deface(replacewith=how, boxes=how == "solid", mosaicsize=12)
        made.load()
        results[how] = made.anonymize(items)
        for item, result in zip(items, results[how], strict=True):
            assert result.status is Status.OK, result.reason
            assert result.image is not None
            changed = (result.image != item.image).any(axis=2)
            [face] = finder.find(item.image)
            x, y = (round(v) for v in face.box.centre)
            assert changed[y - 15 : y + 15, x - 15 : x + 15].mean() > 0.8
            assert changed.mean() < 0.95
    solid = results["solid"][0].image
    assert solid is not None and (solid == 0).all(axis=2).mean() > 0.2


def test_deface_on_a_picture_without_a_face(deface: Callable[..., Command]) -> None:
    """It writes its input, as it does for its users; the suite finds that out."""
    sky = np.broadcast_to(np.linspace(120, 220, 80).astype(np.uint8)[:, None, None], (80, 90, 3)).copy()
    [result] = deface().anonymize([Item("sky", sky)])
    assert result.status is Status.OK
    assert result.image is not None
    assert (result.image == sky).all()


def test_deface_alone_and_in_a_batch(deface: Callable[..., Command], items: list[Item]) -> None:
    made = deface()
    together, alone = made.anonymize(items), [made.anonymize([i])[0] for i in items]
    assert all((a.image == b.image).all() for a, b in zip(together, alone, strict=True))


# ------------------------------------------------------------------------------------------------------ command line


def test_ls_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "recipes", "--json"]) == 0
    assert {r["name"].removeprefix("command:") for r in json.loads(capsys.readouterr().out)} == PROMISED
    assert main(["recipe", "show", "deface", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["options"]["replacewith"]["choices"] == ["blur", "solid", "mosaic"]
    assert main(["recipe", "show", "defase"]) == 2


def test_install_asks_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipe", "install", "deepprivacy1"]) == 2
    said = capsys.readouterr().err
    assert "needs your consent" in said
    assert "git clone https://github.com/hukkelas/DeepPrivacy " in said
    assert "checkout --quiet 230626c22b44049afed11b90db6864e8e5607d15" in said
    assert "torch==1.13.1" in said
    assert not (tmp_path / "data" / "deidbench" / "programs").exists()
    assert main(["recipe", "install", "falco"]) == 2
    assert "folder" in capsys.readouterr().err


def test_install_of_a_recipe_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a git repository on this disk, for real; the second time there is nothing to do."""
    source = write(
        tmp_path / "source",
        {"turn.py": "import sys; from PIL import Image; Image.open(sys.argv[1]).rotate(180).save(sys.argv[2])"},
    )
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(source), *words], check=True)
    recipe = tmp_path / "turner.toml"
    recipe.write_text(
        f'[recipe]\ntitle = "turns"\n[program]\nsource = "{source}"\nmarker = "turn.py"\n'
        '[call]\ncommand = ["{python}", "turn.py", "{in}", "{out}"]\n'
    )
    made: Any = kinds.anonymizers.create(f"command:{recipe}")
    with pytest.raises(MissingError, match="does not exist"):
        made.load()
    assert main(["recipe", "install", str(recipe), "--download"]) == 0
    assert "ready" in capsys.readouterr().out
    made.load()
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    [result] = made.anonymize([Item("x", image)])
    assert (result.image == image[::-1, ::-1]).all()
    first = made.fingerprint
    (tmp_path / "data" / "deidbench" / "programs" / "turner" / "turn.py").write_text("# changed by hand")
    assert made.fingerprint != first
    assert main(["recipe", "install", str(recipe)]) == 0
    assert "needs nothing" in capsys.readouterr().out
