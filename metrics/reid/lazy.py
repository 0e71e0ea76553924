"""The lazy-informed attacker: anonymised photographs and a stock recogniser."""

from __future__ import annotations

from deidbench.kinds import attackers
from deidbench.metrics.reid.base import Attacker, cosine
from deidbench.types import Floats


@attackers.register("lazy-informed")
class LazyInformed(Attacker):
    """Anonymises his photographs with the same method, and compares like with like by a stock recogniser's cosine.

    Gallery and probes are different images, each anonymised with a seed of its own: their randomness is independent.
    """

    version = "1"
    knows = "has the anonymizer, and enrols photographs that he anonymised himself; a stock recogniser, nothing is learnt"
    citation = (
        "Newton, Sweeney & Malin, Preserving Privacy by De-Identifying Face Images, IEEE TKDE 2005 (parrot recognition); the "
        "name: Srivastava et al., Evaluating Voice Conversion-based Privacy Protection against Informed Attackers, ICASSP 2020"
    )
    by_cosine = True
    gallery = "anonymised"

    def scores(self, gallery: Floats, probes: Floats) -> Floats:
        return cosine(gallery, probes)
