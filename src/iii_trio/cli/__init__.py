"""The command line."""

from typing import Final

PROGRAM: Final = "iii-trio"
COMPLETE_VARIABLE: Final = "_III_TRIO_COMPLETE"
"""What a shell's completion script asks the program with."""
