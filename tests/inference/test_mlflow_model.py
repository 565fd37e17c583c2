"""The network in plain MLflow judges as distmil does, whatever the bag's size, without pickle and without distmil."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from distmil.bags.source import EmbeddingSource
from distmil.cohort import Cohort
from distmil.errors import ConfigError
from distmil.evaluation.slide_results import SlideResult
from distmil.inference.bundle import Bundle, save_bundle
from distmil.inference.mlflow_model import save_model, score_names
from distmil.inference.scoring import NETWORK_READ_OUTS, READ_OUTS, score_bag
from distmil.models.baselines import NETWORKS, make_network
from distmil.pipeline.job import Job
from distmil.pipeline.training.record import record_training
from distmil.storage.object_store import ENDPOINT_VARIABLES
from distmil.storage.store import Store
from distmil.tracking.models import log_model
from distmil.tracking.tracker import Tracker
from distmil.training.engine import History
from tests.support.bags import EMBEDDING, small_config
from tests.support.s3_server import KEYS, s3_server
from tests.support.scale import IS_FULL

COHORT = Cohort([], ["normal", "tumour"])
SIZES = (1, 2, 9, 10, 11, 50, 71, 80, 81, 5000)


def make_bundle(name="dual", *, classes=2, digest="digest", **model):
    torch.manual_seed(0)
    names = ["normal", "tumour", "margin", "fat"][:classes]
    config = small_config(cohort={"classes": names}, model={"name": name, "dropout": 0.25, **model})
    head = make_network(config.model, embedding_dim=EMBEDDING, num_classes=classes)
    head.normaliser.fit(torch.randn(500, EMBEDDING) + 1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)  # scores away from one half
    return Bundle("a-run", config, (head.eval(),), None, digest=digest)


def make_embeddings(count):
    return np.random.default_rng(count).normal(size=(count, EMBEDDING)).astype(np.float16)


def expected(bundle, embedding_NE):
    """Return what distmil itself says, in the exported network's columns."""
    source = EmbeddingSource([embedding_NE])
    scores = score_bag(
        bundle.heads,
        source,
        lambda patches: torch.from_numpy(patches).float(),
        top_k=bundle.config.bags.top_k,
        top_k_share=bundle.config.bags.top_k_share,
        chunk=999,
    )
    columns = [scores.attention_N, scores.probability_N, scores.topk_probability_N, scores.fused_N]
    columns += [np.full(len(embedding_NE), getattr(scores, name)) for name in NETWORK_READ_OUTS]
    if len(bundle.classes) > 2:
        columns += [*scores.class_probability_NC.T, *(np.full(len(embedding_NE), value) for value in scores.bag_C)]
    return np.stack(columns, 1)


@pytest.fixture(autouse=True)
def without_pickle(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with the model of a network that trains meanwhile, that network, and its state before the export."""
    folder, bundle = tmp_path_factory.mktemp("saved") / "model", make_bundle()
    bundle.heads[0].train()
    before = {key: value.clone() for key, value in bundle.heads[0].state_dict().items()}
    save_model(folder, bundle)
    return folder, bundle.heads[0], before


@pytest.fixture
def saved(exported):
    return exported[0]


ATTENDED = {"patch_feature": "attended"}, {"topk_feature": "attended"}
ONE_OF_EACH_POOLING = [("dual", 4, ATTENDED[0]), ("dual", 2, ATTENDED[1])]
ONE_OF_EACH_POOLING += [("attention", 2, {}), ("mean", 4, {}), ("max", 2, {})]
EVERY = [(name, classes, {}) for name in NETWORKS for classes in (2, 4)]
EVERY += [("dual", classes, form) for form in ATTENDED for classes in (2, 4)]


def test_every_pooling_is_exported():
    assert {NETWORKS[name].pooling for name, *_ in ONE_OF_EACH_POOLING} == {net.pooling for net in NETWORKS.values()}


@pytest.mark.parametrize(("name", "classes", "form"), EVERY if IS_FULL else ONE_OF_EACH_POOLING)
def test_every_network_judges_bags_of_any_size_as_distmil_does(tmp_path, name, classes, form):
    bundle = make_bundle(name, classes=classes, **form)
    save_model(tmp_path / "model", bundle)
    assert_judges_alike(tmp_path / "model", bundle)


def test_a_network_without_attended_features_does_so_too(saved):
    assert_judges_alike(saved, make_bundle())


def test_networks_of_folds_are_one_model(tmp_path):
    bundle = make_bundle(classes=3)
    heads = []
    for seed in range(3):
        torch.manual_seed(seed)
        head = make_network(bundle.config.model, embedding_dim=EMBEDDING, num_classes=3).eval()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.mul_(3)
        heads.append(head)
    bundle = dataclasses.replace(bundle, heads=tuple(heads))
    save_model(tmp_path / "model", bundle)
    assert_judges_alike(tmp_path / "model", bundle)


def assert_judges_alike(folder, bundle):
    model = mlflow.pyfunc.load_model(str(folder))
    for size in SIZES:
        embedding_NE = make_embeddings(size)
        found = model.predict(embedding_NE.astype(np.float32))
        assert found.shape == (size, len(score_names(bundle.classes)))
        assert found.std() > 0.01
        np.testing.assert_allclose(found, expected(bundle, embedding_NE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ATTENDED)
def test_what_classifiers_see_changes_the_scores(form):
    embedding_NE = make_embeddings(50)
    assert np.abs(expected(make_bundle(**form), embedding_NE) - expected(make_bundle(), embedding_NE)).max() > 0.01


def test_attention_far_below_zero_is_pooled_exactly(saved):
    bundle, embedding_NE = make_bundle(), make_embeddings(50)
    graph = mlflow.pytorch.load_model(str(saved))
    with torch.no_grad():
        for bias in (bundle.heads[0].score.bias, graph.state_dict()["heads.0.score.bias"]):
            bias.fill_(-150)  # sigmoid(a) is 0 in fp32
    found = graph(torch.from_numpy(embedding_NE).float()).detach().numpy()
    assert found[:, 0].max() == 0
    np.testing.assert_allclose(found, expected(bundle, embedding_NE), rtol=0, atol=1e-5)


def test_the_model_says_what_its_columns_are(saved):
    model = mlflow.pyfunc.load_model(str(saved))
    assert model.metadata.metadata["columns"] == [
        "attention", "probability", "topk_probability", "fused", "bag", "max", "topk_mean"
    ]  # fmt: skip
    assert model.metadata.metadata["classes"] == ["normal", "tumour"]
    names = score_names(["normal", "tumour", "fat"])
    assert ",".join(names[7:]) == (
        "probability_normal,probability_tumour,probability_fat,bag_normal,bag_tumour,bag_fat"
    )


def test_export_leaves_the_network_as_it_is(exported):
    _, head, before = exported
    assert head.training
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_a_saved_model_tells_nothing_of_the_machine(saved):
    home = os.fsencode(Path(__file__).parents[2])
    for path in saved.rglob("*"):
        if path.is_file():
            assert home not in path.read_bytes(), path
    with zipfile.ZipFile(saved / "data" / "model.pt2") as archive:
        for name in archive.namelist():
            assert home not in archive.read(name), name


def test_a_model_loads_where_there_is_a_gpu(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert mlflow.pyfunc.load_model(str(saved)).predict(make_embeddings(2).astype(np.float32)).shape == (2, 7)


def test_another_width_is_refused(saved):
    with pytest.raises(mlflow.MlflowException, match="shape"):
        mlflow.pyfunc.load_model(str(saved)).predict(np.zeros((5, EMBEDDING + 1), np.float32))


@pytest.mark.slow  # another Python
def test_a_model_loads_where_there_is_no_distmil(saved, tmp_path):
    embedding_NE = make_embeddings(50)
    np.save(tmp_path / "embeddings.npy", embedding_NE.astype(np.float32))
    script = """
import sys
sys.modules["distmil"] = None
import mlflow, numpy as np
scores = mlflow.pyfunc.load_model(sys.argv[1] + "/model").predict(np.load(sys.argv[1] + "/embeddings.npy"))
np.save(sys.argv[1] + "/scores.npy", scores)
"""
    shutil.copytree(saved, tmp_path / "model")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120, cwd=tmp_path)
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"), expected(make_bundle(), embedding_NE), rtol=0, atol=1e-5
    )


@pytest.fixture
def tracker(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    found = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "an experiment")
    found.start("a run", artifacts=str(tmp_path / "artifacts"))
    return found


def test_a_run_has_its_model_and_the_registry_its_newest(tracker, saved, tmp_path, capfd):
    client, uri = MlflowClient(tracker.uri), mlflow.get_tracking_uri()
    shutil.copytree(saved, tmp_path / "again")
    shutil.copytree(saved, tmp_path / "other")
    for folder, digest in (("again", "one"), ("again", "one"), ("other", "two")):
        log_model(tracker, tmp_path / folder, digest=digest, step=3, registered="lesions", alias="champion")
    outputs = client.get_run(tracker.run_id).outputs.model_outputs  # in no order
    logged = [client.get_logged_model(output.model_id) for output in outputs]
    models = {model.tags["distmil.bundle_digest"]: model for model in logged}
    assert len(outputs) == len(models) == 2
    first, second = models["one"], models["two"]
    assert [int(found.version) for found in client.search_model_versions("name = 'lesions'")] == [2, 1]
    champion = client.get_model_version_by_alias("lesions", "champion")
    assert (int(champion.version), champion.run_id) == (2, tracker.run_id)
    versions = second.tags["mlflow.modelVersions"]
    assert json.loads(versions) == [{"name": "lesions", "version": champion.version}]
    assert int(client.get_model_version_by_alias("lesions", "latest").version) == 2
    assert first.status == "READY"
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == uri
    assert capfd.readouterr() == ("", "")
    mlflow.set_tracking_uri(tracker.uri)
    try:
        found = mlflow.pyfunc.load_model("models:/lesions@champion")
        assert found.metadata.run_id == tracker.run_id
        native = mlflow.pytorch.load_model(f"models:/{first.model_id}")
    finally:
        mlflow.set_tracking_uri(None)
    embedding_NE = make_embeddings(2).astype(np.float32)
    np.testing.assert_array_equal(found.predict(embedding_NE), native(torch.from_numpy(embedding_NE)).numpy())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An S3 server that nothing but a root's URI names."""
    for name in (*ENDPOINT_VARIABLES, "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path / "log") as server:
        yield server


def test_artifacts_and_model_go_to_the_server_that_the_root_names(server, empty_database, saved, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    store = Store(server.uri("runs"))
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "an experiment")
    tracker.start("a run", artifacts=store.path("mlflow-artifacts"))
    (tmp_path / "report.md").write_text("# Report")
    tracker.log_artifact(tmp_path / "report.md", "report")
    shutil.copytree(saved, tmp_path / "model")
    log_model(tracker, tmp_path / "model", digest="one", step=3, registered="lesions", alias="champion")
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert run.info.artifact_uri == f"s3://bucket/runs/mlflow-artifacts/{tracker.run_id}/artifacts"
    assert store.read(f"mlflow-artifacts/{tracker.run_id}/artifacts/report/report.md") == b"# Report"
    (output,) = run.outputs.model_outputs
    mlflow.set_tracking_uri(tracker.uri)
    try:
        found = mlflow.pyfunc.load_model("models:/lesions@champion")
    finally:
        mlflow.set_tracking_uri(None)
    assert found.metadata.model_id == output.model_id
    embedding_NE = make_embeddings(2).astype(np.float32)
    np.testing.assert_array_equal(found.predict(embedding_NE), mlflow.pyfunc.load_model(saved).predict(embedding_NE))


def test_a_model_stays_unregistered_unless_asked(tracker, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    log_model(tracker, tmp_path / "model", digest="one", step=0, registered=None, alias="latest")
    client = MlflowClient(tracker.uri)
    assert len(client.get_run(tracker.run_id).outputs.model_outputs) == 1
    assert client.search_registered_models() == []


def test_a_registry_that_refuses_is_named_and_the_run_has_its_model(tracker, saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path / "model")
    log_model(tracker, tmp_path / "model", digest="one", step=0, registered="lesions", alias="v1")
    tracker.log_metrics({"loss": 0.5}, step=0)
    tracker.finish("FINISHED")
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics, len(run.outputs.model_outputs)) == ("FINISHED", {"train/loss": 0.5}, 1)
    refused, missing = [found.getMessage() for found in caplog.records if found.name.startswith("distmil")]
    assert "MLflow refused a part of the record (MlflowException: " in refused
    assert missing == "MLflow: missing in the record: the registered model lesions"


def test_a_model_that_mlflow_does_not_take_is_named(tracker, tmp_path, caplog):
    log_model(tracker, tmp_path / "nothing", digest="one", step=0, registered=None, alias="latest")
    tracker.finish("FINISHED")
    assert caplog.messages[-1] == "MLflow: missing in the record: the model"


def record(tmp_path, tracker, **options):
    config = small_config(cohort={"classes": ["normal", "tumour"]}, tracking=options)
    job = Job(config, Store(str(tmp_path / "store")))
    bundle = make_bundle()
    bundle = dataclasses.replace(bundle, digest=save_bundle(job.store, bundle).digest)
    rows = [{"loss": 0.7}, {"loss": 0.6}]
    record_training(
        job, tracker, bundle=bundle, history=History(rows), cohort=COHORT, name=None, results=[],
        metrics={"val": {"auc": 1.0}},
    )  # fmt: skip
    tracker.finish("FINISHED")
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def test_a_finished_training_leaves_its_model_and_its_metrics(tracker, tmp_path, caplog):
    run = record(tmp_path, tracker, registered_model="lesions", alias="champion")
    client = MlflowClient(tracker.uri)
    assert (run.info.status, run.data.metrics) == (
        "FINISHED",
        {"train/loss": 0.6, "final/val/auc": 1.0, **{f"threshold/{name}": 0.5 for name in (*READ_OUTS, "patch")}},
    )
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"bundle", "config.yaml"}
    (output,) = run.outputs.model_outputs
    assert output.step == 1
    tags = client.get_logged_model(output.model_id).tags
    assert tags["distmil.bundle_digest"] == run.data.tags["distmil.bundle_digest"]
    assert int(client.get_model_version_by_alias("lesions", "champion").version) == 1
    assert [found for found in caplog.records if found.levelno > logging.INFO] == []


@pytest.mark.parametrize("is_wanted", [True, False])
def test_maps_can_be_left_out_of_the_record(tracker, saved, tmp_path, monkeypatch, is_wanted):
    monkeypatch.setattr("distmil.inference.mlflow_model.save_model", lambda folder, _: shutil.copytree(saved, folder))
    config = small_config(cohort={"classes": ["normal", "tumour"]}, tracking={"maps": is_wanted})
    job = Job(config, Store(str(tmp_path / "store")))
    bundle = make_bundle()
    save_bundle(job.store, bundle)
    job.store.write("predictions/a-run/maps/s1_sheet.png", b"PNG")
    job.store.write("predictions/a-run/report.html", b"<html>")
    results = [SlideResult("s1", "ok", probability=0.9)]
    record_training(
        job, tracker, bundle=bundle, history=History([{"loss": 0.7}]), cohort=COHORT, name="a-run", results=results,
        metrics={},
    )  # fmt: skip
    tracker.finish("FINISHED")
    kept = {item.path for item in MlflowClient(tracker.uri).list_artifacts(tracker.run_id)}
    assert kept == {"bundle", "config.yaml", *(["maps", "results"] if is_wanted else [])}
    shown = {item.path for item in MlflowClient(tracker.uri).list_artifacts(tracker.run_id, "results")}
    assert shown == ({"results/report.html", "results/slides.csv"} if is_wanted else set())


def test_an_export_that_fails_is_said_and_stops_nothing(tracker, tmp_path, caplog, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such graph\nand many lines more")

    monkeypatch.setattr("distmil.inference.mlflow_model.save_model", fail)
    run = record(tmp_path, tracker)
    assert (run.info.status, run.data.metrics["train/loss"], run.outputs.model_outputs) == ("FINISHED", 0.6, [])
    (said,) = [found.getMessage() for found in caplog.records if found.levelname == "WARNING"]
    assert said.startswith("the network could not be exported")
    assert said.endswith("no such graph")


@pytest.mark.parametrize("alias", ["v1", "V20", "has space", "a.b", ""])
def test_an_alias_that_mlflow_would_refuse_is_refused_at_once(alias):
    with pytest.raises(ConfigError, match=r"tracking\.alias"):
        small_config(tracking={"alias": alias})
