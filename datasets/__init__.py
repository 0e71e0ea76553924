"""Data sets, one file each.  ``deidbench.kinds.datasets`` finds them."""
