"""``python -m deidbench.anonymizers.external PROGRAM ...``: makes the environment of an outside program."""

from __future__ import annotations

import sys

from deidbench.anonymizers.external import deepprivacy2

PROGRAMS = {"deepprivacy2": deepprivacy2.command_line}


def main(arguments: list[str]) -> int:
    """Exit code of the program's own command line; 2 for one that is not known."""
    if not arguments or arguments[0] not in PROGRAMS:
        sys.stderr.write(f"which program? known: {', '.join(PROGRAMS)}\n")
        return 2
    return PROGRAMS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
