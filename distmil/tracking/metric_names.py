"""Names of metrics in MLflow, which draws a section of charts for each path before the last slash."""

ROW_GROUPS = ("val", "held_out")
"""Prefixes of the metrics that an epoch's row has beside those of training."""


def metric_name(name: str, group: str | None = None) -> str:
    """Name a metric as MLflow groups it: ``loss`` is ``train/loss``, ``val_slide_auc`` is ``val/slide_auc``.

    Args:
        name: As in the rows of epochs, in ``metrics.json`` and in reports. A name with a slash stays.
        group: The section; None: the one that a row's name says.
    """
    if "/" in name:
        return name
    if group is not None:
        return f"{group}/{name}"
    for found in ROW_GROUPS:
        if name.startswith(f"{found}_"):
            return f"{found}/{name.removeprefix(f'{found}_')}"
    return f"train/{name}"
