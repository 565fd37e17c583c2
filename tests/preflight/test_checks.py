"""Every job refuses what cannot work before it tiles anything, with exit code 2 and without torch or Ray."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distmil import cli
from distmil.cohort import read_cohort
from distmil.config.loading import build_config
from distmil.inference.bundle import save_bundle
from distmil.preflight import checks, looks, supervision
from distmil.storage.store import Store
from distmil.training.run_files import run_file
from tests.inference.test_mlflow_model import make_bundle
from tests.support.scale import IS_FULL
from tests.support.slides import save_pyramid, tissue_image

ROOT = Path(__file__).parents[2]
ALL = ("tile", "embed", "pretrain", "train", "tune", "evaluate", "predict")
LEARNING = ("train", "tune")
WITH_LABELS = ("train", "tune", "evaluate")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with a bundle of the classes normal and tumour, and time enough on a busy machine."""
    monkeypatch.setenv("DISTMIL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(looks.look_at, "__kwdefaults__", {"limit_s": 100.0, "at_once": 2})
    found = Store(str(tmp_path / "home"))
    save_bundle(found, make_bundle())
    return found


def manifest(folder: Path, labels: str = "0101", mpp: float = 2.0, *, outlines: str = "") -> str:
    """Write a manifest of small slides, the last two in val, with outlines that are no XML on the positive ones."""
    lines = ["slide_id,slide_path,label,split,annotation_path"]
    (folder / "bad.xml").write_text("<oh")
    for i, label in enumerate(labels):
        save_pyramid(folder / f"{i}.tiff", tissue_image((520, 380), seed=i), mpp=mpp)
        lines.append(f"s{i},{i}.tiff,{label},{'train' if i < 2 else 'val'},{outlines if label == '1' else ''}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    return f"cohort.manifest={folder / 'm.csv'}"


def refused(store: Store, capsys: pytest.CaptureFixture[str], job: str, *keys: str) -> str:
    """Run a job that is refused, and return what it says."""
    given = ["prediction.model=a-run"] if job in {"evaluate", "predict"} else ["cohort.classes=[normal,tumour]"]
    assert cli.main(job, None, [*given, *keys]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert {"patches", "embeddings", "labels", "predictions"}.isdisjoint(
        path.name for path in Path(store.root).iterdir()
    )
    return said.err


@pytest.mark.parametrize("job", ALL)
def test_slides_that_are_all_too_coarse(job: str, store: Store, tmp_path: Path, capsys) -> None:
    said = refused(store, capsys, job, manifest(tmp_path))
    number = 2 if job in {"evaluate", "pretrain"} else 4
    assert f"all {number} slides that were looked at are too_coarse: their finest resolution is 2 um/px" in said
    assert "tiling.mpp=2 fits them" in said


@pytest.mark.parametrize("job", WITH_LABELS)
def test_annotations_that_all_fail(job: str, store: Store, tmp_path: Path, capsys) -> None:
    said = refused(store, capsys, job, manifest(tmp_path, "0111", mpp=0.5, outlines="bad.xml"))
    assert f"none of the {2 if job == 'evaluate' else 3} annotations that were looked at can be used:" in said


@pytest.mark.parametrize("job", ALL)
def test_a_disk_that_is_full(job: str, store: Store, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(checks, "free_bytes", lambda root: 10)
    said = refused(store, capsys, job, manifest(tmp_path, "0101", mpp=0.5))
    assert "will be written (patches" in said
    assert "10 B are free in" in said


@pytest.mark.parametrize("job", LEARNING)
def test_one_class(job: str, store: Store, tmp_path: Path, capsys) -> None:
    said = refused(store, capsys, job, manifest(tmp_path, "1101"))
    assert "the manifest has 2 tumour in train (2 in val); add slides of normal" in said


@pytest.mark.parametrize("job", LEARNING)
def test_a_name_that_is_taken(job: str, store: Store, tmp_path: Path, capsys) -> None:
    section = "training" if job == "train" else "search"
    settings = {"bags.top_k": 3, "encoder": {"name": "texture", "digest": "v1"}}
    store.write_checked(run_file("r", "run"), {"settings": settings, "data": "d"}, owner="r")
    said = refused(store, capsys, job, manifest(tmp_path), f"{section}.run=r")
    assert f"{section}.run = 'r' was started with something else" in said
    assert "bags.top_k: 3 then, 8 now" in said


def test_folds_of_a_training_in_a_search(store: Store, tmp_path: Path, capsys) -> None:
    said = refused(store, capsys, "tune", manifest(tmp_path), "training.folds=3")
    assert "training.folds = 3: a search validates on search.folds; leave it out" in said


def test_folds_of_an_encoder_that_is_trained(store: Store, tmp_path: Path, capsys) -> None:
    given = ("training.folds=3", "encoder.name=resnet18", "encoder.trainable=true")
    said = refused(store, capsys, "train", manifest(tmp_path), *given)
    assert "the networks of all folds share the bundle's one encoder" in said


@pytest.mark.parametrize("job", ["embed", *LEARNING])
def test_weights_that_are_not_there(job: str, store: Store, tmp_path: Path, capsys) -> None:
    keys = (manifest(tmp_path), "encoder.name=resnet18", "encoder.weights=/nowhere/w.pt")
    assert "encoder.weights = '/nowhere/w.pt': there is no such file" in refused(store, capsys, job, *keys)


@pytest.mark.parametrize("job", ["evaluate", "predict"])
def test_an_empty_split(job: str, store: Store, tmp_path: Path, capsys) -> None:
    said = refused(store, capsys, job, manifest(tmp_path), "prediction.split=test")
    assert "the manifest has no slide in test, it has " in said
    assert "; set prediction.split" in said


@pytest.mark.parametrize("job", LEARNING)
def test_a_gpu_that_is_not_there(job: str, store: Store, tmp_path: Path, capsys, monkeypatch) -> None:
    from distmil.pipeline import cluster, nodes  # noqa: PLC0415  # only here Ray is wanted
    from distmil.pipeline.training import workers  # noqa: PLC0415
    from distmil.pipeline.tuning import tune_adapter  # noqa: PLC0415

    for module in (cluster, workers, tune_adapter):
        monkeypatch.setattr(module, "start_ray", lambda: None)
        monkeypatch.setattr(module, "is_autoscaling", lambda: False)
    monkeypatch.setattr(nodes, "check_cluster", lambda job: None)
    monkeypatch.setattr(workers, "node_resources", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(tune_adapter, "cluster_resources", lambda: {"CPU": 2.0})
    keys = (manifest(tmp_path, "0100", mpp=0.5), "training.use_gpu=true", "tracking.uri=none")
    said = refused(store, capsys, job, *keys, "search.metric=patch_ap_probability")
    assert ("needs 1 GPU" if job == "train" else "a trial needs 1 CPU, 1 GPU") in said


def test_a_good_manifest_passes(store: Store, tmp_path: Path) -> None:
    path = manifest(tmp_path, "0101", mpp=0.5).removeprefix("cohort.manifest=")
    config = build_config({"cohort": {"manifest": path, "classes": ["normal", "tumour"]}})
    cohort = read_cohort(config.cohort, manifest=path, needs_labels=True, needs_splits=True)
    assert checks.check_job(config, store, cohort, job="train") == []
    learning = replace(cohort, slides=cohort.slides[:2])
    notes = checks.check_job(config, store, learning, job="train")
    assert [note.split(":")[1] for note in notes] == [" no slide with a label is in val"]


def test_refusals_load_neither_torch_nor_ray(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom distmil import cli\n"
        f"code = cli.main('train', None, [{manifest(tmp_path, '1101')!r}, 'cohort.classes=[normal,tumour]'])\n"
        "print(code, sorted({'torch', 'ray', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() == "2 []", done.stderr


# --- dry run


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """List all files with their sizes and times."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("job", "stages"),
    [
        ("tile", ["start", "tile", "report"]),
        ("embed", ["start", "tile", "embed"]),
        ("pretrain", ["start", "tile", "label", "pretrain"]),
        ("train", ["start", "tile", "embed", "label", "train", "predict", "record"]),
        ("tune", ["start", "tile", "embed", "label", "search"]),
        ("evaluate", ["start", "tile", "embed", "label", "predict"]),
        ("predict", ["start", "tile", "embed", "predict"]),
    ],
)
def test_a_dry_run_says_how_much_and_writes_nothing(
    job: str, stages: list[str], store: Store, tmp_path: Path, capsys
) -> None:
    before = files(Path(store.root))
    keys = [manifest(tmp_path, "0100", mpp=0.5), "training.epochs=3"]
    if job in {"train", "tune"} and not IS_FULL:  # what a dry run tries of the usual encoder it tries for embed
        keys.append("encoder.name=texture")
    keys += ["prediction.model=a-run"] if job in {"evaluate", "predict"} else ["cohort.classes=[normal,tumour]"]
    assert cli.main(job, None, ["--dry-run", *keys]) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert files(Path(store.root)) == before
    assert answer["dry_run"] is True
    assert [stage["name"] for stage in answer["stages"]] == stages
    tile = answer["stages"][1]
    assert (tile["done"], tile["todo"]) == (0, 2 if job in {"evaluate", "pretrain"} else 4)
    assert tile["num_bytes"] > 1000
    assert answer["seconds"] == pytest.approx(sum(stage["seconds"] for stage in answer["stages"]))
    assert all(stage["seconds"] > 0 for stage in answer["stages"])
    assert "nothing is written" in said.err


@pytest.mark.parametrize("job", ["embed", "pretrain", "train", "tune"])
def test_encoders_that_cannot_run_are_refused_before_torch_is_loaded(tmp_path, store, capsys, job):
    said = refused(store, capsys, job, manifest(tmp_path), "encoder.name=uni", "encoder.weights=/nowhere/uni")
    assert "encoder.weights = '/nowhere/uni': there is no such file or folder" in said
    said = refused(store, capsys, job, manifest(tmp_path), "encoder.name=hibou-b")
    assert "set encoder.allow_remote_code=true" in said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["encoder.name=texture"],
            "encoder.name = 'texture': it has no weights that pretrain could train; set encoder.name",
        ),
        (
            ["encoder.name=texture+resnet18+efficientnet_lite0"],
            "pretrain trains one encoder with weights, not resnet18 and efficientnet_lite0; name one of them",
        ),
        (["tiling.store=coords"], "tiling.store = 'coords': every step of pretrain reads patches of many slides"),
        (["features.folder=."], "and pretrain learns from pixels; leave it out"),
        (["pretraining.epochs=0"], "pretraining.epochs = 0"),
        (["pretraining.method=mae"], "pretraining.method = 'mae': expected vicreg | simclr | dino"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(keys: list[str], said: str, tmp_path: Path, store: Store, capsys) -> None:
    assert said in refused(store, capsys, "pretrain", manifest(tmp_path), *keys)


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, store: Store, capsys, monkeypatch) -> None:
    monkeypatch.setattr(supervision, "PRETRAINING_PACKAGE", "lightly_that_is_not_there")
    assert "which is not installed here: pip install 'distmil[pretrain]', on every node" in refused(
        store, capsys, "pretrain", manifest(tmp_path)
    )


def test_a_manifest_without_train_slides_is_refused(tmp_path: Path, store: Store, capsys) -> None:
    given = manifest(tmp_path)
    table = tmp_path / "m.csv"
    table.write_text(table.read_text().replace("train", "test"))
    assert "pretrain learns from the slides in train, and the manifest has none there" in refused(
        store, capsys, "pretrain", given
    )


def test_a_pretraining_of_that_name_with_other_settings_is_refused(tmp_path: Path, store: Store, capsys) -> None:
    earlier = {"pretraining.method": "dino", "encoder": {"name": "resnet18"}}
    run = "pretrain-own"
    store.write_checked(run_file(run, "run"), {"settings": earlier, "data": ""}, owner=run)
    said = refused(store, capsys, "pretrain", manifest(tmp_path), "pretraining.run=own")
    assert "pretraining.run = 'own' was started with something else; choose another name, or delete" in said
    assert "pretraining.method: 'dino' then, 'vicreg' now" in said
    assert "encoder.name: 'resnet18' then, 'efficientnet_lite0' now" in said
