"""The house keeps its shape: rooms, direction of imports, quick start, no shadowing of well-known packages."""

import ast
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import deidbench

ROOT = Path(__file__).resolve().parent.parent
#: The core may know nobody above it.
CORE = ("errors", "types", "registry", "records", "cache", "faces", "weights", "images", "progress", "adapter_calls")
HEAVY = {
    "torch",
    "mediapipe",
    "deepface",
    "facenet_pytorch",
    "timm",
    "cv2",
    "dlib",
    "pandas",
    "matplotlib",
    "sklearn",
    "skimage",
    "onnxruntime",
}


def _imports(path: Path, *, top_level: bool) -> set[str]:
    """Modules imported by a file; top_level: only those that run when it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    if top_level:
        nodes, queue = [], list(tree.body)
        while queue:
            node = queue.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            ):
                continue
            nodes.append(node)
            queue.extend(ast.iter_child_nodes(node))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return names


@pytest.mark.parametrize("module", CORE)
def test_core_knows_nobody_above(module: str) -> None:
    above = (
        "deidbench.anonymizers",
        "deidbench.metrics",
        "deidbench.datasets",
        "deidbench.runner",
        "deidbench.report",
        "deidbench.cli",
    )
    assert not [name for name in _imports(ROOT / "bench" / f"{module}.py", top_level=True) if name.startswith(above)]


@pytest.mark.parametrize("room", ["anonymizers", "metrics", "datasets"])
def test_rooms_do_not_know_the_shell(room: str) -> None:
    above = ("deidbench.runner", "deidbench.report", "deidbench.cli", "deidbench.executors", "deidbench.pipeline")
    for path in (ROOT / room).rglob("*.py"):
        assert not [n for n in _imports(path, top_level=False) if n.startswith(above)], path


#: Modules that are nothing but torch, imported inside functions only (the next test sees to it).
TORCH_MODULES = {Path("anonymizers/ganonymization/networks.py")}


@pytest.mark.parametrize("room", ["anonymizers", "metrics", "datasets"])
def test_heavy_imports_wait_until_they_are_used(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        if path.relative_to(ROOT) in TORCH_MODULES:
            continue
        assert not {n.partition(".")[0] for n in _imports(path, top_level=True)} & HEAVY, path


def test_listing_the_parts_imports_nothing_heavy() -> None:
    code = (
        "import sys; from deidbench import kinds\n"
        "for k in (kinds.anonymizers, kinds.datasets, kinds.metrics, kinds.recognizers): assert k.names()\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


def test_installing_does_not_shadow_well_known_packages() -> None:
    """Tests run in importlib mode and the rooms are mapped, so `datasets` and `metrics` stay free for others."""
    code = "import importlib.util as u, sys; sys.path = [p for p in sys.path if p]; print([n for n in ('datasets', 'metrics', 'bench', 'anonymizers') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"
    assert "datasets" not in sys.modules or not str(sys.modules["datasets"].__file__).startswith(str(ROOT))


def test_help_imports_nothing_heavy() -> None:
    """The way --help stays quick; its time is measured in tests/benchmarks."""
    code = (
        "import sys; from deidbench.cli import cli\n"
        "try: cli(['--help'])\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY | {'numpy', 'pydantic', 'rich'}!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []")


def test_version_and_typed() -> None:
    assert deidbench.__version__ == "0.1.0"
    assert (ROOT / "bench" / "py.typed").exists()


@pytest.mark.parametrize(
    ("protocol", "sha256"),
    [
        ("deidbench-v1", "2bd89023c17baf9c583a8e7acff6625275b07aedf14fcc81ee22d4dcf156ffb6"),
        ("deidbench-v2", "bc893dd8f44d5d7b6bb69d9fa35387ae5ad93509fba558e0d82f6861e83b1480"),
        ("deidbench-v3", "ee268eba0bf52f066fca25d4b48f5e45d7b1c9eb204be5f6eb67357a80301d15"),
    ],
)
def test_protocols_are_frozen(protocol: str, sha256: str) -> None:
    """They never change: figures of two papers are compared by them.  A new protocol gets a new name."""
    text = (ROOT / "bench" / "suites" / f"{protocol}.toml").read_bytes()
    assert hashlib.sha256(text).hexdigest() == sha256
