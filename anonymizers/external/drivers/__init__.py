"""Scripts that run inside other programs' environments.  Nothing here is imported by deidbench."""
