"""The hot paths are timed by ``make bench`` and ``make bench-report``, and left alone by a run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "test_bench_hot.py" and not config.getoption("benchmark_only", False) else None
