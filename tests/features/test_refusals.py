"""Each trap of other tools' files: refused by slide, with its reason."""

import h5py
import numpy as np
import pytest
import torch

from distmil.cohort import Slide
from distmil.config.features import FeaturesConfig
from distmil.config.loading import build_config
from distmil.errors import ConfigError, MissingSlide, NoResolution, NoTissue, UnreadableSlide
from distmil.features.agreement import check_header, read_headers, settle
from distmil.features.finding import open_folder
from distmil.features.grid import SlideFacts, as_half, check_resolution, place
from tests.support.feature_files import (
    LAYOUTS,
    random_features,
    write,
    write_clam,
    write_slide2vec,
    write_stamp,
    write_trident,
)
from tests.support.scale import cases


@pytest.fixture
def made():
    """Patches of 512 px at 0.25 um/px, side by side, as 256 px at 0.5."""
    rng = np.random.default_rng(7)
    xy = np.array([[0, 0], [512, 0], [1024, 0], [0, 512], [512, 512], [1024, 1024]])
    return random_features(rng, xy=xy, features=rng.normal(size=(6, 4)).astype(np.float32), extent_px=512,
                           patch_px=256, overlap_px=0, mpp=0.25, size=(2000, 1600))  # fmt: skip


def use(folder, *, facts: SlideFacts | None = None, slide_id="s1", **given):
    config = FeaturesConfig(folder=str(folder), **given)
    with open_folder(config).find(Slide(slide_id, "")).opened(config) as contents:
        placed = place(contents, facts or SlideFacts((2000, 1600), 0.25), config)
        as_half(contents.embedding_NE[0 : contents.header.num_patches], first=0)
    return contents.header, placed


def edit(path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(name: str, values):
    """Replace a data set, its attributes kept."""

    def change(file):
        attributes = dict(file[name].attrs) if name in file else {}
        if name in file:
            del file[name]
        if values is not None:
            file[name] = values
            file[name].attrs.update(attributes)

    return change


@pytest.mark.parametrize(
    ("layout", "change", "refusal"),
    [
        ("trident", replaced("coords", np.zeros((3, 2), np.int64)), "6 embeddings, but 3 coordinates"),
        ("trident", replaced("coords", None), "features without coords"),
        ("stamp", replaced("coords", None), "feats without coords"),
        ("stamp", replaced("feats", None), "holds no feats"),
        ("trident", replaced("features", None), "the places of patches alone"),
        ("trident", replaced("features", np.zeros((6, 2, 2), np.float32)), "expected patches x width"),
        ("trident", replaced("features", np.zeros(768, np.float32)), "one vector of width 768, for the whole slide"),
        ("trident", replaced("features", np.zeros((1, 768), np.float32)), "one vector of width 768"),
        ("trident", replaced("features", np.full((6, 4), np.nan, np.float32)), "patch 0 is not finite"),
        ("trident", replaced("features", np.full((6, 4), np.inf, np.float16)), "patch 0 is not finite"),
        ("trident", replaced("features", np.full((6, 4), 7e4, np.float32)), "too large for half precision"),
        ("trident", replaced("coords", np.zeros((6, 2), np.int64)), "5 of 6 patches have a place that another one has"),
        ("trident", replaced("coords", np.arange(12).reshape(6, 2) + 0.5), "no whole pixels; are they um"),
        ("trident", replaced("coords", np.arange(12).reshape(6, 2) * 1000), "lie outside the slide of 2000 x 1600 px"),
        ("trident", replaced("coords", np.arange(12).reshape(6, 2) - 1), "lie outside the slide"),
        ("trident", replaced("coords", np.arange(18).reshape(6, 3)), "expected numbers, patches x 2"),
        ("stamp", replaced("coords", np.full((6, 2), np.nan, np.float32)), "coordinates are not finite"),
        ("stamp", lambda file: file.attrs.update(unit="px"), "unit is 'px'; expected um"),
        ("stamp", lambda file: file.attrs.update(feat_type="slide"), "one vector for the slide"),
        ("stamp", lambda file: file.attrs.update(feat_type="patient"), "one vector for the patient"),
        ("stamp", lambda file: file.move("feats", "patch_embeddings"), "multiplex"),
        ("clam", lambda file: file.move("features", "imgs"), "holds the pixels of patches"),
        ("clam", replaced("coords", np.arange(12).reshape(6, 2).astype(np.int32)), "not those of its file of"),
        ("clam", replaced("coords", np.zeros((2, 2), np.int32)), "2 patches, but 6"),
        ("trident", lambda file: file["coords"].attrs.update(patch_size="None"), "lack patch_size"),
        ("trident", lambda file: file["coords"].attrs.update(patch_size_level0=0), "patch_size_level0 is 0"),
        ("trident", lambda file: file["coords"].attrs.update(overlap="much"), "overlap is 'much'; expected a number"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why(layout, change, refusal, made, tmp_path):
    folder = write(made, tmp_path, layout)
    use(folder)  # whole before
    edit(next(path for path in folder.rglob("s1.h5") if path.parent.name != "patches"), change)
    with pytest.raises(UnreadableSlide, match=refusal):
        use(folder)


def test_an_empty_slide_of_trident_has_no_tissue(made, tmp_path):
    folder = write_trident(made, tmp_path)
    for shape in ((0, 4), (0,)):
        edit(folder / "s1.h5", replaced("features", np.zeros(shape, np.float32)))
        edit(folder / "s1.h5", replaced("coords", np.zeros((0, 2), np.int64)))
        with pytest.raises(NoTissue):
            use(folder)


def test_slide_vectors_of_one_patch_are_squeezed_coordinates_and_all(made, tmp_path):
    folder = write_trident(made, tmp_path)
    edit(folder / "s1.h5", replaced("features", np.zeros(768, np.float32)))
    edit(folder / "s1.h5", replaced("coords", np.zeros(2, np.int64)))
    with pytest.raises(UnreadableSlide, match="for the whole slide"):
        use(folder)


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp", "slide2vec"])
def test_micrometres_taken_for_pixels_and_the_reverse_are_told(layout, tmp_path):
    rng = np.random.default_rng(3)
    for number in range(cases(20, full=500)):
        made = random_features(rng, overlap_px=0)
        while len(set(made.xy[:, 0])) + len(set(made.xy[:, 1])) < 6:
            made = random_features(rng, overlap_px=0)
        made = made.but(xy=made.xy // made.extent_px * made.extent_px)
        wrong = made.xy / made.mpp if layout == "stamp" else np.rint(made.xy * made.mpp)
        folder = write(made.but(xy=wrong.astype(np.int64)), tmp_path / f"{number}{layout}", layout)
        found = "in pixels, not in um" if layout == "stamp" else "in um, not in level-0 pixels"
        with pytest.raises(UnreadableSlide, match=found):
            use(folder, facts=SlideFacts((10**6, 10**6), made.mpp), slide_id=made.slide_id)


def test_an_overlap_is_no_change_of_unit(made, tmp_path):
    """Neighbours a quarter of a patch apart at 0.25 um/px look like um, but TRIDENT states the overlap."""
    half = made.but(xy=made.xy // 4, overlap_px=192)
    assert use(write_trident(half, tmp_path))[1].extent_px == 512


def test_stamp_needs_the_slides_resolution(made, tmp_path):
    with pytest.raises(NoResolution, match="give the column mpp"):
        use(write_stamp(made, tmp_path), facts=SlideFacts())


def test_slide2vec_without_its_note_is_half_written(made, tmp_path):
    folder = write_slide2vec(made, tmp_path)
    (folder / "tile_embeddings" / "s1.meta.json").unlink()
    with pytest.raises(UnreadableSlide, match="half written"):
        use(folder)


def test_a_tensor_file_runs_nothing(made, tmp_path):
    folder = write_clam(made, tmp_path, tensor=True)
    torch.save({"features": made.features, "call": print}, folder / "s1.pt")
    with pytest.raises(UnreadableSlide, match="holds more than numbers"):
        use(folder)


def test_a_cut_file_is_refused(made, tmp_path):
    folder = write_trident(made, tmp_path)
    data = (folder / "s1.h5").read_bytes()
    for length in (0, 10, len(data) // 2):
        (folder / "s1.h5").write_bytes(data[:length])
        with pytest.raises(UnreadableSlide, match="cannot be read"):
            use(folder)


def test_a_slide_without_a_file_is_missing(made, tmp_path):
    with pytest.raises(MissingSlide, match="named as the slide's id"):
        use(write_trident(made, tmp_path), slide_id="s")


def test_folders_that_are_no_features_of_patches_are_refused(made, tmp_path):
    other = made.but(encoder="virchow2")
    for one in (made, other):
        write_trident(one, tmp_path / "job")
    (tmp_path / "slide_features_titan").mkdir()
    (tmp_path / "empty").mkdir()
    for name, refusal in (
        ("job", r"several encoders \(features_uni_v1, features_virchow2\)"),
        ("slide_features_titan", "one vector a slide"),
        ("empty", r"no \.h5, \.pt or \.zarr"),
        ("absent", "no such folder"),
    ):
        with pytest.raises(ConfigError, match=refusal):
            open_folder(FeaturesConfig(folder=str(tmp_path / name)))


# --- the cohort ---------------------------------------------------------------------------------------------------


def cohort(tmp_path, slides):
    folders = [write_stamp(made, tmp_path) for made in slides]
    config = build_config({"features": {"folder": str(folders[0])}})
    headers = read_headers([Slide(made.slide_id, "") for made in slides], open_folder(config.features), config.features)
    return config, headers


@pytest.mark.parametrize(
    ("other", "refusal"),
    [
        ({"encoder": "virchow2"}, "virchow2 made them, uni_v1 those of the cohort"),
        ({"features": np.zeros((6, 5), np.float16)}, "5 wide, those of the cohort or the bundle 4"),
    ],
)
def test_features_of_another_kind_than_most_are_refused(other, refusal, made, tmp_path):
    slides = [made.but(slide_id=f"s{i}") for i in range(3)]
    config, headers = cohort(tmp_path, slides)
    odd = dict(zip(["x"], cohort(tmp_path / "x", [made.but(slide_id="x", **other)])[1].values(), strict=True))
    settled = settle(config, {**odd, **headers})
    assert (settled.features.encoder, settled.features.dimension) == ("uni_v1", 4)
    assert (settled.tiling.strategy, settled.tiling.patch_px, settled.tiling.mpp) == ("features", 256, 0.5)
    assert settled.explicit() == config.explicit()
    for header in headers.values():
        check_header(header, settled)
    with pytest.raises(UnreadableSlide, match=refusal):
        check_header(odd["x"], settled)


def test_another_resolution_is_refused_and_nominal_ones_are_not(made, tmp_path):
    _, placed = use(write_trident(made, tmp_path))
    for wanted in (None, 0.5, 0.45, 0.6):
        check_resolution(placed, wanted)
    for wanted in (0.25, 1.0, 0.38):
        with pytest.raises(UnreadableSlide, match=r"are of 0\.5 um/px"):
            check_resolution(placed, wanted)


def test_the_user_names_the_encoder_of_files_that_do_not(made, tmp_path):
    folder = write_clam(made, tmp_path)
    for given, refusal in (({}, "do not say which encoder"), ({"dimension": 9}, "none of any encoder .9 wide.")):
        config = build_config({"features": {"folder": str(folder), **given}})
        headers = read_headers([Slide("s1", "")], open_folder(config.features), config.features)
        with pytest.raises(ConfigError, match=refusal):
            settle(config, headers)
    config = build_config({"features": {"folder": str(folder), "encoder": "uni_v1"}})
    assert settle(config, headers).features.encoder == "uni_v1"


def test_another_layout_than_the_stated_one_is_refused(made, tmp_path):
    header, _ = use(write_trident(made, tmp_path))
    for layout in LAYOUTS:
        config = build_config({"features": {"layout": layout}})
        if layout == "trident":
            check_header(header, config)
        else:
            with pytest.raises(UnreadableSlide, match=f"they are trident's, features.layout says {layout}"):
                check_header(header, config)
