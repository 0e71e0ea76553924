"""``deidbench doctor``: what is installed, what is ready, and what to type for the rest."""

from __future__ import annotations

import importlib
import inspect
import os
from typing import TYPE_CHECKING, Any

from deidbench import __version__

if TYPE_CHECKING:
    from rich.console import Console

#: The packages on the owner's list: distribution, module to import, how to get it where the plain install cannot.
IMPORTS = (
    ("torch", "torch", "pip install torch"),
    ("mediapipe", "mediapipe", "pip install 'mediapipe==0.10.21'"),
    ("deepface", "deepface.DeepFace", "pip install deepface werkzeug"),
    ("facenet-pytorch", "facenet_pytorch", "pip install --no-deps facenet-pytorch  (its own pins are too old for the rest)"),
    ("timm", "timm", "pip install timm"),
    ("scikit-learn", "sklearn", "pip install scikit-learn"),
    ("scipy", "scipy.stats", "pip install scipy"),
    ("pandas", "pandas", "pip install pandas"),
    ("seaborn", "seaborn", "pip install seaborn"),
    ("pytest-benchmark", "pytest_benchmark", "pip install 'deidbench[test]'"),
)
#: A matching pair, or torchvision dies at import with "operator torchvision::nms does not exist".
HINTS = {
    "torchvision::nms": "torch and torchvision do not match: pip install --upgrade torch torchvision (see constraints.txt)",
    "numpy": "another package pulled in a numpy that this build does not take: pip install -c constraints.txt numpy",
}


def check_imports() -> list[dict[str, str]]:
    """Imports every package of the owner's list; one record each with ``problem`` ("" when it works)."""
    from importlib.metadata import PackageNotFoundError, version

    from deidbench.faces import quiet_native_stderr

    # deepface asks for TensorFlow unless it is told which engine to use.
    os.environ.setdefault("DEEPFACE_BACKEND_ENGINE", "pytorch")
    results = []
    for distribution, module, remedy in IMPORTS:
        problem = ""
        try:
            with quiet_native_stderr():
                importlib.import_module(module)
        except Exception as error:  # a broken package may raise anything; it is reported with its remedy
            problem = f"{type(error).__name__}: {error}"
            remedy = next((hint for sign, hint in HINTS.items() if sign in problem), remedy)
        try:
            installed = version(distribution)
        except PackageNotFoundError:
            installed = ""
            problem = problem or "not installed"
        results.append({"package": distribution, "version": installed, "problem": problem, "remedy": remedy if problem else ""})
    return results


def examine() -> dict[str, Any]:
    """Everything that ``deidbench doctor`` shows, as plain data.  ``healthy``: the bundled suite can run."""
    from deidbench import kinds
    from deidbench.cache import default_folder
    from deidbench.environment import cpu_name, environment, gpus
    from deidbench.registry import Registry

    def ready(registry: Registry[Any]) -> list[dict[str, str]]:
        """One record per part: ``problem`` ("" when it is ready), ``needs``: parameters that only the user knows."""
        rows = []
        for name in registry:
            problem, needs = "", ""
            try:
                cls = registry.get(name)
                needs = ", ".join(
                    p.name
                    for p in inspect.signature(cls).parameters.values()
                    if p.default is p.empty and p.kind is not p.VAR_KEYWORD
                )
                if not needs:
                    problem = cls().missing()
            except Exception as error:  # shown, with the part's name
                problem = str(error)
            rows.append({"name": name, "problem": problem, "needs": needs})
        return rows

    imports = check_imports()
    recognizers, datasets = ready(kinds.recognizers), ready(kinds.datasets)
    essential = {"dlib", "sface", "orl"}
    broken = [r["name"] for r in (*recognizers, *datasets) if r["problem"] and r["name"] in essential]
    return {
        "deidbench": __version__,
        "environment": environment(),
        "cpu": cpu_name(),
        "gpus": gpus(),
        "imports": imports,
        "recognizers": recognizers,
        "classifiers": ready(kinds.classifiers),
        "datasets": datasets,
        "store": str(default_folder()),
        "store_writable": _writable(),
        "healthy": not broken and not any(i["problem"] for i in imports),
    }


def _writable() -> bool:
    from deidbench.cache import default_folder

    folder = default_folder()
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def show(findings: dict[str, Any], console: Console) -> None:
    """For people."""
    from rich.markup import escape

    env = findings["environment"]
    good, bad = "[green]ok[/green]     ", "[yellow]missing[/yellow]"
    console.print(f"[bold]deidbench {findings['deidbench']}[/bold], Python {env['python']}, {env['platform']}")
    console.print(
        f"{findings['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB; GPU: {', '.join(findings['gpus']) or 'none'}"
    )
    state = "" if findings["store_writable"] else "  (not writable: name another folder with --cache DIR or $DEIDBENCH_CACHE)"
    console.print(f"store: {findings['store']}{state}", soft_wrap=True)
    console.print("\n[bold]packages[/bold]")
    for r in findings["imports"]:
        console.print(
            f"  {bad if r['problem'] else good} {r['package']} {r['version']}"
            + (f": {escape(r['problem'])}\n           -> {escape(r['remedy'])}" if r["problem"] else ""),
            soft_wrap=True,
        )
    for kind in ("recognizers", "classifiers", "datasets"):
        if not findings[kind]:
            continue
        console.print(f"\n[bold]{kind}[/bold]")
        for r in findings[kind]:
            problem = escape(r["problem"]).replace("\n", "\n           ")
            text = f": {problem}" if problem else f" (say which: {r['needs']} = ...)" if r["needs"] else ""
            console.print(f"  {bad if problem else good} {r['name']}{text}", soft_wrap=True)
    console.print(
        "\n[green]ready: deidbench run demo[/green]"
        if findings["healthy"]
        else "\n[red]not ready: mend what is marked above[/red]"
    )


def main() -> int:
    """Import check of the owner's packages (``python -m deidbench.doctor``): 0 when all import, 3 otherwise."""
    import sys

    broken = [r for r in check_imports() if r["problem"]]
    for r in broken:
        sys.stderr.write(f"{r['package']} {r['version']}: {r['problem']}\n  -> {r['remedy']}\n")
    if not broken:
        sys.stdout.write(f"all {len(IMPORTS)} packages import\n")
    return 3 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
