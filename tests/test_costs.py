"""What an image costs is read from a run's record, and only from one that did the work itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deidbench import costs
from deidbench.cache import Store, key
from deidbench.errors import InputError


def _record(folder: Path, computed: int = 40, threads: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    record = {
        "dataset": {"n_images": 20},
        "methods": [{}, {}],
        "run": {"computed": {"anonymize": computed}, "threads": threads},
        "timings": {"per_stage_worker_seconds": {"detect": 4.0, "anonymize": 1.0}},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_costs_of_an_image_and_of_many(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.put_many({key("picture", source=str(i)): bytes(500) for i in range(40)})
    found = costs.measured(_record(tmp_path / "run"), tmp_path / "store")
    assert found.seconds == {"detect": 0.2, "anonymize": 0.05}
    assert found.sizes == {"picture": 1000}
    assert found.cores(864_000, 2.5) == pytest.approx(864_000 * 0.25 / (2.5 * 86_400 * 0.8))
    assert found.store(1e6) == 1e9
    command = [str(tmp_path / "run"), "--cache", str(tmp_path / "store"), "--images", "864000", "--days", "2.5"]
    told = json.loads(CliRunner().invoke(costs.main, [*command, "--json"]).stdout)
    assert told["cores"] == pytest.approx(1.25) and told["store_bytes"] == 864e6
    said = CliRunner().invoke(costs.main, command).stdout
    assert "864,000 images in 2.5 days take 1 cores" in said and "a store of 864 MB" in said


def test_a_run_that_did_not_do_the_work_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="39 of 40 outputs were computed"):
        costs.measured(_record(tmp_path / "a", computed=39))
    with pytest.raises(InputError, match="4 threads"):
        costs.measured(_record(tmp_path / "b", threads=4))
    with pytest.raises(InputError, match="no store"):
        costs.measured(_record(tmp_path / "c"), tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    result = CliRunner().invoke(costs.main, [str(tmp_path / "d")])
    assert result.exit_code == 2 and "no run whose costs are known" in result.stderr
