"""Expression: whether the emotion that a face shows can still be read after anonymisation, and is read as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from deidbench.errors import InputError
from deidbench.kinds import metrics
from deidbench.metrics import _emotion_figures as figures
from deidbench.metrics._emotion_figures import Figure, Tally
from deidbench.metrics.base import NO_BACKGROUND, Background, Findings, Metric, Protocol, Quantity, Reading, Table
from deidbench.metrics.models.labels import EMOTIONS
from deidbench.metrics.models.labels import emotion as class_of
from deidbench.metrics.soft_biometrics import FOLDS, MIN_PERSONS
from deidbench.records import Row
from deidbench.stats import intervals

FAMILY = "emotion"
STOCK = "stock"
ADAPTED = f"adapted, {FOLDS}-fold over the evaluated persons"
RETRAINED = f"retrained, {FOLDS}-fold over the evaluated persons"
CONVENTIONS = ("headline", "without_fta")
#: The predicted class of an image of which nothing can be read.
UNREAD = "withheld or no face"


def _quantity(name: str, title: str, unit: str = "rate", higher_is_better: bool | None = True) -> Quantity:
    return Quantity(f"{FAMILY}.{name}", title, unit, higher_is_better, "utility", FAMILY)


@metrics.register("emotion")
class Emotion(Metric):
    """How well classifiers read the emotion of the anonymised face, and whether they say what they said of the clear one.

    *stock*: the classifier as it comes.  Its answer is the most probable of the classes that occur in the data set (sets differ:
    CK+ has seven, the London set two); ``uar_open`` allows all its classes.  Images of classes that it does not know are left
    out and counted.  Probabilities that tie share the answer, 1/m each: the expected value under a random choice.

    *adapted*: multinomial logistic regression on the classifier's standardised features, learnt on the clear images of four fifths of the
    persons and asked about the others; *retrained*: the same learnt on the anonymised images and asked about clear ones, the
    experiment of the GANonymization paper, which trains a whole network where here the classifier below the linear layer stays
    as it is.  Classes with fewer than ten persons are left out of both.

    An image that was withheld, or in which no face was found, is of no class: a wrong answer.  ``without_fta`` are the figures
    over the other images; those that average over classes are empty there when a whole class is gone.  Clear images are judged
    by the same rule; their figure stands in the note.

    ``kappa`` (Cohen) compares the answers to the clear and to the anonymised image, over all classes of the classifier; there
    "withheld or no face" is an answer of its own.  ``delta_p`` is the paper's measure, the mean |p(anonymised) - p(clear)| of a
    class over released images, those without a face through the fallback crop.  Neither needs labels.

    A classifier whose UAR on clear images is not above chance (lower bound) is not trusted, whatever it says.
    """

    version = "2"
    citation = (
        "Hellmann et al., GANonymization: a GAN-based face anonymization framework for preserving emotional expressions, 2023"
    )
    quantities = (
        _quantity("accuracy", "Emotion, accuracy"),
        _quantity("macro_f1", "Emotion, macro F1"),
        _quantity("uar", "Emotion, UAR"),
        _quantity("uar_open", "Emotion, UAR with all classes of the classifier as answers"),
        _quantity("recall", "Emotion, recall of a class"),
        _quantity("confusion", "Emotion, share of a true class that is read as another", higher_is_better=None),
        _quantity("accuracy_change", "Emotion, accuracy: anonymised minus clear"),
        _quantity("uar_change", "Emotion, UAR: anonymised minus clear"),
        _quantity("kappa", "Emotion, agreement with what is read off the clear image (Cohen's kappa)", "kappa"),
        _quantity("delta_p", "Emotion, mean change of a class's probability", "probability", False),
        _quantity("mean_delta_p", "Emotion, mean change of probability over classes", "probability", False),
        _quantity("retrained_macro_f1", "Emotion, macro F1 on clear images after learning from anonymised ones"),
        _quantity("retrained_uar", "Emotion, UAR on clear images after learning from anonymised ones"),
    )

    def params(self) -> dict[str, Any]:
        return {"strength": figures.STRENGTH, "folds": FOLDS, "min_persons": MIN_PERSONS}

    def score(self, clear: Table, anonymised: Table, protocol: Protocol, background: Background = NO_BACKGROUND) -> Findings:
        """clear, anonymised: the same images in the same order.  Raises InputError where they are not."""
        if not (np.array_equal(clear.ids, anonymised.ids) and np.array_equal(clear.subjects, anonymised.subjects)):
            raise InputError(
                f"{anonymised.method!r} and the clear images of {clear.dataset!r} are not the same images in the same order",
                "run the same deidbench run command again",
            )
        names = sorted(
            name
            for name in clear.readings.keys() & anonymised.readings.keys()
            if clear.readings[name].task == anonymised.readings[name].task == "emotion"
        )
        if not names or not clear.n:
            why = "the suite has no emotion classifier" if not names else "there are no images"
            nothing = np.zeros(anonymised.n, np.bool_)
            blank = Row(anonymised.dataset, anonymised.method, "", "", None, None, family=FAMILY)
            scorer = _Scorer(blank, anonymised, protocol, nothing, nothing)
            return Findings([scorer.refuse(q.name, why) for q in self.quantities], [])
        return Findings([row for name in names for row in _classifier(clear, anonymised, name, protocol)], [])


@dataclass(frozen=True, eq=False)
class _Truth:
    """Ground truth.  code: (n,) index into EMOTIONS, -1 where unknown.  remark: on words that are none of ours."""

    code: npt.NDArray[np.intp]
    remark: str

    @classmethod
    def of(cls, table: Table) -> _Truth:
        if table.emotion is None:
            return cls(np.full(table.n, -1, np.intp), "")
        words, place = np.unique(table.emotion, return_inverse=True)
        known = [class_of(w) for w in words.tolist()]
        code = np.array([-1 if k is None else EMOTIONS.index(k) for k in known], np.intp)[place]
        strange = Counter(w for w in table.emotion.tolist() if w.strip() and class_of(w) is None)
        return cls(code, f"unknown words left out: {_listed(strange)}" if strange else "")

    def classes(self) -> list[str]:
        return [EMOTIONS[c] for c in np.unique(self.code[self.code >= 0])]

    def among(self, classes: Sequence[str]) -> npt.NDArray[np.intp]:
        """(n,) index into ``classes``, -1 for all others."""
        place = np.array([classes.index(e) if e in classes else -1 for e in EMOTIONS] + [-1], np.intp)
        return place[self.code]


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Makes rows about some of the images.  which: (n,) those that count.  unread: (n,) anonymised, not read.

    remarks: end of each row's note.  trusted: see :class:`Row`.
    """

    base: Row
    table: Table
    protocol: Protocol
    which: npt.NDArray[np.bool_]
    unread: npt.NDArray[np.bool_]
    remarks: tuple[str, ...] = ()
    trusted: bool = True

    def row(
        self,
        name: str,
        convention: str = "headline",
        label: str = "",
        about: npt.NDArray[np.bool_] | None = None,
        of: npt.NDArray[np.bool_] | None = None,
    ) -> Row:
        """about: (n,) what the row is about (by default ``which``), whose failures it counts.

        of: (n,) what is in its denominator, by default all of that or (by convention) what could be read of it.
        """
        (q,) = (q for q in Emotion.quantities if q.name == f"{FAMILY}.{name.removeprefix(FAMILY + '.')}")
        about = self.which if about is None else about
        if of is None:
            of = about & ~self.unread if convention == "without_fta" else about
        return replace(
            self.base,
            metric=q.name,
            unit=q.unit,
            higher_is_better=q.higher_is_better,
            convention=convention,
            label=label,
            trusted=self.trusted,
            n_images=int(of.sum()),
            n_persons=len(np.unique(self.table.subjects[of])),
            n_failed=int((self.table.withheld & about).sum()),
            n_fta=int((self.table.fta & ~self.table.withheld & about).sum()),
        )

    def refuse(self, name: str, reason: str, convention: str = "headline", label: str = "") -> Row:
        return replace(self.row(name, convention, label), reason=reason, ci_reason=reason, trusted=True)

    def put(self, row: Row, figure: Figure, *, why: str = "", chance: float | None = None, note: Sequence[str] = ()) -> Row:
        """why: the reason of a figure that cannot be computed."""
        if np.isnan(figure.value):
            return replace(row, reason=why, ci_reason=why, trusted=True)
        interval = figure.interval(self.protocol.confidence)
        return replace(
            row,
            evidence=figure.evidence if figure.minus is None else None,
            value=figure.value,
            lo=interval.lo,
            hi=interval.hi,
            ci_level=interval.level if interval.lo is not None else None,
            ci_method=interval.method,
            ci_reason=interval.reason,
            chance=chance,
            note="; ".join(part for part in (*note, *self.remarks) if part),
        )

    def gone(self, of: npt.NDArray[np.bool_] | None = None) -> str:
        """Why none of the images can be read."""
        of = self.which if of is None else of
        return "nothing was released" if self.table.withheld[of].all() else "no face was found in any released image"

    def said(self, clear: Figure, what: str = "clear") -> str:
        """What was reached on clear images, for a note."""
        if np.isnan(clear.value):
            return ""
        interval = clear.interval(self.protocol.confidence)
        bounds = "" if interval.lo is None else f" [{interval.lo:.3f}, {interval.hi:.3f}]"
        return f"{what} {clear.value:.3f}{bounds}"


def _classifier(clear: Table, anonymised: Table, name: str, protocol: Protocol) -> list[Row]:
    """All rows of one classifier."""
    before, after = clear.readings[name], anonymised.readings[name]
    if before.labels != after.labels:
        raise InputError(
            f"{name!r} has other classes on the clear images than on those of {anonymised.method!r}",
            "run the same deidbench run command again",
        )
    dark, hidden = _unread(clear, before), _unread(anonymised, after)
    names, who = np.unique(clear.subjects, return_inverse=True)
    draws = intervals.person_draws(names.tolist(), protocol.replicates, protocol.seed)
    truth = _Truth.of(clear)
    everything = np.ones(clear.n, np.bool_)
    base = Row(anonymised.dataset, anonymised.method, "", "", None, None, recognizer=name, family=FAMILY)

    labels, p, q = _probabilities(before, after)
    known = [c for c in truth.classes() if c in labels]
    code = truth.among(known)
    stock = _Scorer(replace(base, comparison=STOCK), anonymised, protocol, code >= 0, hidden)
    rows, doubt = _stock(stock, truth, labels, known, p, q, dark, who, draws)

    agreement = replace(stock, which=everything, remarks=doubt, trusted=not any(d.startswith("untrusted") for d in doubt))
    for convention in CONVENTIONS:
        use = everything if convention == "headline" else ~dark & ~hidden
        cut = slice(None) if convention == "headline" else slice(-1)  # no image is "unread" among those that were read
        a, b = figures.shares(p, dark)[use, cut], figures.shares(q, hidden)[use, cut]
        row = agreement.row("kappa", convention, of=use)
        why = "both answers are the same class for every image" if use.any() else agreement.gone(everything)
        classes = f"over the {len(labels)} classes of the classifier"
        rows.append(agreement.put(row, figures.kappa(a, b, who[use], draws), why=why, note=[classes]))
    for convention in CONVENTIONS:
        use = ~np.isnan(p).any(1) & ~np.isnan(q).any(1)
        if convention == "without_fta":
            use &= ~dark & ~hidden
        moved = np.abs(q[use] - p[use])
        found = figures.means(np.column_stack([moved, moved.mean(1)]), who[use], draws)
        for label, figure in zip((*labels, ""), found, strict=True):
            row = agreement.row("delta_p" if label else "mean_delta_p", convention, label, of=use)
            rows.append(agreement.put(row, figure, why=agreement.gone(everything)))

    return rows + _heads(base, clear, anonymised, name, protocol, truth, dark, hidden, who, draws)


def _stock(
    scorer: _Scorer,
    truth: _Truth,
    labels: Sequence[str],
    classes: Sequence[str],
    p: npt.NDArray[np.float64],
    q: npt.NDArray[np.float64],
    dark: npt.NDArray[np.bool_],
    who: npt.NDArray[np.intp],
    draws: npt.NDArray[np.uint8],
) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of the classifier as it comes, and what its answers to clear images cast doubt on (for notes)."""
    k = len(classes)
    foreign = Counter(EMOTIONS[c] for c in truth.code[truth.code >= 0] if EMOTIONS[c] not in labels)
    strange = f"left out, unknown to the classifier: {_listed(foreign)}" if foreign else ""
    if k < 2:
        why = _unlabelled(truth) or (
            f"every image is {classes[0]}, of the classes that the classifier knows"
            if k
            else f"the classifier knows none of the classes of the images ({', '.join(truth.classes())})"
        )
        rows = [scorer.refuse(n, why, c) for n in ("accuracy", "macro_f1", "uar") for c in CONVENTIONS]
        rows += [scorer.refuse(n, why) for n in ("uar_open", "accuracy_change", "uar_change", "recall", "confusion")]
        return rows, (f"how good the classifier is on these images is unknown: {why}",)

    code, columns = truth.among(classes), [list(labels).index(c) for c in classes]
    readings = []
    for scores, unread in ((p, dark), (q, scorer.unread)):
        free = figures.shares(scores, unread)
        other = 1 - free[:, columns].sum(1, keepdims=True)  # another class of the classifier's, or unread: wrong
        readings += [(code, figures.shares(scores[:, columns], unread)), (code, np.hstack([free[:, columns], other]))]
    plain, plain_open, tally, tally_open = figures.tally(readings, who, draws)

    doubt = _doubt(scorer, plain)
    of = f"classes {', '.join(classes)} ({k} of the classifier's {len(labels)} occur)"
    with_all = replace(scorer, remarks=tuple(x for x in (of, strange, truth.remark, *doubt) if x), trusted=not doubt)
    rows = _rates(with_all, classes, tally, plain)
    figure = tally_open.figure("uar")
    rows.append(with_all.put(with_all.row("uar_open"), figure, chance=1 / k, note=[scorer.said(plain_open.figure("uar"))]))
    for name in ("accuracy", "uar"):
        before, after = plain.figure(name), tally.figure(name)
        rows.append(with_all.put(with_all.row(f"{name}_change"), after.less(before), note=[scorer.said(before)]))
    brief = replace(with_all, remarks=tuple(doubt))
    for c, true in enumerate(classes):
        about = code == c
        row = brief.row("recall", label=true, about=about)
        rows.append(brief.put(row, tally.share(c, c), chance=1 / k, note=[scorer.said(plain.share(c, c))]))
    for c, true in enumerate(classes):
        about = code == c
        for d, predicted in enumerate((*classes, UNREAD)):
            row = brief.row("confusion", label=f"{true} -> {predicted}", about=about)
            rows.append(brief.put(row, tally.share(c, d), note=[scorer.said(plain.share(c, d))]))
    return rows, doubt


def _rates(scorer: _Scorer, classes: Sequence[str], tally: Tally, plain: Tally) -> list[Row]:
    """Accuracy, macro F1 and UAR in both conventions."""
    rows = []
    images = tally.table
    for name in ("accuracy", "macro_f1", "uar"):
        for convention in CONVENTIONS:
            conditional = convention == "without_fta"
            each = (images[:, :-1] if conditional else images).sum(1)
            lost = [c for c, n in zip(classes, each, strict=True) if n == 0]
            why = scorer.gone() if len(lost) == len(classes) else f"no face was found in any image of {', '.join(lost)}"
            chance = None
            if name != "macro_f1" and each.any():
                # What an answer that ignores the image reaches at best.
                chance = float(each.max() / each.sum()) if name == "accuracy" else 1 / len(classes)
            rows.append(
                scorer.put(
                    scorer.row(name, convention),
                    tally.figure(name, conditional),
                    why=why,
                    chance=chance,
                    note=[scorer.said(plain.figure(name, conditional))],
                )
            )
    return rows


def _heads(
    base: Row,
    clear: Table,
    anonymised: Table,
    name: str,
    protocol: Protocol,
    truth: _Truth,
    dark: npt.NDArray[np.bool_],
    hidden: npt.NDArray[np.bool_],
    who: npt.NDArray[np.intp],
    draws: npt.NDArray[np.uint8],
) -> list[Row]:
    """Rows of linear heads on the classifier's features."""
    persons = {c: len(np.unique(clear.subjects[truth.code == EMOTIONS.index(c)])) for c in truth.classes()}
    classes = [c for c, n in persons.items() if n >= MIN_PERSONS]
    scarce = [f"{c} ({n} person{'s' * (n != 1)})" for c, n in persons.items() if n < MIN_PERSONS]
    code = truth.among(classes)
    adapted = _Scorer(replace(base, comparison=ADAPTED), anonymised, protocol, code >= 0, hidden)
    retrained = replace(adapted, base=replace(base, comparison=RETRAINED))

    x, y = (_features(t.readings[name], u) for t, u in ((clear, dark), (anonymised, hidden)))
    why = _unlabelled(truth)
    if not why and len(classes) < 2:
        why = f"fewer than two classes have {MIN_PERSONS} persons" + (f"; too few: {', '.join(scarce)}" if scarce else "")
    if not why and not x.shape[1]:
        why = "the classifier gives no features to learn from"
    if not why and dark[code >= 0].all():
        why = "no face was found in any clear image"
    if why:
        rows = [adapted.refuse(n, why, c) for n in ("accuracy", "macro_f1", "uar") for c in CONVENTIONS]
        return rows + [retrained.refuse(f"retrained_{n}", why) for n in ("macro_f1", "uar")]
    if y.shape[1] != x.shape[1]:  # of a method of which nothing was released nobody knows how many features it has
        if not hidden.all():
            raise InputError(
                f"{name!r} gives {x.shape[1]} features of clear images and {y.shape[1]} of those of {anonymised.method!r}",
                "every call of embed must return the same number of columns",
            )
        y = np.full_like(x, np.nan)

    said = figures.heads(x, y, code, len(classes), clear.subjects, clear.ids, protocol.seed)
    plain, tally, again = figures.tally([(code, s) for s in (said.clear, said.anonymised, said.retrained)], who, draws)
    doubt = _doubt(adapted, plain)
    remarks = (
        f"classes {', '.join(classes)}",
        f"left out, fewer than {MIN_PERSONS} persons: {', '.join(scarce)}" if scarce else "",
        truth.remark,
        *doubt,
    )
    adapted = replace(adapted, remarks=remarks, trusted=not doubt)
    rows = _rates(adapted, classes, tally, plain)

    lost = int((hidden & (code >= 0)).sum())
    untaught = f"{lost} of {int((code >= 0).sum())} images could not be learnt from" if lost else ""
    # Learnt from anonymised images, asked about clear ones: what counts as unread is a clear image without a face.
    retrained = replace(retrained, remarks=remarks, trusted=not doubt)
    for kind in ("macro_f1", "uar"):
        row = retrained.row(f"retrained_{kind}")
        if hidden[code >= 0].all():
            rows.append(retrained.refuse(f"retrained_{kind}", f"nothing to learn from: {adapted.gone()}"))
            continue
        note = [retrained.said(plain.figure(kind), "learnt on clear"), untaught]
        chance = 1 / len(classes) if kind == "uar" else None
        rows.append(retrained.put(row, again.figure(kind), chance=chance, note=note))
    return rows


def _doubt(scorer: _Scorer, plain: Tally) -> tuple[str, ...]:
    """Empty where the UAR on clear images is above chance."""
    level = scorer.protocol.confidence
    chance = 1 / plain.counts.shape[1]
    figure = plain.figure("uar")
    lo = figure.interval(level).lo
    if lo is None:
        lo = plain.present().interval(level).lo
    if lo is not None and lo > chance:
        return ()
    reached = scorer.said(figure, "UAR")
    return (f"untrusted: the classifier is not shown to be above chance ({chance:.3f}) on clear images ({reached})",)


def _unlabelled(truth: _Truth) -> str:
    """Why nothing can be said against ground truth; empty where something can."""
    found = truth.classes()
    if not found:
        return "the images have no labels of emotions" + (f" that are known ({truth.remark})" if truth.remark else "")
    return f"every labelled image is {found[0]}" if len(found) == 1 else ""


def _unread(table: Table, reading: Reading) -> npt.NDArray[np.bool_]:
    """(n,): withheld, without a face, or (whatever the cause) without an answer."""
    return np.asarray(table.withheld | table.fta | np.isnan(reading.probabilities).any(1), np.bool_)


def _features(reading: Reading, unread: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """NaN rows where nothing was read."""
    x = reading.features.astype(np.float64)
    x[unread] = np.nan
    return x


def _probabilities(before: Reading, after: Reading) -> tuple[tuple[str, ...], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Class names, and the probabilities (n, K) of both; classes that have one name are one class."""
    named = [class_of(label) or label for label in before.labels]
    labels = tuple(dict.fromkeys(named))
    member = np.array([[a == b for b in labels] for a in named], np.float64).reshape(len(named), len(labels))
    p, q = (r.probabilities.astype(np.float64) @ member for r in (before, after))
    return labels, p, q


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{word} ({n})" for word, n in sorted(counts.items()))
