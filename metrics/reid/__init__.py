"""Re-identification: attackers, identification, verification, and the metric that reports them."""

from deidbench.metrics.reid.metric import ReIdentification

__all__ = ["ReIdentification"]
