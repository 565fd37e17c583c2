"""The model that a run leaves in MLflow, in a Python that has no distmil: does it judge as distmil does?

    uv venv clean && uv pip install --python clean/bin/python mlflow==... torch==... numpy==...
    python -m benchmarks.logged_model --python clean/bin/python [--networks dual max] [--classes 2 4]

For each network: trains it briefly on random bags, records it in a fresh SQLite MLflow, registers it, has distmil
judge bags of 1 to 5,000 patches, and lets the other interpreter load `models:/<name>@latest` without pickle and judge
the same bags. Prints the largest difference of any score; exits 1 where one is above --most.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.bags.source import EmbeddingSource
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.inference.bundle import Bundle
from distmil.inference.mlflow_model import save_model
from distmil.inference.scoring import NETWORK_READ_OUTS, score_bag
from distmil.models.baselines import NETWORKS, make_network
from distmil.models.network import Network
from distmil.tracking.models import log_model
from distmil.tracking.tracker import Tracker
from distmil.training.engine import active_config, train_epoch
from distmil.training.learner import fit_normaliser, make_learner
from distmil.training.workers import Workers

SIZES = (1, 2, 50, 5000)
WIDTH = 561
MOST = 1e-5
# What the other interpreter runs; nothing of distmil is on its path.
ELSEWHERE = """
import importlib.util, json, sys
import mlflow, numpy as np
assert importlib.util.find_spec("distmil") is None, "this interpreter has distmil"
folder, uri, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
mlflow.set_tracking_uri(uri)
for name in names:
    model = mlflow.pyfunc.load_model(f"models:/{name}@latest")
    for path in json.loads(sys.argv[4]):
        np.save(f"{folder}/{name}-{path}.npy", model.predict(np.load(f"{folder}/{path}.npy")))
"""


def make_config(name: str, num_classes: int) -> Config:
    """Return a configuration of a small network that learns in seconds."""
    return build_config(
        {
            "cohort": {"classes": ["normal", *(f"target {i}" for i in range(1, num_classes))]},
            "encoder": {"name": "texture"},
            "model": {"name": name, "feature_dim": 64, "attention_dim": 32},
            "bags": {"k_positive": 16, "k_negative": 16, "slides_per_step": 4},
            "training": {"epochs": 5},
        }
    )


def make_embeddings(count: int, *, seed: int) -> NDArray[np.float16]:
    """Return random embeddings of skewed and constant dimensions, N x E, as a store holds them."""
    embedding_NE = np.random.default_rng(seed).normal(size=(count, WIDTH))
    embedding_NE[:, :50] = np.exp(embedding_NE[:, :50])
    embedding_NE[:, -1] = 3
    return embedding_NE.astype(np.float16)


def make_bags(count: int, num_classes: int) -> list[Bag]:
    """Return annotated bags; in a bag of class c some patches are shifted in dimension c."""
    bags = []
    for seed in range(count):
        label, embedding_NE = seed % num_classes, make_embeddings(100, seed=seed)
        label_N = np.zeros(100, np.int8)
        if label:
            embedding_NE[:10, -10 + label] += 3
            label_N[:10] = label
        target_NC = np.eye(num_classes, dtype=np.float32)[label_N]
        bags.append(Bag(f"slide-{seed}", label, EmbeddingSource([embedding_NE]), label_N, target_NC))
    return bags


def train(config: Config, num_classes: int) -> Network:
    """Return a network that was trained for a few epochs."""
    torch.manual_seed(0)
    bags = make_bags(12, num_classes)
    planner = StepPlanner(bags, config.bags, num_classes=num_classes, seed=0, epochs=config.training.epochs)
    config, _ = active_config(config, planner)
    head = make_network(config.model, embedding_dim=WIDTH, num_classes=num_classes)
    learner = make_learner(config, head, None, torch.device("cpu"))
    fit_normaliser(learner, bags, seed=0, batch_size=4096)
    for epoch in range(config.training.epochs):
        train_epoch(learner, bags, planner, config, epoch=epoch, workers=Workers())
    return learner.eval_model.head.eval()


def judge(bundle: Bundle, embedding_NE: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return what distmil says of a bag, in the exported network's columns."""
    scores = score_bag(
        bundle.head,
        EmbeddingSource([embedding_NE]),
        lambda patches: torch.as_tensor(patches).float(),
        top_k=bundle.config.bags.top_k,
        top_k_share=bundle.config.bags.top_k_share,
        chunk=1024,
    )
    columns = [scores.attention_N, scores.probability_N, scores.topk_probability_N, scores.fused_N]
    columns += [np.full(len(embedding_NE), getattr(scores, name)) for name in NETWORK_READ_OUTS]
    if len(bundle.classes) > 2:
        columns += [*scores.class_probability_NC.T, *(np.full(len(embedding_NE), value) for value in scores.bag_C)]
    return np.stack(columns, 1).astype(np.float64)


def record(folder: Path, uri: str, name: str, num_classes: int) -> Bundle:
    """Train a network, record it as a run's model, and register it under the name."""
    config = make_config(name, num_classes)
    bundle = Bundle(name, config, train(config, num_classes), None, digest=name)
    tracker = Tracker(uri, "logged models")
    tracker.start(name, artifacts=str(folder / "artifacts"))
    registered = f"{name}-{num_classes}"
    save_model(folder / registered, bundle)
    log_model(tracker, folder / registered, digest=name, step=0, registered=registered, alias="latest")
    tracker.finish("FINISHED")
    return bundle


def load_elsewhere(python: Path, folder: Path, uri: str, models: list[str], bags: list[str]) -> None:
    """Have another interpreter judge the bags by the registered models."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    subprocess.run(
        [python, "-I", "-c", ELSEWHERE, str(folder), uri, json.dumps(models), json.dumps(bags)],
        cwd=folder,
        env={**kept, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        check=True,
    )


def compare(folder: Path, python: Path, networks: list[str], classes: list[int]) -> float:
    """Print the largest difference for every network and size of bag, and return the largest of all."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for size in SIZES:
        np.save(folder / f"{size}.npy", make_embeddings(size, seed=size).astype(np.float32))
    wanted = {f"{name}-{count}": record(folder, uri, name, count) for name in networks for count in classes}
    started_s = time.monotonic()
    load_elsewhere(python, folder, uri, list(wanted), [str(size) for size in SIZES])
    print(f"{len(wanted)} models loaded and run by {python} in {time.monotonic() - started_s:.1f} s")
    print(f"{'network':24}" + "".join(f"{f'{size:,} patches':>16}" for size in SIZES))
    worst = 0.0
    for name, bundle in wanted.items():
        cells = ""
        for size in SIZES:
            expected_NS = judge(bundle, make_embeddings(size, seed=size))
            np.save(folder / f"{name}-{size}-expected.npy", expected_NS)
            found_NS = np.load(folder / f"{name}-{size}.npy").astype(np.float64)
            assert found_NS.shape == expected_NS.shape, (found_NS.shape, expected_NS.shape)
            difference = float(np.abs(found_NS - expected_NS).max())
            worst = max(worst, difference if np.isfinite(difference) else np.inf)
            cells += f"{difference:16.1e}"
        print(f"{name:24}{cells}")
    return worst


def main() -> int:
    """Compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="an interpreter with mlflow, torch and numpy alone")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--classes", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--most", type=float, default=MOST, help="largest difference that passes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        worst = compare(Path(folder), options.python.absolute(), options.networks, options.classes)
    print(f"largest difference: {worst:.1e} (at most {options.most:g} passes)")
    return 0 if worst <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
