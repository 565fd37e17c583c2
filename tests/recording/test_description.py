"""The description of a run: its result in a line, and a command that is one and has no private value."""

import shlex

import pytest

from distmil.config.loading import build_config, load_config
from distmil.recording.description import NOTE, command_of, describe_run, verdict_lines
from distmil.tracking.dataset import RunData

COUNTS = {"slides": 16, "patients": 12, "positive_slides": 7}


def test_the_verdict_has_its_interval_and_its_number():
    metrics = {"val": {"slide_auc": 0.9688}, "test": {"slide_auc": None}, "train": {}}
    intervals = {"val": COUNTS | {"slide_auc": [0.861, 1.0]}, "test": COUNTS | {"slide_auc": None}, "train": {}}
    assert verdict_lines(metrics, intervals) == [
        "val: slide AUC **0.97** (95 % interval 0.86 to 1.00), 16 slides of 12 patients, 7 abnormal",
        "test: slide AUC not defined, 16 slides of 12 patients, 7 abnormal",
    ]
    assert verdict_lines({"val": {"slide_auc": 0.5}}, {}) == []


def test_the_command_gives_the_same_settings_and_no_private_value():
    given = {
        "cohort": {"manifest": "/home/jane/m.csv", "classes": ["normal tissue", "tumour"], "val_fraction": 0.3},
        "storage": {"root": "/home/jane/store"},
        "prediction": {"model": "/home/jane/model", "maps": False},
        "encoder": {"name": "resnet18", "weights": "/home/jane/weights.pt"},
        "tracking": {"uri": "http://jane:secret@host"},
    }
    command = command_of("evaluate", build_config(given), model="first")
    assert "jane" not in command
    assert "secret" not in command
    program, job, *arguments = shlex.split(command)
    assert (program, job) == ("distmil", "evaluate")
    again = load_config(None, arguments).explicit()
    private = {
        "cohort.manifest": "MANIFEST",
        "storage.root": "ROOT",
        "tracking.uri": "URI",
        "prediction.model": "first",
    }
    assert again == build_config(given).explicit() | private | {"encoder.weights": "weights.pt"}


def test_a_description_holds_everything_and_not_too_much():
    data = RunData("lung", "abc", {"num_rows": 3, "patients": 2, "splits": {"train": {"normal": 1, "tumour": 2}}})
    text = describe_run("**Training** of `first`", data, ["val: good"], "distmil train")[NOTE]
    assert text.split("\n\n") == [
        "**Training** of `first`",
        "val: good",
        "Data: lung (abc), 3 slides of 2 patients (train: 1 normal, 2 tumour)",
        "```\ndistmil train\n```",
    ]
    assert len(describe_run("t" * 9000, data, [], "c")[NOTE]) == 5000


@pytest.mark.parametrize("uri", ["none", "sqlite:////home/jane/x.db"])
def test_where_the_record_is_stays_private(uri):
    assert "tracking.uri=URI" in command_of("train", build_config({"tracking": {"uri": uri}}))
