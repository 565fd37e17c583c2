"""The data of a run in MLflow: a name, a digest and counts, and no path, slide or patient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunData:
    """The data that a run reads."""

    name: str
    digest: str
    """At most 36 characters."""
    profile: Mapping[str, Any]
    """JSON-ready counts; MLflow's page shows ``num_rows``."""
