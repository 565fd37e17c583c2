"""What runs in the training controller, beside the driver: the record of each epoch."""

from typing import Any

from ray.train.v2.api.callback import UserCallback

from distmil.tracking import Tracker


class MetricsCallback(UserCallback):  # type: ignore[misc]  # Ray ships no types
    """Sends what workers report to MLflow, from the controller; a failure there never reaches the training."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Log rank 0's metrics, which are the group's."""
        row = dict(metrics[0])
        epoch = int(row.pop("epoch"))
        self._tracker.log_metrics(row, step=epoch)
