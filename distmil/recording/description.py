"""The description of a run in MLflow: what it is, how good it is, and the command that repeats it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from distmil.config.root import PRIVATE_KEYS, Config
from distmil.tracking.dataset import RunData
from distmil.tracking.training_run import JOB

NOTE = "mlflow.note.content"
MAX_CHARACTERS = 5000
"""MLflow's limit of a tag's value on some databases."""


def job_tags(job: str) -> dict[str, str]:
    """Make the tags that name the job of a run."""
    return {JOB: job, "mlflow.source.name": f"distmil {job}", "mlflow.source.type": "LOCAL"}


def describe_run(title: str, data: RunData, verdicts: Sequence[str], command: str) -> dict[str, str]:
    """Make the tag that MLflow shows as a run's description.

    Args:
        title: What the run is, in Markdown.
        data: Its slides.
        verdicts: Lines on its results.
        command: What repeats it.
    """
    count, patients = data.profile["num_rows"], data.profile["patients"]
    splits = "; ".join(
        f"{split}: {', '.join(f'{number} {label}' for label, number in labels.items())}"
        for split, labels in data.profile["splits"].items()
    )
    about = f"Data: {data.name} ({data.digest}), {count} slides of {patients} patients ({splits})"
    text = "\n\n".join([title, *verdicts, about, f"```\n{command}\n```"])
    return {NOTE: text[:MAX_CHARACTERS]}


def verdict_lines(metrics: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Word the area under the curve of each split with its interval, and of how many slides it is.

    Args:
        metrics: By split, as in ``metrics.json``.
        intervals: By split, as in ``intervals.json``: intervals of metrics, and counts.
    """
    found = []
    for split, values in metrics.items():
        counts, value = intervals.get(split, {}), values.get("slide_auc")
        if not counts.get("slides"):
            continue
        of = f"{counts['slides']} slides of {counts['patients']} patients, {counts['positive_slides']} abnormal"
        bounds = counts.get("slide_auc")
        text = "not defined" if value is None else f"**{value:.2f}**"
        text += f" (95 % interval {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
        found.append(f"{split}: slide AUC {text}, {of}")
    return found


def command_of(job: str, config: Config, *, model: str = "MODEL") -> str:
    """Word the command that repeats a job, with words in capitals for private values.

    Args:
        job: Its name.
        config: The configuration as the user gave it.
        model: What to write for ``prediction.model``.
    """
    words = {key: key.partition(".")[2].upper() for key in PRIVATE_KEYS} | {"prediction.model": model}
    words["encoder.weights"] = config.encoder.weights_name
    asked = config.explicit()  # in no fixed order
    given = {key: words.get(key, asked[key]) for key in config.flat() if asked.get(key) is not None}
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]
    return shlex.join(["distmil", job, *texts])
