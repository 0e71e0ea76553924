"""The command line: exit codes, words, and what a script reads."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import cv2
import pytest

from deidbench import cli
from deidbench.errors import ExitCode


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "no-such-suite"], ExitCode.USAGE, "bundled suites: "),
        (["run", "demos"], ExitCode.USAGE, "did you mean 'demo'"),
        (["run", "demo", "--set", "protocol.sede=3"], ExitCode.USAGE, "did you mean 'seed'"),
        (["run", "demo", "--only", "sharpen"], ExitCode.USAGE, "has no such method"),
        (["run", "demo", "--data", "/no/such/folder"], ExitCode.USAGE, "no such folder"),
        (["run", "demo", "--wrokers", "2"], ExitCode.USAGE, "--workers"),
        (["run", "demo", "--batch", "0"], ExitCode.USAGE, "at least 1"),
        (["report", "/no/such/run"], ExitCode.MISSING, "deidbench run"),
        (["anonymize", "a", "b", "--method", "blurr"], ExitCode.USAGE, "did you mean 'blur'"),
        (["anonymize", "a", "b", "--method", "blur", "--param", "sigma"], ExitCode.USAGE, "NAME=VALUE"),
        (["anonymize", "a", "b", "--method", "blur", "--param", "sigma=-1"], ExitCode.USAGE, "sigma"),
        (["anonymize", "/no/such/file", "b", "--method", "blur"], ExitCode.USAGE, "/no/such/file"),
        (["ls", "nothing"], ExitCode.USAGE, "anonymizers"),
        (["frobnicate"], ExitCode.USAGE, "No such command"),
    ],
)
def test_errors_have_a_code_and_a_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    found, _, err = _run(capsys, *arguments)
    assert found == code
    assert words in err
    assert "Traceback" not in err


def test_missing_weights_stop_a_run_before_it_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    suite = tmp_path / "s.toml"
    suite.write_text('[suite]\nname = "s"\nextends = "demo"\n[[recognizers]]\nname = "deepface:VGG-Face"\n')
    code, _, err = _run(capsys, "run", str(suite), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"))
    assert code == ExitCode.MISSING
    assert "vgg_face_weights" in err
    assert not (tmp_path / "out").exists()


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "--help")
    assert code == 0
    for value in ExitCode:
        assert f"\n  {value.value}" in out or f"\n    {value.value}" in out
    for command in ("run", "report", "anonymize", "ls", "doctor"):
        code, text, _ = _run(capsys, command, "--help")
        assert code == 0
        assert "Usage:" in text


def test_lists_for_people_and_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "ls", "--json")
    assert code == 0
    tables = json.loads(out)
    assert {row["name"] for row in tables["anonymizers"]} >= {
        "original",
        "blackout",
        "mask",
        "blur",
        "pixelate",
        "eye-bar",
        "noise",
    }
    assert {row["name"] for row in tables["recognizers"]} == {"dlib", "sface", "facenet", "deepface", "onnx"}
    assert {row["name"] for row in tables["datasets"]} >= {"orl", "folder"}
    assert {row["name"] for row in tables["suites"]} >= {"deidbench-v1", "demo"}
    code, out, _ = _run(capsys, "ls")
    assert code == 0
    assert "pixelate" in out


def test_doctor_tells_what_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _run(capsys, "doctor", "--json")
    findings = json.loads(out)
    assert code == (0 if findings["healthy"] else 1)
    assert findings["healthy"], "this machine passes the tests, so the bundled suite can run"
    assert [i["package"] for i in findings["imports"]][:4] == ["torch", "mediapipe", "deepface", "facenet-pytorch"]
    by_name = {r["name"]: r for r in findings["recognizers"]}
    assert by_name["dlib"]["problem"] == by_name["sface"]["problem"] == ""
    code, out, _ = _run(capsys, "doctor")
    assert "deidbench run demo" in out


def test_anonymize_one_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, orl_folder: Path) -> None:
    source = orl_folder / "s1" / "1.pgm"
    before = source.read_bytes()
    target = tmp_path / "out.png"
    code, out, _ = _run(capsys, "anonymize", str(source), str(target), "--method", "mask", "--param", "colour=[9, 9, 9]")
    assert code == 0
    assert "1 ok" in out
    assert (cv2.imread(str(target)) == 9).all(axis=2).mean() > 0.3
    assert source.read_bytes() == before
    code, _, _ = _run(capsys, "anonymize", str(source), str(source), "--method", "mask", "--overwrite")
    assert code == ExitCode.USAGE
    assert source.read_bytes() == before, "an input is never overwritten"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, ExitCode.ENVIRONMENT), (errno.EACCES, ExitCode.ENVIRONMENT), (errno.EROFS, ExitCode.ENVIRONMENT)],
)
def test_what_the_machine_does_to_us(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, "as the kernel says", "/some/file")

    monkeypatch.setattr(cli.cli, "main", fail)
    found, _, err = _run(capsys, "ls")
    assert found == code
    assert "->" in err


def test_interruption_says_that_nothing_is_lost(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "main", interrupt)
    code, _, err = _run(capsys, "ls")
    assert code == ExitCode.INTERRUPTED
    assert "the same command goes on" in err


REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference" / "demo"


@pytest.mark.parametrize("command", [["report"], ["history"], ["compare", str(REFERENCE)]])
def test_names_that_no_file_can_have(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "x" * 5000])
    assert end.value.code == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "no file can have so long a name" in said and len(said) < 500
