"""An encoder in training: checkpoints, a run that goes on, and the weights that a bundle carries."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distmil.bags.bag import Bag
from distmil.bags.source import EmbeddingSource
from distmil.config.root import Config
from distmil.encoders.registry import encoder_state, load_carried, prepare_encoder
from distmil.inference.scoring import score_bag
from distmil.storage.store import Store
from distmil.training.checkpoints import load_checkpoint, save_checkpoint
from distmil.training.engine import evaluate
from distmil.training.learner import embed
from distmil.training.run import Run, new_learner, open_run
from distmil.training.run_files import checkpoint_folder
from distmil.training.workers import Workers
from tests.support.bags import small_config

CPU = torch.device("cpu")
EDGE = 32


def image_bag(index: int, *, split: str) -> Bag:
    """Patches of noise; those of the target are red."""
    rng = np.random.default_rng(index)
    count, label = int(rng.integers(10, 16)), index % 2
    images = rng.integers(0, 256, (count, EDGE, EDGE, 3)).astype(np.uint8)
    label_N = np.zeros(count, np.int8)
    if label:
        images[:3, ..., 1:] //= 4
        label_N[:3] = 1
    target_NC = np.eye(2, dtype=np.float32)[label_N]
    source = EmbeddingSource([images])
    return Bag(f"s{index}", label, source, label_N, target_NC, split=split, views=[EmbeddingSource([images[:, ::-1]])])


TRAIN = [image_bag(i, split="train") for i in range(6)]
VAL = [image_bag(i, split="val") for i in range(6, 10)]


def settings(trainable: str | bool) -> Config:
    return small_config(
        encoder={"name": "timm:test_vit", "weights": "random", "trainable": trainable, "batch_size": 32, "views": 1},
        training={"epochs": 4, "encoder_lr": 1e-2, "ema": 0.5},
    )


def opened(config: Config, store: Store, name: str | None) -> Run:
    return open_run(config, TRAIN, VAL, prepare_encoder(config.encoder, store), store, name=name, device=CPU)


@pytest.mark.parametrize("trainable", ["last", "lora", True])
def test_a_run_that_goes_on_is_the_unbroken_one_and_its_bundle_scores_as_validation_did(store, trainable):
    config = settings(trainable)
    whole = opened(config, store, None)
    while not whole.is_finished:
        whole.advance(Workers())
    for _ in range(2):  # two epochs, then again in a process that knows the checkpoint alone
        broken = opened(config, store, "run")
        for _ in range(2):
            is_best = broken.advance(Workers())
            save_checkpoint(store, "run", broken.learner, broken.history, is_best=is_best)
    assert broken.history.rows == whole.history.rows

    spec = prepare_encoder(config.encoder, store)
    learner = new_learner(config, spec, store, device=CPU)
    load_checkpoint(store, "run", learner)
    state = encoder_state(spec, store, trained=learner.eval_model.encoder)
    assert not any(key.endswith(("down_RD", "up_FR")) for key in state)
    encoder = load_carried(spec.name, state)
    learner.eval_model.train(False)
    for bag in VAL:
        given = {"top_k": config.bags.top_k, "top_k_share": config.bags.top_k_share}
        in_training = score_bag(
            learner.eval_model.head, bag.source, lambda x: embed(x, learner.eval_model.encoder, CPU), **given
        )
        carried = score_bag(learner.eval_model.head, bag.source, lambda x: torch.from_numpy(encoder.embed(x)), **given)
        np.testing.assert_allclose(carried.fused_N, in_training.fused_N, atol=1e-5)
        assert carried.bag == pytest.approx(in_training.bag, abs=1e-5)
    found = evaluate(learner, VAL, config, workers=Workers())
    assert {f"val_{key}": value for key, value in found.items()}.items() <= whole.history.rows[-1].items()


@pytest.mark.parametrize("trainable", ["last", "lora"])
def test_frozen_weights_stay_out_of_checkpoints_and_as_they_were(store, trainable):
    config = settings(trainable)
    run = opened(config, store, "run")
    frozen = {n: p.clone() for n, p in run.learner.encoder.named_parameters() if not p.requires_grad}
    is_best = run.advance(Workers())
    save_checkpoint(store, "run", run.learner, run.history, is_best=is_best)
    (name,) = [name for name in store.names(checkpoint_folder("run")) if name.endswith(".safetensors")]
    size = store.path(f"{checkpoint_folder('run')}/{name}")
    all_bytes = sum(p.numel() * 4 for nets in (run.learner.trained, run.learner.averaged) for p in nets.parameters())
    assert Path(size).stat().st_size < 0.7 * all_bytes
    assert frozen
    for nets in (run.learner.trained, run.learner.averaged):
        kept = dict(nets.encoder.named_parameters())
        assert all(torch.equal(value, kept[name]) for name, value in frozen.items())
