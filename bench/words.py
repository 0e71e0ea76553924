"""Comparisons in words: what a difference is called, how a p-value is printed, the verdict in one line."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deidbench.compare import Result

_TITLES: dict[str, str] = {}
#: Units that a number carries no sign of.
_BARE = ("", "ratio", "index", "kappa", "ssim", "distance", "probability", "correlation", "1", "score")
NAMES = ("reid.worst_rank1", "reid.rank1")
#: For the head of a panel or a link.
_SHORT = {
    "reid.worst_rank1": "Rank-1, worst case",
    "reid.rank1": "Rank-1",
    "reid.eer": "EER",
    "reid.d_sys": "D_sys",
    "distance.cosine": "Distance",
    "distance.beyond": "Beyond threshold",
    "soft.mean_balanced_accuracy": "Traits read",
    "emotion.uar": "Expression, UAR",
    "emotion.mean_delta_p": "Expression, |Δp|",
    "attributes.mean_balanced_accuracy": "Attributes, bal. acc.",
    "attributes.mean_retention": "Attributes kept",
    "geometry.detected_dlib": "Faces found, dlib",
    "geometry.nme_facemesh": "Landmarks, NME",
    "quality.ssim_face": "SSIM",
    "throughput.faces_per_s": "Speed",
}


def short(metric: str, *whose: str) -> str:
    """A figure in two or three words, with what tells it from its like."""
    return ", ".join([_SHORT.get(metric, title(metric)), *(w for w in whose if w)])


def title(metric: str) -> str:
    """What a figure is called, without what stands in brackets; its name where no metric of this version reports it."""
    if not _TITLES:
        from deidbench import kinds
        from deidbench.metrics import throughput
        from deidbench.metrics.base import quantities

        known = quantities([kinds.metrics.get(n) for n in kinds.metrics.names()])
        _TITLES.update({name: q.title for name, q in known.items()})
        _TITLES.update({q.name: q.title for q in throughput.QUANTITIES})
    said = _TITLES.get(metric)
    if said is None:
        name, at, target = metric.partition("=")  # figures at a target that the suite chose
        similar = next((t for n, t in _TITLES.items() if at and n.startswith(f"{name}=")), None)
        said = metric if similar is None else re.sub(r"[\d.]+$", target, similar)
    return re.sub(r" \([^)]*\)$", "", said)


def p_text(p: float | None) -> str:
    """A p-value as journals print it, with its sign: ``= 0.031``, ``< 0.001``."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def amount(value: float, unit: str, *, signed: bool = False) -> str:
    """A difference: points for rates, else two or three significant digits."""
    sign = "+" if signed else ""
    if unit == "rate":
        text = f"{100 * value:{sign}.1f}"
    elif unit == "faces/s":
        text = f"{value:{sign}.3g}"
    else:
        digits = 4 if abs(value) < 0.01 else 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
        text = f"{value:{sign}.{digits}f}"
    return text.replace("-", "\u2212")


def unit_word(unit: str) -> str:
    """What follows an amount: " points", " dB", or nothing."""
    if unit == "fraction of the eye distance":
        return " eye distances"
    return " points" if unit == "rate" else "" if unit in _BARE else f" {unit}"


def whose(r: Result) -> str:
    """The attacker and his recogniser, or the classifier."""
    return "" if r.metric == "reid.worst_rank1" else " with ".join(x for x in (r.attacker, r.recognizer) if x)


def spoken(r: Result) -> str:
    """The figure in the middle of a sentence."""
    words = title(r.metric)
    words = words if words[:2].isupper() else words[0].lower() + words[1:]
    convention = r.convention.replace("_", " ") if r.convention not in ("", "headline") else ""
    more = [x for x in (whose(r), r.label, convention) if x]
    return words + (f" ({', '.join(more)})" if more else "")


def verdict(r: Result, alpha: float) -> str:
    """One line: who is better by how much, with interval and adjusted p-value; or that no difference is shown."""
    if r.reason:
        return f"{r.a} and {r.b} cannot be compared in {spoken(r)}: {r.reason}{_trust(r)}"
    if r.identical:
        return f"{r.a} and {r.b} are identical in {spoken(r)}{_trust(r)}"
    shown = r.shown(alpha)
    if r.ratio is not None:
        return _speed(r, shown)
    assert r.difference is not None
    unit, less = unit_word(r.unit), r.difference < 0
    if not shown:
        ends = _ends(r, r.lo, r.hi, signed=True)
        return f"no difference between {r.a} and {r.b} in {spoken(r)} is shown: {amount(r.difference, r.unit, signed=True)}{unit}{ends}{_tail(r)}"
    lo, hi = (r.lo, r.hi) if r.lo is None or r.hi is None or not less else (-r.hi, -r.lo)
    size, ends = amount(abs(r.difference), r.unit), _ends(r, lo, hi)
    if r.metric in NAMES:
        by = f" by {whose(r)}" if r.metric != NAMES[0] else " in the worst case"
        return (
            f"{r.a} has {size} points {'fewer' if less else 'more'} of the faces re-identified{by} than {r.b}{ends}{_tail(r)}"
        )
    good = {"a": f": better for {r.a}", "b": f": better for {r.b}"}.get(r.better, "")
    return f"{r.a} is {size}{unit} {'lower' if less else 'higher'} than {r.b} in {spoken(r)}{ends}{_tail(r)}{good}"


def _ends(r: Result, lo: float | None, hi: float | None, *, signed: bool = False) -> str:
    if lo is None or hi is None:
        return f" (no interval: {r.ci_reason})" if r.ci_reason else ""
    return f" ({100 * r.level:g} % CI {amount(lo, r.unit, signed=signed)} to {amount(hi, r.unit, signed=signed)})"


def _speed(r: Result, shown: bool) -> str:
    assert r.ratio is not None
    turned = r.ratio < 1
    quick, slow = (r.b, r.a) if turned else (r.a, r.b)
    ends = ""
    if r.lo is not None and r.hi is not None:
        lo, hi = (math.exp(-r.hi), math.exp(-r.lo)) if turned else (math.exp(r.lo), math.exp(r.hi))
        ends = f" ({100 * r.level:g} % CI {lo:.2f} to {hi:.2f})"
    ratio = 1 / r.ratio if turned else r.ratio
    if shown:
        return f"{quick} is {ratio:.2f} times as fast as {slow}{ends}{_tail(r)}"
    return (
        f"no difference in speed between {r.a} and {r.b} is shown: {quick} {ratio:.2f} times as fast as {slow}{ends}{_tail(r)}"
    )


def _tail(r: Result) -> str:
    said = f", p_Holm {p_text(r.p_holm)}" if r.p_holm is not None else f", no test: {r.p_reason}" if r.p_reason else ""
    if r.opposed:
        said += ", but most persons differ the other way"
    return said + _trust(r)


def _trust(r: Result) -> str:
    return "" if r.trusted else " (not trusted)"
