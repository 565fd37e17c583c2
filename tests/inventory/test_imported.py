"""What a store holds of imported features is known by the runs and bundles that use it."""

from distmil.config.loading import build_config
from distmil.encoders.embedder import embeddings_folder
from distmil.features.spec import features_spec
from distmil.inference.bundle import bundle_values
from distmil.inventory.settings import recipe_of_bundle, recipe_of_run
from distmil.preflight.claims import settings_of

CONFIG = build_config(
    {
        "features": {"encoder": "uni_v1", "dimension": 1024, "folder": "/data"},
        "tiling": {"strategy": "features", "patch_px": 256},
    }
)


def test_runs_and_bundles_name_the_folders_of_their_features() -> None:
    spec = features_spec(CONFIG.features)
    folder = embeddings_folder(CONFIG, spec)
    run = settings_of(CONFIG, CONFIG.cohort.classes) | {"encoder": spec.identity()}
    for recipe in (recipe_of_run(run), recipe_of_bundle({"config": bundle_values(CONFIG)})):
        assert recipe is not None
        assert "uni_v1 embeddings" in recipe.folders()[folder].words
