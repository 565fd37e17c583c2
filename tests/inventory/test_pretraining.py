"""What a store holds of a pre-training is told, and the weights that it began with are in use."""

from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.encoders.registry import stored_spec
from distmil.inventory.survey import Entry, survey
from distmil.preflight.claims import pretraining_settings, run_id
from distmil.pretraining.weights import weights_folder
from distmil.storage.records import Record
from distmil.storage.store import Committed, Store
from distmil.training.run_files import checkpoint_folder, run_file

LATER_S = 4e9


def test_the_checkpoints_of_a_pretraining_and_its_result(store: Store) -> None:
    config, run, spec = build_config({}), str(run_id("pretrain", "own")), stored_spec("resnet18", "ab" * 32)
    store.write(str(spec.weights_file), b"weights")
    settings = pretraining_settings(config) | {"encoder": spec.identity()}
    store.write_checked(run_file(run, "run"), {"settings": settings, "data": ""}, owner=run)
    store.write_checked(run_file(run, "cohort"), [], owner=run)
    store.write_record(run_file(run, "latest"), Record(run, {"epoch": 2, "step": 12}))

    def entry() -> Entry:
        return survey(store, Config(), now_s=LATER_S).entries[checkpoint_folder(run)]

    assert entry().words == "a pre-training without its result, 3 epochs done"
    assert entry().is_half
    Committed(store, weights_folder("own"), "own").commit({})
    assert entry().words == "checkpoints of a finished pre-training, 3 epochs; its weights are in pretrained/own"
    assert not entry().is_half
    found = survey(store, Config(), now_s=LATER_S)
    assert not found.entries[str(spec.weights_file)].is_unused
    assert "pretrained" in found.others
