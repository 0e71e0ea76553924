"""``deidbench data``: ls, prepare, verify, downloads with consent, unpacking that stays inside; and runs on what was prepared."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deidbench import data_fetch
from deidbench.data_fetch import fetch, secure, unpack
from deidbench.data_index import read, read_lines
from deidbench.data_prepare import download, listing, prepare, unpack_all, verify
from deidbench.datasets.base import manifest_sha256
from deidbench.datasets.lfw import LFW
from deidbench.datasets.london import London
from deidbench.datasets.official import Download
from deidbench.errors import InputError, MissingError

PEOPLE = [f"Person_{k}" for k in range(6)]
PAIRS = "2\t2\n" + "".join(f"{a}\t1\t2\n{b}\t1\t2\n{a}\t1\t{b}\t2\n{b}\t1\t{c}\t1\n" for a, b, c in (PEOPLE[:3], PEOPLE[3:]))


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEIDBENCH_DATA", raising=False)
    return tmp_path / "home"


@pytest.fixture
def lfw(tmp_path: Path, orl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six persons with two images each, in the official layout."""
    import cv2
    import numpy as np

    root = tmp_path / "LFW"
    for k, person in enumerate(PEOPLE):
        (root / "lfw" / person).mkdir(parents=True)
        for n in (1, 2):
            frame = np.full((250, 250, 3), 90, np.uint8)
            frame[41:209, 56:194] = cv2.resize(cv2.imread(str(orl_folder / f"s{k + 1}" / f"{n}.pgm")), (138, 168))
            cv2.imwrite(str(root / "lfw" / person / f"{person}_{n:04d}.jpg"), frame)
    (root / "pairs.txt").write_text(PAIRS)
    parts = tuple(replace(p, lines=9 if p.key == "pairs" else p.lines, md5="") for p in LFW.expected.parts)
    monkeypatch.setattr(LFW, "expected", replace(LFW.expected, images=12, persons=6, parts=parts))
    return root


def cli(*arguments: str) -> tuple[int, str, str]:
    """The command line in this process, so that patches hold: (exit code, standard output, errors)."""
    from contextlib import redirect_stderr, redirect_stdout

    from deidbench.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
        main(list(arguments))
    code = caught.value.code
    return (code if isinstance(code, int) else 0), out.getvalue(), err.getvalue()


# -------------------------------------------------------------------------------------------------------------- prepare


def test_prepare_records_a_folder_and_leaves_it_alone(lfw: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in lfw.rglob("*")}
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw))
    assert code == 0, out
    for said in ("licence: research use", "terms:", "got at:  http://vis-www", "ready: 6 persons, 12 images", "run deidbench-v3 --dataset lfw"):  # fmt: skip
        assert said in out
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in lfw.rglob("*")} == before, "only read"
    record, lines = read("lfw"), read_lines("lfw")
    assert record is not None and (record.root, record.images, record.persons) == (str(lfw), 12, 6)
    assert record.manifest_sha256 == manifest_sha256(LFW().manifest()), "the same number as in a run's record"
    for path, line in lines.items():
        assert line.sha256 == hashlib.sha256((lfw / path).read_bytes()).hexdigest()
    assert not LFW().missing() and len(list(LFW().samples())) == 12


def test_prepare_says_what_is_missing_and_what_is_wrong(lfw: Path) -> None:
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw.parent / "nowhere"))
    assert code == 3 and "is not a folder" in out and read("lfw") is None
    (lfw / "lfw" / PEOPLE[0] / f"{PEOPLE[0]}_0002.jpg").unlink()
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw))
    assert code == 3 and "11 images, the whole set has 12" in out and "Aaron_Eckhart_0001.jpg" in out, "the tree is shown"
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw), "--partial")
    assert code == 0 and read("lfw").params == {"partial": True}
    (lfw / "pairs.txt").write_text(PAIRS.rsplit("\n", 2)[0])
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw))
    assert code == 2 and "cut short" in out


def test_prepare_for_scripts(lfw: Path) -> None:
    code, out, err = cli("data", "prepare", "lfw", "--from", str(lfw), "--json")
    found = json.loads(out)
    assert code == 0 and found["ready"] and found["exit"] == 0 and found["prepared"]["images"] == 12 and not err
    assert {f["level"] for f in found["findings"]} <= {"ok", "note"} and Path(found["record"]).is_file()
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw.parent / "nowhere"), "--json")
    assert code == 3 and json.loads(out)["ready"] is False and json.loads(out)["prepared"] is None


def test_prepare_takes_parameters(lfw: Path) -> None:
    code, out, _ = cli("data", "prepare", "lfw", "--from", str(lfw), "--param", "images=original")
    assert code == 0 and "with --set dataset.params.images=original" in out
    assert cli("data", "prepare", "lfw", "--from", str(lfw), "--param", "colour=red")[0] == 2
    code, _, err = cli("data", "prepare", "lfw", "--from", str(lfw), "--param", "root=/tmp")
    assert code == 2 and "--from DIR" in err


@pytest.mark.parametrize(("name", "message"), [("lfv", "did you mean 'lfw'"), ("orl", "needs no preparation"), ("folder", "needs no preparation")])  # fmt: skip
def test_other_names(name: str, message: str) -> None:
    code, _, err = cli("data", "prepare", name, "--from", "/")
    assert code == 2 and message in err


def test_preparing_again_hashes_only_what_changed(lfw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare("lfw", lfw)
    path = lfw / "lfw" / PEOPLE[0] / f"{PEOPLE[0]}_0001.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    hashed: list[Path] = []
    from deidbench import data_prepare

    line = data_prepare._line
    monkeypatch.setattr(data_prepare, "_line", lambda root, p: hashed.append(p) or line(root, p))
    done = prepare("lfw")  # the recorded folder
    assert [Path(p).name for p in hashed] == [path.name] and done.prepared is not None
    assert read_lines("lfw")[f"lfw/{PEOPLE[0]}/{path.name}"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_usual_place(lfw: Path, own_records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEIDBENCH_DATA", str(lfw.parent))
    lfw.rename(lfw.parent / "lfw")
    assert cli("data", "prepare", "lfw")[0] == 0 and read("lfw").root == str(lfw.parent / "lfw")


# --------------------------------------------------------------------------------------------------------------- verify


def test_verify_compares_every_file(lfw: Path) -> None:
    code, _, err = cli("data", "verify", "lfw")
    assert code == 3 and "is not prepared" in err
    prepare("lfw", lfw)
    code, out, _ = cli("data", "verify", "lfw")
    assert code == 0 and "12 files checked, all as they were" in out
    path = lfw / "lfw" / PEOPLE[1] / f"{PEOPLE[1]}_0001.jpg"
    info, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    found = verify("lfw")
    assert [Path(p).name for p in found.changed] == [path.name], "one bit, the same size, the same time"
    code, out, err = cli("data", "verify", "lfw")
    assert code == 2 and "1 changed" in out and path.name in err and "data prepare lfw --from" in err
    path.write_bytes(b"x")
    prepare("lfw", lfw)
    path.unlink()
    code, out, _ = cli("data", "verify", "lfw", "--json")
    assert code == 3 and json.loads(out)["gone"] == [f"lfw/{PEOPLE[1]}/{path.name}"]
    (lfw / "lfw" / PEOPLE[1] / f"{PEOPLE[1]}_0007.jpg").write_bytes(b"new")
    assert verify("lfw").new == (f"lfw/{PEOPLE[1]}/{PEOPLE[1]}_0007.jpg",)
    shutil.rmtree(lfw)
    assert cli("data", "verify", "lfw")[0] == 3


# ------------------------------------------------------------------------------------------------------------------- ls


def test_ls_tells_what_is_ready_and_who_may_have_it(lfw: Path) -> None:
    prepare("lfw", lfw)
    rows = {r["name"]: r for r in listing()}
    assert {"celeba", "celeba-hq", "lfw", "london", "orl"} <= rows.keys() and "folder" not in rows
    assert rows["lfw"]["ready"] and rows["lfw"]["images"] == 12 and rows["lfw"]["root"] == str(lfw)
    assert rows["orl"]["ready"] and not rows["london"]["ready"] and rows["london"]["licence"] == "CC BY 4.0"
    assert rows["celeba"]["images"] == 202599 and "deidbench data prepare celeba" in rows["celeba"]["problem"]
    code, out, _ = cli("data", "ls")
    assert code == 0 and "not ready" in out and "10,177" in out
    assert {r["name"] for r in json.loads(cli("data", "ls", "--json")[1])} == rows.keys()


def test_every_official_set_says_whose_it_is() -> None:
    from deidbench import kinds
    from deidbench.datasets.official import OfficialDataset

    for name in kinds.datasets:
        cls = kinds.datasets.get(name)
        if issubclass(cls, OfficialDataset):
            for said in (cls.title, cls.citation, cls.licence, cls.homepage, cls.terms, cls.expected.tree):
                assert said, name
            assert cls.homepage.startswith("http") and cls.version


# ------------------------------------------------------------------------------------------------------------ downloads


class Server(http.server.BaseHTTPRequestHandler):
    pages: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        body = type(self).pages.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Server.pages, Server.asked = {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(data_fetch, "FIGSHARE", f"{address}/v2/articles")
        yield address
        running.shutdown()


def offer(server: str, patch: pytest.MonkeyPatch, cls: type, **files: bytes) -> None:
    """Lets a set's downloads come from here, with an article's record of sizes and MD5s."""
    given = []
    for d in cls.expected.downloads:
        data = files[d.filename.partition(".")[0]]
        Server.pages[f"/{d.filename}"] = data
        sha256 = hashlib.sha256(data).hexdigest() if d.sha256 else ""
        given.append(replace(d, url=f"{server}/{d.filename}", sha256=sha256))
    record = {"files": [{"name": d.filename, "size": len(Server.pages[f"/{d.filename}"]), "computed_md5": hashlib.md5(Server.pages[f"/{d.filename}"]).hexdigest()} for d in given]}  # fmt: skip
    Server.pages["/v2/articles/5047666"] = json.dumps(record).encode()
    patch.setattr(cls, "expected", replace(cls.expected, downloads=tuple(given)))


def packed(folder: Path, top: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{top}/{path.relative_to(folder).as_posix()}")
    return out.getvalue()


@pytest.fixture
def london(tmp_path: Path, orl_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The London set's files, packed as figshare has them."""
    import cv2

    for key, view, n in (("neutral_front", "03", 1), ("smiling_front", "08", 2)):
        (tmp_path / key).mkdir()
        for k, person in enumerate(("001", "005")):
            cv2.imwrite(str(tmp_path / key / f"{person}_{view}.jpg"), cv2.imread(str(orl_folder / f"s{k + 1}" / f"{n}.pgm")))
    monkeypatch.setattr("deidbench.datasets.london.PERSONS", 2)
    parts = tuple(replace(p, lines=3 if p.key == "info" else p.lines) for p in London.expected.parts)
    monkeypatch.setattr(London, "expected", replace(London.expected, parts=parts))
    info = b"face_id,face_age,face_gender,face_eth\n001,24,female,white\n005,28,male,east_asian\n"
    return {
        "neutral_front": packed(tmp_path / "neutral_front", "neutral_front"),
        "smiling_front": packed(tmp_path / "smiling_front", "smiling_front"),
        "london_faces_info": info,
    }


def test_london_is_downloaded_unpacked_and_ready(
    server: str, london: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, monkeypatch, London, **london)
    target = tmp_path / "new" / "london"
    code, out, err = cli("data", "prepare", "london", "--from", str(target), "--download", "--unpack", "--yes")
    assert code == 0, out + err
    assert "CC BY 4.0" in err and f"{server}/neutral_front.zip" in err, "what is fetched and under which terms is told"
    assert len(list(London().samples())) == 4 and (target / "neutral_front" / "001_03.jpg").is_file()
    assert sorted(p.name for p in target.iterdir()) == ["london_faces_info.csv", "neutral_front", "neutral_front.zip", "smiling_front", "smiling_front.zip"]  # fmt: skip
    Server.asked.clear()
    download("london", target, consent=True)
    assert not [a for a in Server.asked if not a.startswith("/v2/")], "what is there is not fetched again"


def test_nothing_is_fetched_without_consent(
    server: str, london: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, monkeypatch, London, **london)
    code, _, err = cli("data", "prepare", "london", "--from", str(tmp_path / "x"), "--download")
    assert code == 2 and "needs consent" in err and "--yes" in err and "terms:" in err
    with pytest.raises(InputError, match="needs consent"):
        download("london", tmp_path / "x", consent=False)
    assert Server.asked == [] and not (tmp_path / "x").exists()


def test_sets_whose_terms_forbid_it_are_not_downloaded(tmp_path: Path) -> None:
    for name in ("celeba", "celeba-hq"):
        code, _, err = cli("data", "prepare", name, "--from", str(tmp_path), "--download", "--yes")
        assert code == 2 and "may not be downloaded automatically" in err and "get it by hand at http" in err


def test_wrong_content_is_not_kept(
    server: str, london: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, monkeypatch, London, **london)
    body = bytearray(Server.pages["/neutral_front.zip"])
    body[100] ^= 1
    Server.pages["/neutral_front.zip"] = bytes(body)
    with pytest.raises(InputError, match=r"MD5 .*, expected .*; nothing was kept"):
        download("london", tmp_path / "x", consent=True)
    assert not list((tmp_path / "x").iterdir())
    Server.pages["/neutral_front.zip"] += b"more"
    with pytest.raises(InputError, match="more than"):
        download("london", tmp_path / "x", consent=True)
    Server.pages["/v2/articles/5047666"] = b'{"files": []}'
    with pytest.raises(InputError, match="does not tell size and MD5"):
        download("london", tmp_path / "x", consent=True)
    del Server.pages["/v2/articles/5047666"]
    with pytest.raises(MissingError, match="cannot be read") as caught:
        download("london", tmp_path / "x", consent=True)
    assert "by hand from" in caught.value.remedy


def test_a_published_sha256_is_checked(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_fetch, "LIMIT", 1000)
    Server.pages["/pairs.txt"] = PAIRS.encode()
    right = Download("pairs.txt", f"{server}/pairs.txt", sha256=hashlib.sha256(PAIRS.encode()).hexdigest())
    assert fetch(right, tmp_path / "a", consent=True).read_text() == PAIRS
    with pytest.raises(InputError, match="SHA-256"):
        fetch(replace(right, sha256="0" * 64), tmp_path / "b", consent=True)
    Server.pages["/pairs.txt"] = b"x" * 1001
    with pytest.raises(InputError, match="more than 1000 bytes"):
        fetch(right, tmp_path / "c", consent=True)
    with pytest.raises(MissingError, match=r"pairs.txt could not be downloaded") as caught:
        fetch(replace(right, url=f"{server}/gone"), tmp_path / "c", consent=True)
    assert str(tmp_path / "c" / "pairs.txt") in caught.value.remedy
    with pytest.raises(InputError, match="cannot be downloaded: there is no published"):
        fetch(replace(right, sha256=""), tmp_path / "c", consent=True)


def test_only_https() -> None:
    for url in ("http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "http://127.0.0.1.example.org/x"):
        with pytest.raises(InputError, match="is not an https address"):
            secure(url)
    assert secure("https://example.org/x") and secure("http://127.0.0.1:80/x")
    for cls in (LFW, London):
        for d in cls.expected.downloads:
            assert d.url.startswith("https://") and (len(d.sha256) == 64 or d.figshare)


# ------------------------------------------------------------------------------------------------------------- unpacking


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def named(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def test_archives_are_unpacked_into_place(tmp_path: Path, lfw: Path) -> None:
    with tarfile.open(lfw / "lfw.tgz", "w:gz") as file:
        file.add(lfw / "lfw", "lfw")
    shutil.rmtree(lfw / "lfw")
    done = prepare("lfw", lfw)
    assert not done.report.ready and any(f"tar -xf {lfw}/lfw.tgz -C {lfw}" in f.remedy for f in done.report.findings)
    assert [(p.name, n) for p, n in unpack_all("lfw", lfw)] == [("lfw.tgz", 12)]
    assert prepare("lfw", lfw).report.ready
    with pytest.raises(InputError, match="is there already"):
        unpack_all("lfw", lfw)
    assert sorted(p.name for p in lfw.iterdir()) == ["lfw", "lfw.tgz", "pairs.txt"], "nothing is left behind"
    with pytest.raises(InputError, match="holds no archive"):
        unpack_all("london", lfw)


@pytest.mark.parametrize(
    "member",
    [
        named("../escaped"), named("lfw/../../escaped"), named("/escaped"), named("C:\\escaped"),
        named("lfw/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), named("lfw/link", type=tarfile.LNKTYPE, linkname="../x"),
        named("lfw/pipe", type=tarfile.FIFOTYPE), named("lfw/disk", type=tarfile.BLKTYPE),
    ],
    ids=lambda m: f"{m.name} {m.type!r}",
)  # fmt: skip
def test_hostile_tars_are_refused_whole(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = tar_of(tmp_path / "lfw.tgz", (named("lfw/good.jpg"), b"good"), (member, b""))
    into = tmp_path / "a" / "b"
    with pytest.raises(InputError, match=r"leads out of the folder|neither a file nor a folder"):
        unpack(path, into)
    assert not list(into.iterdir()) and not (tmp_path / "escaped").exists() and not (tmp_path / "a" / "escaped").exists()


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "c:/escaped"])
def test_hostile_zips_are_refused_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("good.jpg", b"good")
        file.writestr(name, b"bad")
    with pytest.raises(InputError, match="leads out of the folder"):
        unpack(path, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_links_in_zips_broken_archives_and_what_lies_there(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        unpack(path, tmp_path / "a")
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(path, tmp_path / "a")
    whole = tar_of(tmp_path / "whole.tgz", *((named(f"lfw/{k}.jpg"), os.urandom(5000)) for k in range(20))).read_bytes()
    (tmp_path / "half.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "half.tgz", tmp_path / "a")
    assert not list((tmp_path / "a").iterdir()), "half an archive leaves nothing"
    twice = tar_of(tmp_path / "twice.tgz", (named("lfw/1.jpg"), b"1"), (named("lfw/1.jpg"), b"2"))
    with pytest.raises(InputError, match="twice"):
        unpack(twice, tmp_path / "a")
    (tmp_path / "a" / "lfw").mkdir()
    (tmp_path / "a" / "lfw" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        unpack(tmp_path / "whole.tgz", tmp_path / "a")
    assert (tmp_path / "a" / "lfw" / "mine.txt").read_text() == "mine"


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("faces/1.jpg", "faces/._1.jpg", "__MACOSX/faces/._1.jpg"):
            file.writestr(name, b"x")
    assert unpack(path, tmp_path / "a") == 1
    assert [p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*")] == ["faces", "faces/1.jpg"]


# ------------------------------------------------------------------------------------------------------------------ runs


def test_a_run_on_what_was_prepared(lfw: Path, tmp_path: Path) -> None:
    """The whole way: prepare, run by name with the pairs of the folder, and the same again by --data."""
    suite = tmp_path / "mine.toml"
    suite.write_text(
        '[suite]\nname = "mine"\nextends = "deidbench-v1"\ninherit_methods = false\n[[metrics]]\nname = "lfw-pairs"\n'
        '[throughput]\nimages = 0\n[[recognizers]]\nname = "sface"\n'
        '[[methods]]\nname = "original"\ncontrol = true\n[[methods]]\nname = "blackout"\ncontrol = true\n'
    )
    common = (str(suite), "--cache", str(tmp_path / "cache"), "--no-report", "--quiet", "--workers", "1")
    code, _, err = cli("run", *common, "--dataset", "lfw", "--out", str(tmp_path / "a"))
    assert code == 3 and "lfw is not ready" in err and "deidbench data prepare lfw" in err
    prepare("lfw", lfw)
    code, _, err = cli("run", *common, "--dataset", "lfw", "--out", str(tmp_path / "a"))
    assert code == 0, err
    code, _, err = cli("run", *common, "--dataset", "lfw", "--data", str(lfw), "--out", str(tmp_path / "b"))
    assert code == 0, err
    one, two = (json.loads((tmp_path / k / "run.json").read_text()) for k in "ab")
    assert one["dataset"]["name"] == two["dataset"]["name"] == "lfw" and one["dataset"]["n_images"] == 12
    assert one["dataset"]["manifest_sha256"] == two["dataset"]["manifest_sha256"] == read("lfw").manifest_sha256
    rows = json.loads((tmp_path / "a" / "rows.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    found = {r["method"]: r for r in rows if r["metric"] == "lfw_pairs.accuracy" and r["convention"] == "headline" and r["attacker"] == "lazy-informed"}  # fmt: skip
    assert found["original"]["value"] == 1.0 and found["original"]["comparison"] == "all 8 pairs, 2 of 2 folds"
    assert found["blackout"]["value"] == 0.5, "a black frame says nothing"


def test_runs_by_name_and_their_errors(tmp_path: Path) -> None:
    code, _, err = cli("run", "demo", "--dataset", "lfv", "--out", str(tmp_path / "x"))
    assert code == 2 and "did you mean 'lfw'" in err
    code, _, err = cli("run", "ganonymization-paper", "--dataset", "lfw")
    assert code == 2 and "--data KEY=FOLDER" in err


def test_help_of_the_group_is_quick() -> None:
    code = "import sys; from deidbench.cli import cli\ntry: cli(['data', 'prepare', '--help'])\nexcept SystemExit: pass\nprint('HEAVY', sorted(set(sys.modules) & {'numpy', 'pandas', 'cv2', 'torch', 'rich', 'pyarrow', 'pydantic'}))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")
