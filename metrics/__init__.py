"""Metrics: pure functions on columns.  ``deidbench.kinds.metrics`` finds them."""
