"""Other people's programs as anonymizers: each runs in its own environment, as a process of its own.

Importing this package registers them (the registry walks the room's modules, not what lies deeper).
"""

from deidbench.anonymizers.external import command, deepprivacy2

__all__ = ["command", "deepprivacy2"]
