"""Unknown patches stay unknown from the annotation to the losses: through tables, shards, embeddings and bags."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from distmil.bags.bag import BagEntry, open_bag, read_labels
from distmil.bags.loader import load_batch
from distmil.bags.sampler import MIXED, StepPlanner
from distmil.bags.source import EmbeddingSource
from distmil.cohort import Slide
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.registry import load_encoder, prepare_encoder
from distmil.labels.tables import SlideLabeller
from distmil.models.baselines import make_network
from distmil.training.losses import LossSettings, packed_losses
from tests.support.bags import small_config, steps_of
from tests.support.slides import save_pyramid, tissue_image
from tests.support.tiles import tile_slide

EDGE = 50
SIZE = (400, 200)
BOXES = {  # left, top, right, bottom
    "Tumor": [(100, 50, 200, 100), (300, 0, 320, 50)],  # two whole patches, and 0.4 of one: between the two limits
    "pen mark": [(210, 110, 290, 190)],
    "not clear": [(10, 160, 30, 190)],
}
POSITIVE = {(100, 50), (150, 50)}
BETWEEN = {(300, 0)}
IGNORED = {(200, 100), (250, 100), (200, 150), (250, 150)}
UNMAPPED = {(0, 150)}


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Tile, embed and label a positive and a normal slide, and return their tables and how a bag is opened."""
    from distmil.storage.store import Store  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("unknown")
    config = small_config(
        tiling={"strategy": "crop", "patch_px": EDGE, "mpp": None, "encode": "png", "chunk_patches": 16},
        labels={"positive_at": 0.5, "negative_below": 0.2, "groups": {"pen mark": "ignore"}},
        bags={"k_positive": 2, "k_negative": 40, "n": 60},
        losses={"bag": 0.0, "topk": 0.0, "patch": 1.0, "attention": 1.0},
    )
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[a, b], [c, b], [c, d], [a, d], [a, b]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, boxes in BOXES.items()
        for a, b, c, d in boxes
    ]
    (folder / "outlines.geojson").write_text(json.dumps(features))
    store = Store(str(folder / "store"))
    spec = prepare_encoder(config.encoder, store)
    encoder, entries, tables = load_encoder(spec, store), [], []
    for number in (0, 1):
        path = save_pyramid(folder / f"{number}.tif", tissue_image(SIZE, seed=number))
        outlines = {"annotation_path": str(folder / "outlines.geojson"), "annotation_complete": True} if number else {}
        slide = Slide(f"s{number}", str(path), label=number, **outlines)
        patches = tile_slide(slide, config.tiling, store)
        embedder = SlideEmbedder(patches, config, spec, store)
        parts = embedder.commit([embedder.write_shard(part, encoder) for part in patches.parts]).parts
        labeller = SlideLabeller(slide, config, store, patches)
        record = labeller.label()
        entries.append(BagEntry(slide.slide_id, number, "train", False, embedder.folder, tuple(parts),
                                labeller.table_name, labels_part=record.parts[0]))  # fmt: skip
        tables.append(read_labels(store, labeller.table_name))
    return config, tables, lambda form: [open_bag(store, entry, num_classes=2, form=form) for entry in entries]


def places_of(table, is_wanted):
    return {place for place, one in zip(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True), is_wanted,
                                        strict=True) if one}  # fmt: skip


def test_the_table_and_the_bags_know_three_states(bags):
    _, (_, table), opened = bags
    label = table["label"].to_pylist()
    assert places_of(table, [one is None for one in label]) == BETWEEN | IGNORED | UNMAPPED
    assert places_of(table, [one == 1 for one in label]) == POSITIVE
    assert label.count(0) == len(label) - 2 - 6
    shares = table["target_fraction"].to_pylist()
    assert places_of(table, [one is None for one in shares]) == IGNORED | UNMAPPED  # the share of the one is known
    for form, unknown in {"class": BETWEEN | IGNORED | UNMAPPED, "fraction": IGNORED | UNMAPPED}.items():
        bag = opened(form)[1]
        assert places_of(table, bag.label_N == -1) == BETWEEN | IGNORED | UNMAPPED
        assert places_of(table, ~bag.is_known_N) == unknown
        assert np.isnan(bag.target_NC[~bag.is_known_N]).all()


@pytest.mark.parametrize("mixed", ["per_class", "per_slide", "pooled"])
@pytest.mark.parametrize("form", ["class", "fraction"])
def test_no_patch_loss_looks_at_an_unknown_patch(bags, mixed, form):
    config, _, opened = bags
    config = config.model_copy(update={"bags": config.bags.model_copy(update={"mixed": mixed})})
    plain = opened(form)

    def spoilt(is_spoilt):
        """Take embeddings that would change any loss which looks at them."""
        taken = []
        for bag in plain:
            z = np.asarray(bag.source.take(slice(None))).copy()
            z[is_spoilt(bag)] = 50.0
            taken.append(replace(bag, source=EmbeddingSource([z])))
        return taken

    head = make_network(config.model, embedding_dim=plain[0].source.take(slice(0, 1)).shape[1], num_classes=2).eval()
    planner = StepPlanner(plain, config.bags, num_classes=2, seed=0)
    aim = LossSettings(config, num_slides=2, num_bags=2, num_mixed=1)
    seen = 0
    for epoch in range(5):
        for step in steps_of(planner, epoch, with_mixed=True):

            def losses(taken, step=step):
                batch = load_batch(taken, step, [*step.bags, MIXED], config.bags, torch.device("cpu"))
                assert not batch.target_NC.isnan().any()
                with torch.no_grad():
                    found = packed_losses(head, batch.patches.float(), batch, aim)
                return [float(found[name]) for name in ("patch", "attention")]

            expected = losses(plain)
            assert losses(spoilt(lambda bag: ~bag.is_known_N)) == expected
            seen += losses(spoilt(lambda bag: bag.is_known_N)) != expected
    assert seen  # the same change of known patches is seen
