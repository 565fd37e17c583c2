"""The gate and the choice: the fastest engine that gives the same embeddings, refused with figures where none does."""

import time

import numpy as np
import pytest

from distmil.encoders.engines import EngineChoice, runtime, select_engine, selection, timing
from distmil.encoders.engines.gate import LEAST_COSINE, agreement
from distmil.errors import EncoderError
from tests.support.networks import TinyNetwork, patches
from tests.support.scale import cases

IMAGES = patches(60, 24, 32, seed=0)


def test_agreement_is_the_cosine_of_each_patch():
    for seed in range(cases(50, full=2000)):
        generator = np.random.default_rng(seed)
        plain = generator.standard_normal((int(generator.integers(1, 200)), 8)).astype(np.float32)
        found = plain + generator.uniform(0, 0.3) * generator.standard_normal(plain.shape).astype(np.float32)
        cosines = sorted(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(found, plain, strict=True))
        figures = agreement(found, plain)
        assert figures.mean == pytest.approx(np.mean(cosines), abs=1e-5)
        assert figures.least == pytest.approx(cosines[0], abs=1e-5)
        assert figures.least - 1e-9 <= figures.low <= cosines[min(2, len(cosines) - 1)] + 1e-5
        assert figures.passes == (figures.low >= LEAST_COSINE)


def test_one_patch_in_fifty_gone_astray_closes_the_gate():
    plain = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    for share, passes in ((0.005, True), (0.02, False)):
        found = plain.copy()
        found[: int(share * len(plain)), :3] += 0.3
        assert agreement(found, plain).mean > LEAST_COSINE
        assert agreement(found, plain).passes is passes


@pytest.mark.parametrize(("value", "passes"), [(0.0, True), (1.0, False), (np.nan, False), (np.inf, False)])
def test_zeros_agree_with_zeros_alone_and_what_is_no_number_with_nothing(value, passes):
    plain = np.zeros((3, 4), np.float32)
    assert agreement(np.full((3, 4), value, np.float32), plain).passes is passes
    assert not agreement(np.full((3, 4), np.nan, np.float32), plain + 1).passes


# --- the choice


class Fake:
    """Embeds as the network, with an error, in a time of its own."""

    def __init__(self, network, *, error, image_s):
        self.network, self.error, self.image_s = network, error, image_s

    def embed(self, images_NHWC):
        time.sleep(self.image_s * len(images_NHWC))
        found, _ = selection._plain(self.network, images_NHWC, "cpu")
        return found + self.error * np.random.default_rng(0).standard_normal(found.shape).astype(np.float32)


def fakes(monkeypatch, table):
    """Give each (engine, precision) an error and a time for an image."""

    def build(network, choice, **_):
        error, image_s = table[choice.engine, choice.precision]
        if error is None:
            raise NotImplementedError("no such layer\nmore")
        return Fake(network, error=error / (1 + 99 * choice.full_layers), image_s=image_s)

    monkeypatch.setattr(selection, "build_engine", build)
    monkeypatch.setattr(selection, "_candidates", lambda *_: list(table))
    monkeypatch.setattr(selection, "quantise", lambda *_: b"model")


def test_the_fastest_that_passes_is_taken(monkeypatch):
    fakes(monkeypatch, {
        ("torch", "fp32"): (0.0, 0.004), ("openvino", "int8"): (10.0, 0.0001), ("openvino", "fp32"): (1e-6, 0.001),
    })  # fmt: skip
    made = select_engine(TinyNetwork(0), IMAGES)
    assert (made.choice.engine, made.choice.precision) == ("openvino", "fp32")
    refused = {trial.choice.words: trial.refusal for trial in made.trials if trial.refusal}
    assert list(refused) == ["openvino int8"]
    assert refused["openvino int8"].startswith("cosine 0.")
    rates = {trial.choice.words: trial.images_per_s for trial in made.trials}
    assert rates["openvino int8"] is None
    assert 1.5 * rates["torch fp32"] < rates["openvino fp32"]
    assert made.facts["patches"] == 30  # the other half served quantisation
    assert made.model is None


def test_a_low_precision_gets_as_many_full_layers_as_it_needs(monkeypatch):
    fakes(monkeypatch, {("openvino", "bf16"): (0.3, 0.0001), ("torch", "fp32"): (0.0, 0.002)})
    made = select_engine(TinyNetwork(0), IMAGES)
    assert made.choice.words == "openvino bf16, the first layer in fp32"
    assert made.choice.identity()["full_layers"] == 1


def test_a_quantised_model_that_passes_comes_with_the_choice(monkeypatch):
    fakes(monkeypatch, {("openvino", "int8"): (0.0, 0.0001), ("torch", "fp32"): (0.0, 0.002)})
    made = select_engine(TinyNetwork(0), IMAGES)
    assert made.model == b"model"
    assert made.choice.model_digest is not None
    assert made.choice.identity() != EngineChoice("openvino", "int8").identity()


def test_an_engine_that_cannot_take_the_network_is_left_out(monkeypatch):
    fakes(monkeypatch, {("openvino", "fp32"): (None, 0.0), ("torch", "fp32"): (0.0, 0.001)})
    made = select_engine(TinyNetwork(0), IMAGES)
    assert made.choice.engine == "torch"
    assert made.trials[0].refusal == "cannot be used: no such layer"


def test_where_none_passes_the_figures_and_the_ways_out_are_said(monkeypatch):
    fakes(monkeypatch, {("openvino", "int8"): (10.0, 0.0), ("openvino", "bf16"): (500.0, 0.0)})
    with pytest.raises(EncoderError) as caught:
        select_engine(TinyNetwork(0), IMAGES, engine="openvino")
    for part in ("encoder.engine=openvino", "30 patches", "0.999", "openvino int8: cosine ", "1 % quantile", "auto"):
        assert part in str(caught.value)


def test_the_true_engines_of_this_machine_agree_on_a_choice():
    made = select_engine(TinyNetwork(0), IMAGES, precision="fp32", batch_size=4)
    assert made.choice.precision == "fp32"
    assert made.choice.batch_size == 4
    assert {trial.choice.words for trial in made.trials} >= {"torch fp32", "openvino fp32"}
    assert all(trial.agreement.low > 0.99999 for trial in made.trials)


def test_what_is_not_here_is_refused(monkeypatch):
    with pytest.raises(EncoderError, match=r"encoder.engine=torch encoder.precision=fp16: not on this machine, which"):
        select_engine(TinyNetwork(0), IMAGES, engine="torch", precision="fp16")

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(runtime.importlib, "import_module", absent)
    with pytest.raises(EncoderError, match=r"openvino is not installed .*pip install 'distmil\[openvino\]'"):
        select_engine(TinyNetwork(0), IMAGES, engine="openvino")
    assert select_engine(TinyNetwork(0), IMAGES, precision="fp32").choice.engine == "torch"


# --- the batch


class Timed:
    """Takes a fixed time for a call and a time for an image, and may need memory."""

    def __init__(self, *, call_s, image_s, grows_from=10**9):
        self.call_s, self.image_s, self.grows_from, self.seen = call_s, image_s, grows_from, set()
        self.peak = 0

    def embed(self, images_NHWC):
        self.seen.add(len(images_NHWC))
        if len(images_NHWC) >= self.grows_from:
            self.peak += 2**30
        time.sleep(self.call_s + self.image_s * len(images_NHWC))
        return np.zeros((len(images_NHWC), 2), np.float32)


def test_the_smallest_batch_near_the_best_is_taken():
    assert timing.fastest_batch(Timed(call_s=0.0, image_s=0.004), IMAGES, most=8) <= 2
    assert timing.fastest_batch(Timed(call_s=0.02, image_s=0.0001), IMAGES, most=64) == 64


def test_a_batch_that_needs_much_memory_is_the_last(monkeypatch):
    engine = Timed(call_s=0.02, image_s=0.0, grows_from=8)
    monkeypatch.setattr(timing, "_peak_bytes", lambda: engine.peak)
    assert timing.fastest_batch(engine, IMAGES, most=64) == 8
    assert max(engine.seen) == 8


def test_a_slow_network_sees_fewer_patches(monkeypatch):
    fakes(monkeypatch, {("torch", "fp32"): (0.0, 0.0)})
    monkeypatch.setattr(selection, "_PLAIN_S", 0.0)
    assert select_engine(TinyNetwork(0), IMAGES, batch_size=1).facts["patches"] == 16
    assert select_engine(TinyNetwork(0), IMAGES[:20], batch_size=1).facts["patches"] == 10
