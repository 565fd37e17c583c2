"""Metrics beside each other, of which some are not defined."""

from collections.abc import Mapping

import pytest


def assert_close(found: Mapping[str, float | None], expected: Mapping[str, float | None], **tolerance: float) -> None:
    """Compare metrics by ``pytest.approx``; what is None in one is None in the other."""
    known, known_expected = (
        {name: value for name, value in values.items() if value is not None} for values in (found, expected)
    )
    assert known.keys() == known_expected.keys()
    assert found.keys() == expected.keys()
    assert known == pytest.approx(known_expected, **tolerance)
