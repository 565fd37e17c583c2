"""The benchmark of evaluations measures every step."""

from benchmarks.evaluation import main


def test_every_step_is_measured():
    found = main(12, 900)
    assert set(found) == {"lesions", "detections", "froc", "slides and patches", "peak_mib"}
    assert min(found.values()) > 0
