"""The ignorant attacker: clear photographs, a stock recogniser, and no idea that the probe was anonymised."""

from __future__ import annotations

from deidbench.kinds import attackers
from deidbench.metrics.reid.base import Attacker, cosine
from deidbench.types import Floats


@attackers.register("ignorant")
class Ignorant(Attacker):
    """Compares anonymised probes with clear photographs by the cosine of a stock recogniser's embeddings."""

    version = "1"
    knows = "holds clear photographs of the persons and a stock recogniser, and does not know that the probe was anonymised"
    citation = "Newton, Sweeney & Malin, Preserving Privacy by De-Identifying Face Images, IEEE TKDE 2005 (naive recognition)"
    by_cosine = True
    gallery = "clear"

    def scores(self, gallery: Floats, probes: Floats) -> Floats:
        return cosine(gallery, probes)
