"""The frame of the data sets in their official layouts: folder, paths, roles, limits, hashes, the check in words."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from deidbench.data_index import Line, Prepared, default_root, read, read_lines, record_of, write
from deidbench.datasets import official
from deidbench.datasets.files import Entry, Flags, csv_rows, text_lines
from deidbench.datasets.official import Archive, Layout, OfficialDataset, Part, Report
from deidbench.errors import InputError, MissingError
from deidbench.images import sha256_file
from deidbench.types import Box


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of prepared sets go into the test's own folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEIDBENCH_DATA", raising=False)


class Toy(OfficialDataset):
    """Lines of ``list.txt``: path, person, split."""

    name = "toy"
    title = "Toy (3 persons, 6 images)"
    homepage = "https://example.org/toy"
    terms = "for tests alone"
    split_roles: ClassVar[dict[str, str]] = {"test": "evaluate", "train": "attacker_train"}
    expected = Layout(
        tree="images/ list.txt",
        parts=(
            Part("images", ("official/images", "images"), "six images"),
            Part("list", ("list.txt", "Anno/list.txt"), "who is in which", lines=6, md5="0" * 32),
            Part("more", ("more-*.txt",), "more labels", required=False, remedy="ask for it"),
        ),
        images=6,
        persons=3,
        archives=(Archive("toy.zip"), Archive("toy*.tgz", "official")),
    )

    def _entries(self, root: Path) -> Iterator[Entry]:
        path = self.expected.find(root, "list")
        assert path is not None
        for n, text in text_lines(path):
            file, person, split, *rest = text.split()
            yield Entry(
                path=file,
                subject="" if person == "-" else person,
                role="" if split == "-" else split,
                emotion="neutral",
                box=Box(*map(float, rest)) if rest else None,
                where=f"{path}, line {n}",
            )


class Nameless(Toy):
    name = "nameless"
    identities = False


LIST = "images/a1.jpg anna train\nimages/a2.jpg anna train\nimages/b10.jpg bert test\nimages/b2.jpg bert test\nimages/c1.jpg carl valid\nimages/c2.jpg carl valid\n"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    root = tmp_path / "toy"
    (root / "images").mkdir(parents=True)
    (root / "list.txt").write_text(LIST)
    for line in LIST.splitlines():
        (root / line.split()[0]).write_bytes(line.encode())
    return root


def ids(data: OfficialDataset) -> list[str]:
    return [Path(s.id).stem for s in data.samples()]


# ------------------------------------------------------------------------------------------------------------- samples


def test_samples_have_roles_hashes_and_the_order_of_the_list(toy: Path) -> None:
    samples = list(Toy(str(toy)).samples())
    assert [s.id for s in samples] == [line.split()[0] for line in LIST.splitlines()]
    assert {s.subject_id: s.role for s in samples} == {"anna": "attacker_train", "bert": "evaluate", "carl": "valid"}
    assert all(s.sha256 == sha256_file(toy / s.id) == sha256_file(s.path) and s.emotion == "neutral" for s in samples)
    assert [pickle.loads(pickle.dumps(s)).id for s in samples] == [s.id for s in samples], "samples travel between processes"


def test_roles_splits_shares_and_limits(toy: Path) -> None:
    root = str(toy)
    assert ids(Toy(root, role="evaluate")) == ["b10", "b2"]
    assert ids(Toy(root, split="valid")) == ["c1", "c2"]
    assert ids(Toy(root, limit_images=1)) == ["a1", "b10", "c1"]
    roles = {
        s.subject_id: s.role for s in Toy(root, shares={"evaluate": 2 / 3, "attacker_train": 1 / 3}, split_seed=1).samples()
    }
    assert sorted(roles.values()) == ["attacker_train", "evaluate", "evaluate"], "shares go over the official split"
    assert ids(Toy(root, shares={"evaluate": 1.0}, limit_persons=2)) == ["a1", "a2", "b10", "b2"]
    for wrong, message in (({"role": "nobody"}, "roles there: attacker_train"), ({"split": "dev"}, "splits: test, train, valid"), ({"limit_images": 0}, "not positive")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            list(Toy(root, **wrong).samples())


def test_a_set_without_identities_gives_each_image_a_person_of_its_own(toy: Path) -> None:
    (toy / "list.txt").write_text("images/a1.jpg - -\nimages/a2.jpg - -\n")
    samples = list(Nameless(str(toy)).samples())
    assert [s.subject_id for s in samples] == [s.id for s in samples] and {s.role for s in samples} == {"evaluate"}
    with pytest.raises(InputError, match=r"line 1: images/a1.jpg has no person"):
        list(Toy(str(toy)).samples())


def test_one_image_may_have_several_faces(toy: Path) -> None:
    (toy / "list.txt").write_text("images/a1.jpg anna - 0 0 5 5\nimages/a1.jpg bert - 9 9 20 20\n")
    with pytest.raises(InputError, match="two images are called"):
        list(Toy(str(toy)).samples())
    (toy / "list.txt").write_text("images/a1.jpg anna - 0 0 5 5\nimages/a1.jpg anna - 0 0 5 5\n")
    with pytest.raises(InputError, match=r"line 2: images/a1.jpg is listed twice.*line 1"):
        list(Toy(str(toy)).samples())


# -------------------------------------------------------------------------------------------------------- hostile lists


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.jpg", "climbs out"),
        ("images/../../secret.jpg", "climbs out"),
        ("/etc/passwd", "absolute path"),
        ("C:/secret.jpg", "absolute path"),
        ("~/secret.jpg", "absolute path"),
        ("images\\a1.jpg", "not a portable path"),
        ("images", "is not a file"),
    ],
)
def test_paths_stay_inside(toy: Path, path: str, message: str) -> None:
    (toy.parent / "secret.jpg").write_bytes(b"secret")
    (toy / "list.txt").write_text(f"images/a1.jpg anna -\n{path} anna -\n")
    with pytest.raises(InputError, match=rf"line 2: .*{message}"):
        list(Toy(str(toy)).samples())
    report = Toy().check(toy)
    assert report.level == "wrong" and any(message in f.what for f in report.findings)


def test_links_out_of_the_folder_are_refused(toy: Path) -> None:
    secret = toy.parent / "secret.jpg"
    secret.write_bytes(b"secret")
    (toy / "images" / "a1.jpg").unlink()
    (toy / "images" / "a1.jpg").symlink_to(secret)
    with pytest.raises(InputError, match=r"line 1: 'images/a1.jpg' leads out of the folder by a symbolic link"):
        list(Toy(str(toy)).samples())
    (toy / "images" / "a1.jpg").unlink()
    (toy / "images" / "a1.jpg").symlink_to(toy / "images" / "a2.jpg")
    assert len(ids(Toy(str(toy)))) == 6, "a link within the folder is a file"


def test_a_linked_folder_is_refused_too(toy: Path) -> None:
    outside = toy.parent / "outside"
    (toy / "images").rename(outside)
    (toy / "images").symlink_to(outside, target_is_directory=True)
    with pytest.raises(InputError, match="symbolic link"):
        list(Toy(str(toy)).samples())


def test_a_person_in_two_splits_is_refused(toy: Path) -> None:
    (toy / "list.txt").write_text(LIST.replace("images/a2.jpg anna train", "images/a2.jpg anna test"))
    with pytest.raises(InputError, match="person 'anna' is in the roles 'attacker_train' and 'evaluate'"):
        list(Toy(str(toy)).samples())
    assert Toy().check(toy).level == "wrong"
    assert len(ids(Toy(str(toy), shares={"evaluate": 1.0}))) == 6


def test_images_that_are_not_there_are_counted(toy: Path) -> None:
    (toy / "images" / "b2.jpg").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 6 listed images: images/b2.jpg"):
        list(Toy(str(toy)).samples())
    assert ids(Toy(str(toy), partial=True)) == ["a1", "a2", "b10", "c1", "c2"]
    report = Toy().check(toy)
    assert report.level == "missing"
    found = next(f for f in report.findings if "listed images" in f.what)
    assert (found.found, found.expected) == (5, 6) and "https://example.org/toy" in found.remedy and "--partial" in found.remedy
    assert Toy(partial=True).check(toy).ready


# -------------------------------------------------------------------------------------------------------------- the check


def findings(report: Report) -> list[tuple[str, str]]:
    return [(f.level, f.what) for f in report.findings]


def test_the_check_says_what_is_there(toy: Path) -> None:
    report = Toy().check(toy)
    assert report.ready and report.level == "ok"
    assert findings(report) == [
        ("ok", "images: six images"),
        ("ok", "list.txt: who is in which"),
        ("note", "more-*.txt is not there: more labels (optional)"),
        ("ok", "6 images"),
        ("ok", "3 persons"),
        ("note", "roles: attacker_train 2, evaluate 2, valid 2"),
    ]
    (toy / "more-labels.txt").write_text("x")
    assert ("ok", "more-labels.txt: more labels") in findings(Toy().check(toy))


def test_the_check_knows_the_published_file(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "md5_of", lambda path: "0" * 32)
    assert ("ok", "list.txt: who is in which, the published file") in findings(Toy().check(toy))


def test_the_check_says_what_is_missing_and_where_it_is_got(toy: Path) -> None:
    (toy / "list.txt").unlink()
    (toy / "toy.zip").write_bytes(b"")
    (toy / "toy v2.tgz").write_bytes(b"")
    report = Toy().check(toy)
    assert report.level == "missing"
    missing = next(f for f in report.findings if f.level == "missing")
    assert missing.what == "list.txt (or Anno/list.txt) is not there: who is in which"
    assert missing.remedy == "got at https://example.org/toy; for tests alone"
    packed = {f.what: f.remedy for f in report.findings if "packed" in f.what}
    assert packed["toy.zip is there, still packed"] == f"unzip -q {toy}/toy.zip -d {toy}"
    assert packed["toy v2.tgz is there, still packed"] == f"tar -xf '{toy}/toy v2.tgz' -C {toy}/official"
    assert "lacks list.txt" in Toy(str(toy)).missing() and "https://example.org/toy" in Toy(str(toy)).missing()


def test_lists_that_are_cut_short_or_too_long_are_wrong(toy: Path) -> None:
    (toy / "list.txt").write_text("".join(LIST.splitlines(keepends=True)[:4]))
    assert ("wrong", "list.txt is cut short: 4 lines, 6 expected") in findings(Toy().check(toy))
    (toy / "list.txt").write_text(LIST + "images/a1.jpg anna train\n")
    assert ("wrong", "list.txt is too long: 7 lines, 6 expected") in findings(Toy().check(toy))
    (toy / "list.txt").write_text(LIST.replace("\n", "\r\n") + "\r\n")
    assert Toy().check(toy).ready, "CRLF and blank lines at the end are none"


def test_more_than_the_set_has_is_wrong(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "_counts", lambda self: (5, 2))
    assert [f.level for f in Toy().check(toy).findings if f.what.startswith(("6 images", "3 persons"))] == ["wrong", "wrong"]


def test_no_folder_is_missing(tmp_path: Path) -> None:
    assert Toy().check(tmp_path / "nowhere").level == "missing"
    with pytest.raises(MissingError, match=r"data set 'toy': .*nowhere is not a folder") as caught:
        list(Toy(str(tmp_path / "nowhere")).samples())
    assert "deidbench data prepare toy --from DIR" in caught.value.remedy


def test_a_name_that_no_folder_can_have(tmp_path: Path) -> None:
    """Found by fuzzing the record of ``data prepare``."""
    endless = tmp_path / ("x" * 5000)
    assert "not a folder that can be read (File name too long): deidbench data prepare" in Toy(str(endless)).missing()
    assert Toy().check(endless).level == "missing" and not Toy().recognises(endless)


def test_a_manifest_is_read_where_the_official_files_are_not(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (toy / "manifest.csv").write_text("path,subject_id,role,emotion\nimages/a1.jpg,anna,evaluate,happy\n")
    assert len(ids(Toy(str(toy)))) == 6, "the official files go first"
    (toy / "list.txt").unlink()
    (toy / "images").rename(toy / "pictures")
    (toy / "manifest.csv").write_text("path,subject_id,role,emotion\npictures/a1.jpg,anna,evaluate,happy\n")
    samples = list(Toy(str(toy)).samples())
    assert [(s.id, s.role, s.emotion) for s in samples] == [("pictures/a1.jpg", "evaluate", "happiness")]
    report = Toy().check(toy)
    assert report.ready and ("note", "1 images, the whole set has 6") in findings(report)
    monkeypatch.setattr(Toy, "_foreign", lambda self, there: "it shows cats")
    assert ("wrong", "this is not Toy (3 persons, 6 images): it shows cats") in findings(Toy().check(toy))


# -------------------------------------------------------------------------------------------------- places and records


def test_where_a_set_is_looked_for(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Toy().folder() == tmp_path / "home" / "deidbench" / "data" / "toy" == default_root("toy")
    monkeypatch.setenv("DEIDBENCH_DATA", str(toy.parent))
    assert Toy().folder() == toy and not Toy().missing()
    monkeypatch.delenv("DEIDBENCH_DATA")
    write(Prepared("toy", str(toy), "1", 6, 3, "0" * 64, "2026-01-01T00:00:00+00:00", {"partial": False}), [])
    assert Toy().folder() == toy and len(ids(Toy())) == 6
    assert Toy(str(tmp_path)).prepared is None, "the record is of another folder"
    assert Toy().missing() == ""


def test_recorded_hashes_hold_while_size_and_time_are_the_same(toy: Path) -> None:
    path = toy / "images" / "a1.jpg"
    info = path.stat()
    lines = [Line("images/a1.jpg", info.st_size, info.st_mtime_ns, "f" * 64)]
    write(Prepared("toy", str(toy), "1", 6, 3, "0" * 64, "2026-01-01T00:00:00+00:00", {"partial": False}), lines)
    assert read_lines("toy") == {"images/a1.jpg": lines[0]}
    assert next(Toy().samples()).sha256 == "f" * 64, "not read again"
    path.write_bytes(b"another")
    assert next(Toy().samples()).sha256 == sha256_file(path), "read again: it changed"
    path.write_bytes(b"x" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert next(Toy().samples()).sha256 == sha256_file(path), "the size alone is not enough"


def test_partial_is_remembered(toy: Path) -> None:
    (toy / "images" / "b2.jpg").unlink()
    write(Prepared("toy", str(toy), "1", 5, 3, "0" * 64, "2026-01-01T00:00:00+00:00", {"partial": True}), [])
    assert len(ids(Toy())) == 5


def test_damaged_records_are_named(toy: Path) -> None:
    assert read("toy") is None and read_lines("toy") == {}
    path = record_of("toy")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(InputError, match=r"toy.json cannot be read") as caught:
        read("toy")
    assert "deidbench data prepare toy" in caught.value.remedy
    path.write_text('{"schema": 0}')
    assert read("toy") is None, "of an older deidbench: made anew"
    path.with_suffix(".parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"toy.parquet cannot be read"):
        read_lines("toy")


# ---------------------------------------------------------------------------------------------------------------- helpers


def test_flags_are_a_mapping_of_a_few_bytes() -> None:
    flags = Flags({"Male": 0, "Young": 1, "Bald": 2}, 0b101)
    assert dict(flags) == {"Male": 1, "Young": 0, "Bald": 1} and len(flags) == 3
    assert flags.get("Nose", -1) == -1 and "Nose" not in flags
    assert dict(pickle.loads(pickle.dumps(flags))) == dict(flags)


def test_lists_must_be_text(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \n")
    assert text_lines(path) == [(1, "a"), (3, "b")]
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        text_lines(path)
    path.write_bytes("a\n".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        text_lines(path)
    with pytest.raises(InputError, match="is not an ordinary file"):
        text_lines(tmp_path)


def test_csv_files_need_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "info.csv"
    path.write_text("face_id,age\r\n 1 , 20 \r\n\r\n")
    assert csv_rows(path, ("face_id",), "face_id,age") == (["face_id", "age"], [(2, ["1", "20"])])
    for text, message in (("id;age\n1;2\n", "semicolons"), ("id,age\n1,2\n", "no column face_id"), ("face_id\n", "lists no image"), ("face_id,age\n1\n", "line 2: 1 cells"), ("", "is empty")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            csv_rows(path, ("face_id",), "face_id,age")
