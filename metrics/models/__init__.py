"""Recognisers and classifiers.  ``deidbench.kinds.recognizers`` and ``.classifiers`` find them."""
