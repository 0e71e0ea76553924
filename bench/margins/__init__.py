"""Bundled margins of ``deidbench gate``."""
