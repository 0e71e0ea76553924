"""Anonymizers, one file per method.  ``deidbench.kinds.anonymizers`` finds them."""
