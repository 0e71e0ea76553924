"""Collections of experiments: what a file may say, what runs, and that the table repeats the runs' own figures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from deidbench import cli
from deidbench.collection import dataset_for, given_data, is_collection, load_collection, ready, suite_for
from deidbench.errors import ExitCode, InputError, SuiteError
from deidbench.images import read_image, write_image
from deidbench.records import read_run
from deidbench.suite import load_suite
from deidbench.toml_errors import line_of

SMALL = """\
[collection]
name = "small"
title = "A small | collection"
citation = "Nobody (2020): Nothing"

[[data]]
key = "one"
title = "First"
licence = "all may use it"
get = "https://example.org/one"
layout = "one sub-folder per person"
known_as = ["Faces"]

[[data]]
key = "two"
title = "Second"
licence = "nobody may use it"
get = "https://example.org/two"
layout = "one sub-folder per person"

[[methods]]
name = "original"
control = true

[[methods]]
name = "pixelate"
params = { block = 0.2 }

[[methods]]
name = "deepprivacy2"
optional = true

[[kinds]]
name = "distance"
metrics = [{ name = "distance" }]
recognizers = [{ name = "sface" }, { name = "deepface:VGG-Face", optional = true }]
differs = ["Another recogniser."]

[[kinds.published]]
metric = "distance.cosine"
title = "Distance"
method = "pixelate"
recognizer = "sface"
value = 0.71
where = "Table 3"

[[kinds.published]]
metric = "distance.cosine"
method = "pixelate"
recognizer = "deepface:VGG-Face"
either = [0.81, 0.93]
where = "Table 3"
note = "which is which is not said"

[[kinds.published]]
metric = "distance.beyond"
method = "deepprivacy2"
recognizer = "sface"
more_than = 0.97
where = "Table 4"

[[kinds.published]]
metric = "distance.beyond"
method = "pixelate"
recognizer = "sface"
instead_of = "another one"

[[experiments]]
name = "first"
data = "one"
use = "distance"

[[experiments]]
name = "second"
title = "The second"
data = "two"
use = "distance"

[[experiments.published]]
metric = "distance.cosine"
method = "original"
recognizer = "sface"
words = "nothing moves"
where = "Figure 1"
"""
QUICK = ("--set", "protocol.replicates=200", "--set", "protocol.curve_replicates=100", "--workers", "1", "--quiet")


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, orl_folder: Path) -> Path:
    """Three persons with two images each, in a folder whose name has an equals sign."""
    root = tmp_path_factory.mktemp("few") / "a=b"
    for p in (1, 7, 14):
        (root / f"p{p}").mkdir(parents=True)
        for i in (1, 5):
            shutil.copy(orl_folder / f"s{p}" / f"{i}.pgm", root / f"p{p}" / f"{i}.pgm")
    return root


@pytest.fixture(autouse=True)
def _no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))


def _file(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_papers_collection(tmp_path: Path) -> None:
    collection = load_collection("ganonymization-paper")
    assert list(collection.data) == ["wider", "affectnet", "ck+", "faces", "celeba"]
    assert all(d.licence and d.get.startswith("http") and d.layout for d in collection.data.values())
    said = {
        (e.name, p.metric, p.method, label): p.value
        for e in collection.experiments
        for p in e.published
        for label in p.labels or [p.label]
        if p.value is not None
    }
    assert said["expression-ckplus", "emotion.retrained_macro_f1", "ganonymization", ""] == 0.69
    assert said["expression-ckplus", "emotion.macro_f1", "original", ""] == 0.99
    assert said["traits-celeba", "attributes.removal", "ganonymization", "Smiling"] == 0.047
    assert all(e.published for e in collection.experiments)
    for e in collection.experiments:
        suite = suite_for(collection, e, tmp_path, {"deepprivacy2": "", "deepface:Facenet512": ""})
        assert [m.label for m in suite.methods] == ["original", "blackout", "ganonymization"]
        assert suite.file.suite.protocol == "deidbench-v3"
        assert not [d for d in suite.deviations if d.startswith("protocol.")]
        assert suite.file.dataset.params == {"root": str(tmp_path.resolve())}
    distance = collection.experiments[0]
    assert {"deepprivacy2", "deepface:Facenet512"} >= set(ready(distance)), "the offline recognisers are always ready"
    assert "facenet512_weights" in ready(distance)["deepface:Facenet512"]


def test_a_collection_is_no_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path)
    assert is_collection("ganonymization-paper")
    assert is_collection(str(path))
    assert not is_collection("demo")
    assert not is_collection("no-such-thing")
    for source in ("ganonymization-paper", path):
        with pytest.raises(SuiteError, match=r"holds several of them\n  -> deidbench run"):
            load_suite(source)
    with pytest.raises(SuiteError, match="did you mean 'ganonymization-paper'"):
        load_suite("ganonymisation-paper")
    code, out, _ = _run(capsys, "ls", "suites", "--json")
    assert code == 0
    (row,) = [r for r in json.loads(out) if r["name"] == "ganonymization-paper"]
    assert "ck+" in row["dataset"]
    assert row["title"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "Distance"', 'titel = "Distance"', r":41: unknown key 'kinds.published.titel'\n  -> did you mean 'title'"),
        ("value = 0.71", "value = 0.71\nwords = 'some'", r":39: kinds.published: says value and words of what was published"),
        ("value = 0.71", "", "says nothing of what was published"),
        ('where = "Figure 1"', "", "where = .* is missing"),
        ("value = 0.71", "value = 'much'", r":44: kinds.published.value: .*number"),
        (
            'metric = "distance.cosine"\ntitle',
            'metric = "distance.cosinus"\ntitle',
            r":40: no quantity .*\n.*'distance.cosine'",
        ),
        ('method = "pixelate"\nrecognizer = "sface"\nvalue', 'method = "pixelat"\nrecognizer = "sface"\nvalue', "'pixelate'"),
        ('recognizer = "sface"\nvalue', 'recognizer = "dlib"\nvalue', "no recogniser or classifier 'dlib'"),
        ('data = "two"', 'data = "tow"', r":76: no \[\[data\]\] with the key 'tow'\n  -> did you mean 'two'"),
        ('data = "two"\nuse = "distance"', 'data = "two"\nuse = "distanc"', "did you mean 'distance'"),
        ('name = "second"', 'name = "first"', "experiments has 'first' twice"),
        ('metrics = [{ name = "distance" }]', "", "has no metrics"),
        ("[[methods]]", "[[methods", "not valid TOML"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SMALL
    with pytest.raises(SuiteError, match=words):
        load_collection(_file(tmp_path, SMALL.replace(old, new, 1)))


def test_lines_of_tables_in_tables() -> None:
    text = "[a]\nx = 1\n[[b]]\ny = 1\n[[b.c]]\nz = 1\n[[b]]\n[[b.c]]\nz = 2\n[[b.c]]\nw.v = 3\n"
    assert line_of(text, ("b", 0, "c", 0, "z")) == 6
    assert line_of(text, ("b", 1, "c", 0, "z")) == 9
    assert line_of(text, ("b", 1, "c", 1, "w", "v")) == 11
    assert line_of(text, ("b", 1, "c", 1, "q")) == 10
    assert line_of(text, ("nothing",)) == 1


# -- what is given ---------------------------------------------------------------------------------------------------


def test_data_have_names(tmp_path: Path, few: Path) -> None:
    collection = load_collection("ganonymization-paper")
    assert given_data(collection, [f"ck+={few}"]) == {"ck+": few}, "a folder may have an equals sign"
    for argument, words in (
        (f"ck={few}", f"did you mean --data ck\\+={few}"),
        (f"AffectNet={few}", "did you mean --data affectnet="),
        (f"orl={few}", "it knows: wider, affectnet"),
        (str(few), "must know which data that is"),
        ("ck+", "KEY one of wider"),
        (f"ck+={tmp_path / 'nothing'}", "no such folder"),
    ):
        with pytest.raises(InputError, match=words):
            given_data(collection, [argument])
    with pytest.raises(InputError, match="twice"):
        given_data(collection, [f"ck+={few}", f"ck+={few}"])


def test_without_data_they_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = _run(capsys, "run", "ganonymization-paper", "--out", str(tmp_path / "out"))
    assert code == ExitCode.MISSING
    assert "nothing was run" in err
    for words in (
        "--data ck+=FOLDER",
        "http://www.jeffcohn.net",
        "non-commercial research",
        "0.71",
        "4.7",
        "Nothing is downloaded",
    ):
        assert words in out
    assert not (tmp_path / "out").exists()
    code, out, _ = _run(capsys, "run", "ganonymization-paper", "--out", str(tmp_path / "out"), "--json")
    assert code == ExitCode.MISSING
    assert {e["state"] for e in json.loads(out)["experiments"].values()} == {"absent"}


def test_one_suite_takes_one_folder(capsys: pytest.CaptureFixture[str], few: Path) -> None:
    code, _, err = _run(capsys, "run", "demo", "--data", str(few), "--data", str(few))
    assert code == ExitCode.USAGE
    assert "takes one folder" in err
    code, _, err = _run(capsys, "run", "demo", "--data", f"ck+={few}")
    assert code == ExitCode.USAGE
    assert "no such folder" in err


def test_parts_of_lists_can_be_overridden() -> None:
    suite = load_suite("demo", ["methods.ganonymization.checkpoint=x.ckpt", "methods.noise.sigma=0.5"])
    assert {m.label: m.params for m in suite.methods}["ganonymization"] == {"checkpoint": "x.ckpt"}
    assert {m.label: m.params for m in suite.methods}["noise"] == {"sigma": 0.5}
    with pytest.raises(SuiteError, match="methods has no 'nosie'"):
        load_suite("demo", ["methods.nosie.sigma=0.5"])


# -- a run -----------------------------------------------------------------------------------------------------------


def _table(out: Path) -> dict[tuple[str, str, str, str], dict[str, object]]:
    lines = json.loads((out / "paper.json").read_text("utf-8"))["lines"]
    return {(x["experiment"], x["metric"], x["method"], x["recognizer"]): x for x in lines}


def test_a_collection_from_end_to_end(tmp_path: Path, few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = _file(tmp_path), tmp_path / "out"
    command = ["run", str(path), "--out", str(out), "--cache", str(tmp_path / "cache"), *QUICK]

    # A folder that is of no use stops its experiment and no other.
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = _run(capsys, *command, "--no-report", "--data", f"one={few}", "--data", f"two={empty}")
    assert code == ExitCode.USAGE
    assert "error: second stopped: " in err
    table = _table(out)
    assert table["second", "distance.cosine", "original", "sface"]["state"] == "not run"
    assert "empty" in str(table["second", "distance.cosine", "original", "sface"]["reason"])
    assert "**Stopped: " in (out / "paper.md").read_text("utf-8")

    # Figures are those of the run.
    rows = read_run(out / "first").rows
    line = table["first", "distance.cosine", "pixelate", "sface"]
    row = rows[(rows.metric == "distance.cosine") & (rows.method == "pixelate") & (rows.convention == "headline")].iloc[0]
    for name in ("value", "lo", "hi", "n_images", "n_persons", "chance"):
        assert line[name] == row[name]
    assert (line["published"], line["published_text"], line["state"]) == (0.71, "0.71", "measured")
    assert line["about_published"] == ["in the paper: Table 3"]
    assert (line["n_images"], line["n_persons"]) == (6, 3)

    # What is not ready is named with its remedy; nothing stands in for it.
    line = table["first", "distance.cosine", "pixelate", "deepface:VGG-Face"]
    assert (line["state"], line["value"], line["published_text"]) == ("not run", None, "0.81 or 0.93")
    assert "vgg_face_weights" in str(line["reason"])
    assert "deepprivacy2: " in str(table["first", "distance.beyond", "deepprivacy2", "sface"]["reason"])
    assert table["first", "distance.beyond", "deepprivacy2", "sface"]["published_text"] == "> 97\u00a0%"
    assert table["first", "distance.beyond", "pixelate", "sface"]["published_text"] == ""

    # The same command computes nothing; what was measured earlier stays in the table; without data nothing is wrong.
    code, text, _ = _run(capsys, *command, "--data", f"one={few}", "--json")
    assert code == ExitCode.OK
    told = json.loads(text)
    assert told["experiments"]["first"]["computed"] == {}
    assert (told["experiments"]["first"]["state"], told["experiments"]["second"]["state"]) == ("done", "absent")
    assert told["table"] == str(out / "paper.json")
    assert (out / "first" / "report.html").is_file()
    assert (
        _table(out)["first", "distance.cosine", "pixelate", "sface"] == table["first", "distance.cosine", "pixelate", "sface"]
    )

    code, text, _ = _run(capsys, *command, "--data", f"two={few}", "--only", "original", "--no-report", "--json")
    assert code == ExitCode.OK
    assert {n: e["state"] for n, e in json.loads(text)["experiments"].items()} == {"first": "earlier", "second": "done"}
    table = _table(out)
    assert table["first", "distance.cosine", "pixelate", "sface"]["state"] == "measured"
    line = table["second", "distance.cosine", "original", "sface"]
    assert (line["value"], line["published_text"]) == (pytest.approx(0, abs=1e-6), "nothing moves")
    assert table["second", "distance.cosine", "pixelate", "sface"]["reason"] == "this run is without pixelate"
    with (out / "paper.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(table)
    assert float(lines[0]["value"]) == table["first", "distance.cosine", "pixelate", "sface"]["value"]
    words = (out / "paper.md").read_text("utf-8")
    assert "A small \\| collection" in words
    assert "--only original" in words
    assert str(Path.home()) not in words
    assert (out / "paper.tex").read_text("utf-8").count(r"\begin{tabular}") == 2

    # An experiment can be chosen by its name, and a method that is not ready is not silently left out.
    code, text, _ = _run(
        capsys, *command, "--data", f"one={few}", "--data", f"two={few}", "--only", "first", "--no-report", "--json"
    )
    assert code == ExitCode.OK
    assert {n: e["state"] for n, e in json.loads(text)["experiments"].items()} == {"first": "done", "second": "earlier"}
    code, _, err = _run(capsys, *command, "--data", f"one={few}", "--only", "deepprivacy2")
    assert code == ExitCode.MISSING
    assert "--only deepprivacy2: not ready" in err
    code, _, err = _run(capsys, *command, "--data", f"one={few}", "--only", "sharpen")
    assert code == ExitCode.USAGE
    assert "has no such method" in err


def test_weights_that_learnt_from_the_data_are_flagged() -> None:
    from deidbench.report.paper import _checkpoint

    data = load_collection("ganonymization-paper").data
    method = {"name": "ganonymization", "label": "g", "params": {}, "trained_on": ["CelebA-HQ:train_generator"]}
    assert "contaminated" in _checkpoint(method, data["celeba"])
    assert "contaminated" not in _checkpoint(method, data["ck+"])
    assert "ships with deidbench" in _checkpoint(method, data["ck+"])
    official = {**method, "params": {"checkpoint": "p.ckpt"}, "trained_on": ["CelebA:train", "CelebA:test"]}
    assert "an official checkpoint" in _checkpoint(official, data["ck+"])
    assert "contaminated" in _checkpoint(official, data["celeba"])
    assert _checkpoint({"name": "blur", "label": "b", "trained_on": []}, data["celeba"]) == ""


# -- folders as the sets come ------------------------------------------------------------------------------------------


def test_each_set_of_the_paper_is_read_as_it_comes(tmp_path: Path, orl_folder: Path) -> None:
    """The official layout by the set's own loader, a manifest by the generic one; no sub-folder of a nameless set is a person."""
    collection = load_collection("ganonymization-paper")
    assert {d.key: d.dataset for d in collection.data.values()} == {
        "wider": "wider", "affectnet": "affectnet", "ck+": "ck+", "faces": "faces", "celeba": "celeba",
    }  # fmt: skip

    def read_by(key: str, *places: str) -> str:
        root = tmp_path / key / str(len(list(tmp_path.rglob("*"))))
        for place in places:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(orl_folder / "s1" / "1.pgm", root / place)
        table = dataset_for(collection.data[key], root)
        assert table["params"]["root"] == str(root.resolve())
        return str(table["name"])

    for key, official in (
        ("wider", ("WIDER_val/images/0--Parade/a.jpg", "wider_face_split/wider_face_val_bbx_gt.txt")),
        ("affectnet", ("val_set/images/0.jpg", "val_set/annotations/0_exp.npy")),
        ("affectnet", ("Manually_Annotated_Images/1/a.jpg", "Manually_Annotated_file_lists/validation.csv")),
        ("ck+", ("cohn-kanade-images/S005/001/S005_001_00000011.png", "Emotion/S005/001/S005_001_00000011_emotion.txt")),
        ("ck+", ("CK+48/anger/S010_004_00000017.png",)),
        ("faces", ("Pictures/004_o_m_a_a.jpg",)),
        ("celeba", ("Anno/list_attr_celeba.txt", "Anno/identity_CelebA.txt", "Img/img_align_celeba/000001.jpg")),
    ):
        assert read_by(key, *official) == key, key
    for key in ("ck+", "faces", "celeba"):
        assert read_by(key, "images/a.png", "manifest.csv") == "folder"
        assert read_by(key, "anna/a.png") == "folder"
    for key in ("wider", "affectnet"):
        assert read_by(key, "images/a.png", "manifest.csv") == key
        assert read_by(key, "anna/a.png") == key


def test_an_unknown_loader_is_refused_with_its_line(tmp_path: Path) -> None:
    text = SMALL.replace('layout = "one sub-folder per person"', 'layout = "x"\ndataset = "celebb"', 1)
    with pytest.raises(SuiteError, match=r"small.toml:\d+: no data set 'celebb'") as caught:
        load_collection(_file(tmp_path, text))
    assert "did you mean 'celeba'" in caught.value.remedy


def test_a_run_on_an_official_layout(tmp_path: Path, orl_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CK+48 and AffectNet in small, by the names that the paper's collection gives them."""
    text = SMALL.replace('key = "one"', 'key = "one"\ndataset = "ck+"\nparams = { frames = "last3" }')
    text = text.replace('key = "two"', 'key = "two"\ndataset = "affectnet"')
    for person, emotion in ((1, "happy"), (2, "anger")):
        for n in (1, 2, 3):
            path = tmp_path / "ck" / emotion / f"S{person:03d}_001_{n:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, read_image(orl_folder / f"s{person}" / f"{n}.pgm"))
            other = tmp_path / "affect" / "val" / emotion / f"{n}.png"
            other.parent.mkdir(parents=True, exist_ok=True)
            write_image(other, read_image(orl_folder / f"s{person + 5}" / f"{n}.pgm"))
    out = tmp_path / "out"
    data = ("--data", f"one={tmp_path / 'ck'}", "--data", f"two={tmp_path / 'affect'}")
    code, said, err = _run(
        capsys, "run", str(_file(tmp_path, text)), *data, "--out", str(out), "--cache", str(tmp_path / "cache"), "--no-report", *QUICK
    )  # fmt: skip
    assert code == ExitCode.OK, (said, err)
    first, second = (read_run(out / name).record["dataset"] for name in ("first", "second"))
    assert (first["name"], first["n_images"], first["n_persons"], first["identities"]) == ("ck+", 6, 2, True)
    assert (second["name"], second["n_images"], second["identities"]) == ("affectnet", 6, False)
    table = (out / "paper.md").read_text("utf-8")
    assert "6 images of 2 persons (by the folder's own word), read as ck" in table
    assert "6 images of a set that names no persons, read as affectnet" in table
    # a share beyond a threshold needs pairs of one person, which nobody knows here
    lines = json.loads((out / "paper.json").read_text("utf-8"))["lines"]
    beyond = {
        line["experiment"]: line for line in lines if line["metric"] == "distance.beyond" and line["method"] == "pixelate"
    }
    assert beyond["first"]["value"] is not None and beyond["second"]["value"] is None
    assert "the data set names no persons" in str(beyond["second"])
    assert beyond["first"]["n_persons"] == 2 and {x["n_persons"] for x in lines if x["experiment"] == "second"} == {0}
    mean = [
        line
        for line in lines
        if line["metric"] == "distance.cosine" and line["method"] == "pixelate" and line["recognizer"] == "sface"
    ]
    assert {line["experiment"] for line in mean if line["value"] is not None} == {"first", "second"}
