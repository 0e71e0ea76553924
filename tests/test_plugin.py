"""A package from outside, installed and used for real: found, listed, checked, run, compared, tested by its own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deidbench.records import read_run

EXAMPLE = Path(__file__).parent / "plugin_example"
#: A run of seconds: few persons, few replicates, no stop-watch.
SMALL = (
    "dataset.params.persons=5", "protocol.replicates=200", "protocol.curve_replicates=100", "throughput.images=0",
)  # fmt: skip
METHODS = ("original", "blur", "swirl 0.25")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built and installed by pip into a folder of its own; nothing is asked of the network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"  # building leaves files behind
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--no-build-isolation", "--target", str(folder / "site"), str(source),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def _deidbench(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "160"}
    command = [sys.executable, "-P", "-m", "deidbench.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, check=False)


def test_its_parts_are_listed(installed: Path) -> None:
    names = {}
    for kind in ("anonymizers", "recognizers"):
        done = _deidbench(installed, "ls", kind, "--json")
        assert done.returncode == 0, done.stderr
        names[kind] = {row["name"]: row for row in json.loads(done.stdout)}
    assert names["anonymizers"]["swirl"]["parameters"] == "amount=0.5, colours=6, margin=1.4"
    assert names["anonymizers"]["swirl"]["what"].startswith("Each face in a few colours")
    assert "palette" in names["recognizers"]


def test_its_name_travels_to_other_processes(installed: Path) -> None:
    """A worker process imports the module and never asks the registry; without the name its fingerprint would be another one."""
    make = (
        "import pickle, sys; from deidbench import kinds\n"
        "parts = [kinds.anonymizers.create('swirl', amount=0.7), kinds.recognizers.create('palette')]\n"
        "print(pickle.dumps(parts).hex(), [p.fingerprint for p in parts])"
    )
    read = (
        "import pickle, sys\n"
        "parts = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print([p.name for p in parts], parts[0].amount, [p.fingerprint for p in parts])"
    )
    variables = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-P", "-c", *arguments], capture_output=True, text=True, env=variables, check=True
        ).stdout

    data, _, marks = run(make).strip().partition(" ")
    assert run(read, data).strip() == f"['swirl', 'palette'] 0.7 {marks}"


def test_it_keeps_the_contract(installed: Path, tmp_path: Path) -> None:
    done = _deidbench(installed, "check", "swirl", "--quick", "--badge", str(tmp_path / "badge.svg"))
    assert done.returncode == 0, done.stdout + done.stderr
    last = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("deidbench contract"))
    assert "passed - swirl 1 (amount=0.5, colours=6, margin=1.4) - seeded - " in last
    assert "images/s" in last
    assert "deidbench_swirl/method.py" in done.stdout
    assert (tmp_path / "badge.svg").read_text().startswith("<svg")


@pytest.mark.slow
def test_it_is_compared_with_a_blur(installed: Path, tmp_path: Path) -> None:
    """Two worker processes: what they compute is found again under the fingerprints of the first process."""
    changes = [part for change in SMALL for part in ("--set", change)] + [part for m in METHODS for part in ("--only", m)]
    done = _deidbench(
        installed, "run", str(EXAMPLE / "suite.toml"), "--out", "run", "--cache", "cache", "--workers", "2", "--no-report", *changes,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_run(tmp_path / "run")
    rows = record.rows
    mine = rows[(rows.method == "swirl 0.25") & (rows.metric == "reid.rank1")]
    assert set(mine.recognizer) == {"sface", "palette"}
    assert mine.value.notna().all()
    clear = rows[(rows.method == "original") & (rows.metric == "reid.rank1") & (rows.recognizer == "sface")]
    assert clear.value.iloc[0] > 0.9
    assert (mine[mine.recognizer == "sface"].value < clear.value.iloc[0]).all()

    done = _deidbench(installed, "compare", "run", "--reference", "blur", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "swirl 0.25" in json.dumps(told)


@pytest.mark.slow
def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        capture_output=True, text=True, env=variables, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " 0 passed" not in done.stdout
    passed = int(done.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed > 60


def test_the_suite_does_not_collect_the_examples_tests(request: pytest.FixtureRequest) -> None:
    """They belong to a package that is not installed here."""
    assert EXAMPLE.name in request.config.getini("norecursedirs")
    assert not [item for item in request.session.items if EXAMPLE in item.path.parents]


def test_a_broken_neighbour_is_shown_and_spoils_nothing(installed: Path, tmp_path: Path) -> None:
    """An installed package that cannot be imported is named where it is asked for; the others go on."""
    info = tmp_path / "broken_neighbour-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-neighbour\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deidbench.anonymizers]\nneighbour = broken_neighbour:Method\n")
    (tmp_path / "broken_neighbour.py").write_text("import a_package_that_is_not_there\n")
    both = Path(f"{installed}{os.pathsep}{tmp_path}")
    done = _deidbench(both, "ls", "anonymizers", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["neighbour"]["what"].startswith("cannot be used: ")
    assert rows["swirl"]["what"].startswith("Each face")
    done = _deidbench(both, "check", "neighbour", "--quick")
    assert done.returncode == 3
    assert "from broken-neighbour cannot be imported: ModuleNotFoundError" in " ".join(done.stdout.split())
