"""The model card and the curves that a training writes."""

from __future__ import annotations

import io
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deidbench.anonymizers.ganonymization.preprocess import Pairs
    from deidbench.anonymizers.ganonymization.train import Settings, Split


def losses_figure(history: list[dict[str, Any]], path: Path) -> None:
    """Training losses and validation over the steps, as a PNG."""
    from matplotlib.figure import Figure

    from deidbench.images import atomic_write

    steps = [r["step"] for r in history]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    losses, error, found = figure.subplots(1, 3)
    losses.plot(steps, [r["loss_l1"] for r in history], "o-", ms=3, label="L1, training")
    losses.plot(steps, [2 * r["val_l1"] for r in history], "s--", ms=3, label="L1, held-out persons")
    losses.plot(steps, [r["loss_discriminator"] for r in history], "^:", ms=3, label="discriminator")
    losses.set(title="Losses (levels of -1 to 1)", ylim=(0, None))
    losses.legend(fontsize=8)
    error.plot(steps, [100 * r["val_nme"] for r in history], "o-", ms=3)
    error.set(title="Landmark error, held-out persons (% of eye distance)", ylim=(0, None))
    found.plot(steps, [100 * r["val_found"] for r in history], "o-", ms=3)
    found.set(title="Faces found again (%)", ylim=(0, 101))
    for axes in (losses, error, found):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    atomic_write(path, buffer.getvalue())


def model_card(
    history: list[dict[str, Any]], best: dict[str, Any], settings: Settings, about: dict[str, Any], pairs: Pairs, parts: Split,
    network: Any,
) -> str:  # fmt: skip
    """The card in Markdown: what the model is, its data, settings and what was measured; written by the program."""
    n = sum(p.numel() for p in network.parameters())
    last = history[-1]
    persons = {pairs.subjects[i] for i in parts.train.tolist()}
    held_out = {pairs.subjects[i] for i in parts.validation.tolist()}
    lines = [
        f"# GANonymization generator, {settings.size} px, width {settings.width}",
        "",
        "Re-synthesises a face from the image of its 478 landmarks (pix2pix; Hellmann et al., arXiv 2305.02143).",
        "It keeps pose, expression and the geometry of the face; it never sees a pixel of the original.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {n:,} |",
        f"| input, output | {settings.size} x {settings.size}, landmark dots drawn at {settings.render or settings.size} px; face box x {settings.margin:g} |",
        f"| training data | {about['data']} |",
        f"| SHA-256 of the data (ids, persons, image hashes) | `{about['data_sha256']}` |",
        f"| training images / persons | {len(parts.train):,} / {len(persons):,} |",
        f"| held-out persons' images used for validation / persons | {len(parts.validation):,} / {len(held_out):,}"
        + (" (also in training)" if persons & held_out else "")
        + " |",
        f"| left out (no face, no landmarks, unreadable, segmentation failed) | {len(pairs.left_out):,} |",
        f"| steps / epochs | {last['step']:,} / {last['epoch']} of {settings.epochs} |",
        f"| training time | {last['seconds'] / 60:.0f} min |",
        f"| made with | torch {version('torch')}, Python {platform.python_version()} |",
        f"| licence and terms | {about['licence']} |",
        "",
        "## Validation (persons that the training never saw)",
        "",
        "| checkpoint | step | L1 (0 to 1) | landmark error (NME, outer eye corners) | faces found again |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {r['step']:,} | {r['val_l1']:.4f} | {100 * r['val_nme']:.2f} % | {100 * r['val_found']:.1f} % |"
            for name, r in (("best", best), ("last", last))
        ),
        "",
        "These say how well landmarks and expression are kept, not how private the result is: `deidbench run` measures that.",
        "",
        "## Settings",
        "",
        "```toml",
        *(f"{k} = {_toml(v)}" for k, v in asdict(settings).items()),
        "```",
        "",
        "## Limits",
        "",
        "- The geometry of the face is kept, and geometry carries some identity: measure re-identification before you release pictures.",
        "- Where the training data lacks a group of people, an age or a pose, the result is worse there.",
        "- Hair, skin colour and background are invented, not kept.",
        "",
    ]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
