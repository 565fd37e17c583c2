"""What runs in a trial's process, without Ray's."""

import pytest
import torch

from distmil.stages.trials import trial_device


@pytest.mark.parametrize(
    ("is_gpu", "is_there", "device"), [(True, True, "cuda:0"), (True, False, "cpu"), (False, True, "cpu")]
)
def test_a_trial_takes_the_gpu_that_it_was_given(monkeypatch, is_gpu, is_there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert trial_device(is_gpu=is_gpu) == torch.device(device)
