"""Pictures: the same persons under every method, each method's worst and best case, and whether faces may be shown at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deidbench import record_shape
from deidbench.errors import InputError
from deidbench.report.figures import COLOURS, COLUMN, GREY, INK, Drawing, canvas
from deidbench.report.view import View, counted, plain, shorten

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: The figures that show faces, with their titles.
FIGURES = {"samples": "What the images look like", "cases": "Worst and best case of each method"}
DPI = 200
#: A sample of more pixels is not shown.
MOST_PIXELS = 40_000_000

_STATUS_WORDS = {
    "no_face": "no face found",
    "no_landmarks": "no landmarks",
    "failed": "failed",
    "passthrough": "pass-through",
    "copy": "another image",
    "fta": "FTA",
}
_NONE = "this run keeps no sample pictures"


# ------------------------------------------------------------------------------------------------------ may they be seen
def hidden(view: View, faces: bool | None) -> str:
    """Why pictures of faces are left out, and how to get them; "" where they are shown.

    faces: what the caller of the report asked for; None: what the run was asked for, else what the data's licence allows.
    """
    asked = faces if faces is not None else view.entry("run").get("faces")
    if asked is True:
        return ""
    if asked is False:
        return f"Pictures of faces are left out, as asked (--no-faces). {_remedy(view)}"
    data = view.entry("dataset")
    if data.get("shows_faces") is True:
        return ""
    name = plain(data.get("title") or data.get("name") or "")
    return (
        f"Pictures of faces are left out: nothing on record says that the persons of this data set{f' ({name})' if name else ''} "
        f"may be shown. If they may: {_remedy(view)}"
    )


def _remedy(view: View) -> str:
    """How to see them."""
    again = "the same deidbench run command with --faces (finished work is reused)"
    if isinstance(index := _index(view.run.folder), str):
        return f"{again} draws them."
    if index.get("faces", True):
        return "deidbench report FOLDER --faces draws them."
    return f"deidbench report FOLDER --faces draws what the methods released; {again} draws the clear images as well."


def remove(folder: Path) -> None:
    """Takes the figures that show faces, as an earlier report may have left them, out of ``folder``."""
    for name in FIGURES:
        for stem in (name, f"{name}-wide"):
            for kind in ("pdf", "svg", "png"):
                (folder / f"{stem}.{kind}").unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------------- reading
def _index(folder: Path) -> Mapping[str, Any] | str:
    path = folder / "samples" / "index.json"
    if not path.is_file():
        return _NONE
    try:
        index = record_shape.read_record(path)
        if not isinstance(index["columns"], list) or not all(isinstance(r["files"], list) for r in index["rows"]):
            raise TypeError("columns and files must be lists")
        if odd := record_shape.faults(index, record_shape.SAMPLES):
            raise ValueError("; ".join(odd[:3]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged: {error!r}", "run the same deidbench run command again; finished work is reused"
        ) from error
    return index if index["columns"] and index["rows"] else _NONE


def _open(folder: Path, file: object) -> Picture | None:
    """A picture of the run; None where it cannot be read or lies outside the run's folder."""
    from PIL import Image as Pictures

    from deidbench.images import read_image

    try:
        base = (folder / "samples").resolve()
        path = (base / str(file)).resolve()
        if not base.is_relative_to(folder.resolve()) or not path.is_relative_to(base):
            return None
        # our own reader: Pillow's would take any format, start programs for some, and decode bombs
        return Pictures.fromarray(read_image(path, max_pixels=MOST_PIXELS))
    except (InputError, OSError, ValueError, RuntimeError):  # a NUL in the name, a ring of links
        return None


def _aspect(pictures: Sequence[Picture]) -> float:
    """Height by width of most of them."""
    found = float(np.median([p.height / p.width for p in pictures])) if pictures else 1.0
    return min(max(found, 0.5), 1.6)


class _Mosaic:
    """Many pictures as one: hundreds of small ones would cost seconds.  Lengths are inches of the figure."""

    def __init__(self, ax: Any, left: float, top: float, width: float, height: float) -> None:
        from PIL import Image as Pictures

        self.ax, self.extent = ax, (left, left + width, top + height, top)
        self.sheet = Pictures.new("RGB", (max(round(width * DPI), 1), max(round(height * DPI), 1)), "white")

    def paste(self, picture: Picture, x: float, y: float, w: float, h: float) -> None:
        """In the middle of the cell whose upper left corner is (x, y), as large as fits."""
        from PIL import Image as Pictures

        pw, ph = round(w * DPI), round(h * DPI)
        scale = min(pw / picture.width, ph / picture.height)
        small = picture.resize(
            (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)),
            Pictures.Resampling.LANCZOS if scale < 1 else Pictures.Resampling.BICUBIC,
        )
        left, _, _, top = self.extent
        at = (round((x - left) * DPI) + (pw - small.width) // 2, round((y - top) * DPI) + (ph - small.height) // 2)
        self.sheet.paste(small, at)

    def show(self) -> None:
        limits = self.ax.get_xlim(), self.ax.get_ylim()
        self.ax.imshow(np.asarray(self.sheet), extent=self.extent, aspect="auto", interpolation="none", zorder=1)
        self.ax.set_xlim(limits[0])
        self.ax.set_ylim(limits[1])


def _blank(ax: Any, x: float, y: float, w: float, h: float, text: str, size: float) -> None:
    """A cell without a picture, and why."""
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), w, h, fc="#f4f4f4", ec=GREY, hatch="/////", lw=0.5, zorder=2, alpha=0.5))
    box = {"fc": "#f4f4f4", "ec": "none", "pad": 0.8}
    ax.text(x + w / 2, y + h / 2, text, fontsize=size, color=INK, ha="center", va="center", zorder=4, bbox=box, linespacing=1.1)


# ---------------------------------------------------------------------------------------------------------- sample grid
def sample_grid(view: View, width: float = COLUMN) -> Drawing | str:
    """Methods by persons.  Withheld images are hatched, anything but ``ok`` is written into the cell."""
    from matplotlib.patches import Rectangle

    index = _index(view.run.folder)
    if isinstance(index, str):
        return index
    wide = width > 5
    order = {m.label: i for i, m in enumerate(view.methods)}
    rows = sorted(index["rows"], key=lambda r: order.get(str(r.get("label")), len(order)))
    n = min(len(index["columns"]), 8 if wide else 5)
    labels = [shorten(r.get("label", ""), 22 if wide else 16) for r in rows]
    size = 7.0 if wide else 6.2
    left = 0.1 + max(map(len, labels)) * 0.58 * size / 72

    pictures: dict[tuple[int, int], Picture] = {}
    broken: set[tuple[int, int]] = set()
    for i, row in enumerate(rows):
        for j, file in enumerate(row["files"][:n]):
            if not file:
                continue
            if (picture := _open(view.run.folder, file)) is None:
                broken.add((i, j))  # said in the cell and in the caption
            else:
                pictures[i, j] = picture
    aspect = _aspect(list(pictures.values()))
    gap, head = 0.03, 0.2
    cw = (width - left - 0.05) / n - gap
    # A page is 9 inches high; cells shrink to it, but not below what an eye can use.
    ch = max(min(cw * aspect, 9.0 / len(rows) - gap), min(0.42, cw * aspect))
    cw = ch / aspect
    fw, fh = left + n * (cw + gap) + 0.05, head + len(rows) * (ch + gap) + 0.04
    figure, ax = canvas(fw, fh)
    mosaic = _Mosaic(ax, left, head, n * (cw + gap), len(rows) * (ch + gap))
    for (i, j), picture in pictures.items():
        mosaic.paste(picture, left + j * (cw + gap), head + i * (ch + gap), cw, ch)
    mosaic.show()

    tiny = max(min(5.8, cw * 72 / 7.2), 4.2)
    withheld = unkept = 0
    remarks: list[str] = []
    for j, column in enumerate(index["columns"][:n]):
        room = int(cw * 72 / (0.6 * 5.6))
        ax.text(
            left + j * (cw + gap) + cw / 2,
            head - 0.05,
            shorten(str(column).rsplit(".", 1)[0], max(room, 4)),
            fontsize=5.6,
            color=GREY,
            ha="center",
            va="bottom",
        )
    for i, row in enumerate(rows):
        y = head + i * (ch + gap)
        m = next((m for m in view.methods if m.label == str(row.get("label"))), None)
        control = m is not None and m.control
        ax.text(left - 0.06, y + ch / 2, labels[i], fontsize=size, ha="right", va="center", color=GREY if control else INK)
        statuses = list(row.get("statuses") or [])
        for j in range(n):
            status = str(statuses[j]) if j < len(statuses) else ""
            x = left + j * (cw + gap)
            word = _STATUS_WORDS.get(status, status.replace("_", " ") if status not in ("", "ok") else "")
            if (i, j) in pictures:
                if word:
                    alarm = GREY if control else COLOURS[1]
                    ax.add_patch(Rectangle((x, y), cw, ch, fill=False, ec=alarm, lw=1.0, zorder=3))
                    ax.add_patch(Rectangle((x, y + ch - 0.115), cw, 0.115, fc=alarm, ec="none", zorder=3))
                    ax.text(x + cw / 2, y + ch - 0.055, word, fontsize=tiny, color="white", ha="center", va="center", zorder=4)
                    remarks.append(f"{labels[i]}, column {j + 1}: {word}")
                continue
            left_out = not index.get("faces", True) and status in ("passthrough", "copy")
            first = "unreadable" if (i, j) in broken else "not kept" if left_out else "withheld"
            withheld += first == "withheld"
            unkept += first == "not kept"
            _blank(ax, x, y, cw, ch, first if not word else f"{first}\n{word}", tiny)
            remarks.append(f"{labels[i]}, column {j + 1}: {first}{' (' + word + ')' if word else ''}")
    more = len(index["columns"]) - n
    hatched = [f"nothing was released ({counted(withheld, 'image')})"] if withheld else []
    hatched += [f"a clear face, which this run does not keep ({counted(unkept, 'image')})"] if unkept else []
    caption = (
        f"{counted(n, 'image')} as each method releases them."
        + (f" Hatched: {', or '.join(hatched)}." if hatched else "")
        + (f" {counted(len(broken), 'picture')} could not be read." if broken else "")
        + (f" {counted(more, 'further image')} in samples/." if more > 0 else "")
    )
    alt = f"Grid of face images: {len(rows)} methods by {n} images. Rows: {', '.join(labels)}." + (
        f" {'; '.join(remarks[:12])}." if remarks else ""
    )
    return Drawing(figure, caption, alt)


# --------------------------------------------------------------------------------------------------- worst and best case
_ENDS = (("worst", "Hidden worst"), ("best", "Hidden best"))


def cases(view: View, width: float = COLUMN) -> Drawing | str:
    """A line per method: the image that it hides worst and the one that it hides best, original beside output."""
    index = _index(view.run.folder)
    if isinstance(index, str):
        return index
    found = index.get("cases")
    if not isinstance(found, Mapping):
        return "this run does not say which image each method hides worst and best (run it again; finished work is reused)"
    rows = found.get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, Mapping) for r in rows) or not rows:
        return plain(found.get("why") or "no method released an image")
    wide = width > 5
    order = {m.label: i for i, m in enumerate(view.methods)}
    rows = sorted(rows, key=lambda r: order.get(str(r.get("label")), len(order)))
    labels = [shorten(r.get("label", ""), 22 if wide else 14) for r in rows]
    size, small = (7.0, 6.2) if wide else (6.2, 5.0)
    left = 0.1 + max(map(len, labels)) * 0.58 * size / 72

    pictures: dict[tuple[int, int], Picture] = {}
    broken = 0
    for i, row in enumerate(rows):
        for e, (end, _) in enumerate(_ENDS):
            case = _mapping(row.get(end))
            for k, name in enumerate(("original", "output")):
                if case.get(name):
                    if (picture := _open(view.run.folder, case[name])) is None:
                        broken += 1
                    else:
                        pictures[i, 2 * e + k] = picture
    aspect = _aspect(list(pictures.values()))
    gap, between, head, below = 0.03, 0.16, 0.36, 0.17 if wide else 0.15
    cw = min((width - left - 0.05 - between) / 4 - gap, 1.1)
    ch = max(min(cw * aspect, 9.0 / len(rows) - below), min(0.5, cw * aspect))
    cw = ch / aspect
    # texts below a pair need their room, however small the pictures became
    pair = max(2 * cw + gap, 1.5 if wide else 1.05)
    pad = (pair - 2 * cw - gap) / 2
    fw, fh = left + 2 * pair + between + 0.08, head + len(rows) * (ch + below) + 0.02
    figure, ax = canvas(fw, fh)

    def across(column: int) -> float:
        return left + (column // 2) * (pair + between) + pad + (column % 2) * (cw + gap)

    mosaic = _Mosaic(ax, left, head, fw - left, fh - head)
    for (i, column), picture in pictures.items():
        mosaic.paste(picture, across(column), head + i * (ch + below), cw, ch)
    mosaic.show()
    for e, (_, title) in enumerate(_ENDS):
        x0, x1 = across(2 * e), across(2 * e + 1)
        ax.text((x0 + x1 + cw) / 2, 0.13, title, fontsize=size, ha="center", va="center", color=INK)
        for k, name in enumerate(("original", "output")):
            ax.text(across(2 * e + k) + cw / 2, head - 0.05, name, fontsize=small, ha="center", va="bottom", color=GREY)
    said: list[str] = []
    room = int(pair * 72 / (0.54 * small))
    for i, row in enumerate(rows):
        y = head + i * (ch + below)
        ax.text(left - 0.06, y + ch / 2, labels[i], fontsize=size, ha="right", va="center", color=INK)
        for e, (end, title) in enumerate(_ENDS):
            case = _mapping(row.get(end))
            middle = (across(2 * e) + across(2 * e + 1) + cw) / 2
            if not case.get("output"):
                why = plain(case.get("why") or "no image")
                _blank(ax, across(2 * e), y, 2 * cw + gap, ch, _broken_up(why, room), small)
                said.append(f"{labels[i]}, {title.lower()}: none, {why}")
                continue
            for column in (2 * e, 2 * e + 1):
                if (i, column) not in pictures:
                    _blank(ax, across(column), y, cw, ch, "unreadable", small)
            value = case.get("similarity")
            text = f"{value:.3f}".replace("-", "−") if isinstance(value, int | float) else "–"
            status = str(case.get("status") or "")
            words = [w for w in (_STATUS_WORDS.get(status, ""), "no face found" if case.get("fta") else "") if w]
            alarm = COLOURS[1] if status in ("passthrough", "copy") else GREY
            tail = f": {text}{''.join(', ' + w for w in words)}"
            name = str(case.get("id", "")).rsplit(".", 1)[0]
            line = shorten(name, max(room - len(tail), 6)) + tail
            ax.text(middle, y + ch + 0.025, line, fontsize=small, ha="center", va="top", color=alarm)
            said.append(f"{labels[i]}, {title.lower()}: {plain(name)}{tail}")
    same, two = found.get("same_person"), found.get("two_persons")
    levels = (
        f" For scale: two clear images of one person have {same:.3f}, of two persons {two:.3f} (medians)."
        if isinstance(same, int | float) and isinstance(two, int | float)
        else ""
    )
    n = found.get("n_images")
    of = f" and its {counted(n, 'image')}" if isinstance(n, int) else ""
    caption = (
        f"Of each method{of}, the image whose output is most like its original, and the one whose output is least like it "
        f"(of those with a face found in the output). Below each pair: the image, and the cosine "
        f"similarity of the two faces by {plain(found.get('recognizer', 'a recogniser'))}.{levels}"
        + (f" {counted(broken, 'picture')} could not be read." if broken else "")
    )
    return Drawing(figure, caption, f"Pairs of original and output for {counted(len(rows), 'method')}. {'; '.join(said)}.")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _broken_up(text: str, room: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(room - 2, 8)))
