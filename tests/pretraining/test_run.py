"""Pre-training of a small network: it learns, goes on after any step, and does not depend on the workers."""

from typing import Any

import numpy as np
import pytest
import torch

from distmil.config.data import EncoderConfig
from distmil.encoders.registry import EncoderSpec, load_encoder, prepare_encoder
from distmil.errors import EncoderError, StorageError, TrainingError
from distmil.pretraining.checkpoints import read_progress, save_checkpoint
from distmil.pretraining.learner import learning_rate
from distmil.pretraining.run import Run, encoder_to_train, open_run
from distmil.pretraining.weights import save_weights, weights_folder
from distmil.storage.store import Store
from distmil.training.workers import Workers
from tests.support.networks import patches
from tests.support.pretraining import open_small, small_config, states_of, use_small_network, write_slides
from tests.support.scale import cases
from tests.support.thread_workers import run_as_workers

METHODS = ("vicreg", "simclr", "dino")


def finish(run: Run, workers: Workers | None = None, *, stop_at: int | None = None) -> None:
    """Go on to the end, or stop as a kill does after some step."""

    def after_step(_loss: float) -> None:
        if len(run.history.losses) == stop_at:
            raise InterruptedError

    while not run.is_finished:
        run.advance(workers or Workers(), after_step)


def assert_equal(one: Run, other: Run) -> None:
    assert one.history == other.history
    states = states_of(one), states_of(other)
    assert states[0].keys() == states[1].keys()
    assert [key for key, value in states[0].items() if not torch.equal(value, states[1][key])] == []


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls_and_the_encoder_changes(store: Store, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    use_small_network(monkeypatch)
    run = open_small(
        store, write_slides(store), small_config(method=method, epochs=16, learning_rate=3e-3, projection_dim=64)
    )
    began = {key: value.clone() for key, value in run.learner.kept.state_dict().items()}
    finish(run)
    losses = run.history.losses
    assert len(losses) == run.plan.num_steps == 16 * 5
    assert np.mean(losses[-15:]) < 0.95 * np.mean(losses[:5])
    changed = {key for key, value in run.learner.kept.state_dict().items() if not torch.equal(value, began[key])}
    assert changed == {key for key in began if key.endswith(("weight", "bias"))}  # statistics of batches stay
    rows = run.history.rows
    assert len(rows) == 17
    assert "loss" not in rows[0]
    assert rows[3]["loss"] == pytest.approx(np.mean(losses[10:15]))
    assert run.history.probe == "slide labels"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(cases(4, full=60)))
def test_a_run_that_was_killed_ends_as_an_unbroken_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, seed: int
) -> None:
    """To all digits, wherever it was killed and whenever the last checkpoint before was."""
    draw = np.random.default_rng([seed, METHODS.index(method)])
    use_small_network(monkeypatch, dropout=0.2)
    config, entries = small_config(method=method, seed=seed, epochs=3), write_slides(store)
    unbroken = open_small(store, entries, config)
    finish(unbroken)
    steps = unbroken.plan.num_steps
    for kept_at in sorted(draw.integers(0, steps + 1, 3).tolist()):
        broken = open_small(store, entries, config, name="r")
        lost = kept_at + int(draw.integers(0, 3))  # steps after the last checkpoint

        def after_step(_loss: float, *, run: Run = broken, last: int = lost, kept_at: int = kept_at) -> None:
            if len(run.history.losses) == kept_at:
                save_checkpoint(store, "r", run.learner, run.history)
            if len(run.history.losses) >= last:
                raise InterruptedError

        try:
            while not broken.is_finished:
                broken.advance(Workers(), after_step)
                if not broken.history.losses:
                    save_checkpoint(store, "r", broken.learner, broken.history)
        except InterruptedError:
            pass
        progress = read_progress(store, "r")
        assert progress is not None
    resumed = open_small(store, entries, config, name="r")
    finish(resumed)
    assert_equal(resumed, unbroken)


def first_gradients(run: Run, workers: Workers | None = None) -> dict[str, torch.Tensor]:
    """The gradients of the first step. Later weights would not do: AdamW makes much of gradients that are 0 but for
    rounding, as that of a bias before a batch norm.
    """
    run.history.rows.append({"probe_auc": None, "spread": 1.0, "rank": 9.0})
    with pytest.raises(InterruptedError):
        finish(run, workers, stop_at=1)
    found = {f"encoder.{name}": parameter.grad for name, parameter in run.learner.encoder.named_parameters()}
    found |= {f"objective.{name}": parameter.grad for name, parameter in run.learner.objective.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    assert [name for name, gradient in one.items() if not torch.allclose(gradient, other[name], atol=1e-5)] == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [2, 3, 20])
def test_any_number_of_workers_gives_the_same_but_for_rounding(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, workers: int
) -> None:
    use_small_network(monkeypatch)
    config, entries = small_config(method=method, batch_patches=18), write_slides(store)
    runs = [open_small(store, entries, config) for _ in range(workers)]  # torch's draws are one for all threads
    alone = open_small(store, entries, config)
    wanted = first_gradients(alone)
    for run, found in zip(runs, run_as_workers(workers, lambda g: first_gradients(runs[g.rank], g)), strict=True):
        assert_close(found, wanted)
        assert run.history.losses == pytest.approx(alone.history.losses, rel=1e-5)


def test_workers_measure_the_sample_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    entries = write_slides(store)
    runs = [open_small(store, entries, small_config()) for _ in range(4)]
    wanted = runs[3].advance(Workers(), lambda _loss: None)
    for row in run_as_workers(3, lambda g: runs[g.rank].advance(g, lambda _loss: None)):
        assert row == pytest.approx(wanted)


@pytest.mark.parametrize("method", METHODS)
def test_patches_that_pass_some_at_a_time_have_the_gradients_of_one_pass(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    use_small_network(monkeypatch)
    entries = write_slides(store)

    def gradients(per_pass: int) -> dict[str, torch.Tensor]:
        config = small_config(method=method)
        encoder = config.encoder.model_copy(update={"batch_size": per_pass})
        return first_gradients(open_small(store, entries, config.model_copy(update={"encoder": encoder})))

    assert_close(gradients(5), gradients(64))


def test_steps_end_a_run_within_an_epoch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    run = open_small(store, write_slides(store), small_config(steps=7, epochs=9))
    finish(run)
    assert (len(run.history.losses), run.history.epochs_done) == (7, 2)


def test_only_the_last_checkpoint_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    run = open_small(store, write_slides(store), small_config())
    for _ in range(3):
        run.advance(Workers(), lambda _loss: save_checkpoint(store, "r", run.learner, run.history))
        save_checkpoint(store, "r", run.learner, run.history)
    names = [name for name in store.names("checkpoints/r") if name.startswith("step-")]
    assert sorted({name.partition("-")[2][:8] for name in names}) == ["00000010"]
    for name in names:
        store.write(f"checkpoints/r/{name}", b"other")
    with pytest.raises(StorageError, match="is damaged"):
        open_small(store, write_slides(store), small_config(), name="r")


def test_a_network_that_became_constant_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    run = open_small(store, write_slides(store), small_config(learning_rate=1e-9, weight_decay=0.0))
    run.advance(Workers(), lambda _loss: None)
    with torch.no_grad():
        run.learner.encoder.net.last.weight.zero_()
    run.advance(Workers(), lambda _loss: None)
    assert run.history.collapse is not None
    assert "nearly one embedding for all patches" in run.history.collapse


def test_a_loss_that_is_not_finite_ends_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    run = open_small(store, write_slides(store), small_config())
    with torch.no_grad():
        run.learner.encoder.net.last.bias.fill_(torch.nan)
    run.history.rows.append({"probe_auc": None, "spread": 1.0, "rank": 9.0})
    with pytest.raises(
        TrainingError, match=r"the loss of pre-training is nan in step 1; lower pretraining\.learning_rate"
    ):
        run.advance(Workers(), lambda _loss: None)


def test_too_few_patches_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_network(monkeypatch)
    with pytest.raises(TrainingError, match="pre-training needs at least 16 patches, the train slides have 11; lower"):
        open_small(store, write_slides(store, [(5,), (6,)]), small_config())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"view_px": 70}, r"pretraining.view_px = 70: timm:test_vit takes no images of that size \(.+\); leave it out"),
        ({"trained": "lora"}, None),
        ({"trained": "last"}, None),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(store: Store, settings: dict[str, Any], said: str | None) -> None:
    spec = _prepared(store, "timm:test_vit")
    if said is None:
        encoder = encoder_to_train(small_config(**settings), spec, store)
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        assert 0 < len(trained) < len(list(encoder.parameters()))
        return
    with pytest.raises(EncoderError, match=said):
        encoder_to_train(small_config(**settings), spec, store)


def test_a_network_without_linear_layers_takes_no_low_rank_additions(store: Store) -> None:
    spec = _prepared(store, "timm:test_resnet")
    with pytest.raises(EncoderError, match=r"pretraining\.trained = 'lora': timm:test_resnet has no linear layers"):
        encoder_to_train(small_config(trained="lora"), spec, store)


def _prepared(store: Store, name: str) -> EncoderSpec:
    config = small_config().encoder.model_copy(update={"name": name, "weights": "random"})
    return prepare_encoder(config, store)


@pytest.mark.parametrize("seed", range(cases(20, full=300)))
def test_the_rate_rises_and_then_falls_to_nothing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps, warm = int(draw.integers(50, 500)), int(draw.integers(0, 20))
    rates = [learning_rate(step, steps, warmup_steps=warm) for step in range(steps)]
    top = int(np.argmax(rates))
    assert top <= warm
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)
    assert 0 < rates[-1] < 0.01
    assert 0.8 < max(rates) <= 1


@pytest.mark.parametrize("method", ["vicreg", "dino"])
def test_low_rank_additions_end_in_the_weights_of_an_ordinary_network(store: Store, method: str) -> None:
    name, entries = "timm:test_vit", write_slides(store, [(9,), (8,)])
    config = small_config(method=method, trained="lora", steps=2, batch_patches=9)
    spec = _prepared(store, name)
    run = open_run(config, entries, spec, store, name="r", device=torch.device("cpu"))
    finish(run)
    save_checkpoint(store, "r", run.learner, run.history)
    again = open_run(config, entries, spec, store, name="r", device=torch.device("cpu"))
    assert_equal(again, run)
    save_weights(store, "own", again.learner.kept, spec, again.history)
    own = EncoderConfig(name=name, weights=store.path(weights_folder("own")))
    found = load_encoder(prepare_encoder(own, store), store)
    images = patches(3, 160, 160, seed=0)
    assert np.allclose(found.embed(images), run.learner.kept.eval().embed(images), atol=1e-5)
    assert not np.allclose(found.embed(images), load_encoder(spec, store).embed(images), atol=1e-5)
