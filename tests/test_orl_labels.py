"""The note on the ORL labels says what the files say."""

import re
from pathlib import Path

import pandas as pd
from sklearn.metrics import cohen_kappa_score

FOLDER = Path(__file__).parent.parent / "datasets"
PER_PERSON = ("Male", "Beard", "Mustache", "Bald")


def _table() -> dict[str, tuple[float, float, int]]:
    text = (FOLDER / "ORL_LABELS.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \d+ \w+ \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", text, re.M)
    return {name: (float(agreement), float(kappa), int(ones)) for name, agreement, kappa, ones in rows}


def test_note_equals_files() -> None:
    labels = pd.read_csv(FOLDER / "orl_labels.csv")
    raters = pd.read_csv(FOLDER / "orl_labels_raters.csv")
    a, b = (raters[raters.rater == r].set_index(["subject", "image"]).drop(columns="rater") for r in "AB")
    settled = labels.set_index(["subject", "image"])
    note = _table()
    assert list(note) == list(settled.columns)
    for name, (agreement, kappa, ones) in note.items():
        x, y, z = a[name], b[name], settled[name]
        if name in PER_PERSON:
            assert (z.groupby(level=0).nunique() == 1).all()
            x, y, z = (s.groupby(level=0).first() for s in (x, y, z))
        assert round(float((x == y).mean()), 3) == agreement
        assert round(float(cohen_kappa_score(x, y)), 3) == kappa
        assert int(z.sum()) == ones
        assert (z[x == y] == x[x == y]).all(), "only differences were settled"


def test_every_image_labelled_once() -> None:
    labels = pd.read_csv(FOLDER / "orl_labels.csv")
    assert sorted(zip(labels.subject, labels.image, strict=True)) == sorted(
        (f"s{p}", i) for p in range(1, 41) for i in range(1, 11)
    )
    assert labels.drop(columns=["subject", "image"]).isin([0, 1]).all(axis=None)
