"""How many random cases a property test goes through: hundreds in `make test`, thousands in `make test-all`."""

import os

IS_FULL = os.environ.get("DISTMIL_TEST_ALL") == "1"


def cases(usual: int, *, full: int) -> int:
    """Return how many random cases to try."""
    return full if IS_FULL else usual
