"""The data of a run in MLflow: a name, a digest and counts, and no path, slide or patient."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT


@dataclass(frozen=True)
class RunData:
    """The data that a run reads."""

    name: str
    digest: str
    """At most 36 characters."""
    profile: Mapping[str, Any]
    """JSON-ready counts; MLflow's page shows ``num_rows``."""

    def as_input(self, context: str) -> DatasetInput:
        """Make MLflow's input, whose context says what the run does with the data."""
        found = Dataset(self.name, self.digest, source_type="manifest", source="{}", profile=json.dumps(self.profile))
        return DatasetInput(found, [InputTag(MLFLOW_DATASET_CONTEXT, context)])
