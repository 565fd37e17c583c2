"""The configuration: what is refused, how that is said, and which keys make a stage's folder another one."""

import math
from pathlib import Path

import pytest

from distmil.config.data import TilingConfig
from distmil.config.description import describe_keys
from distmil.config.loading import annotated_yaml, build_config, load_config, parse_yaml, per_job_keys
from distmil.config.root import Config, fingerprint
from distmil.errors import ConfigError
from distmil.labels.tables import labels_folder
from distmil.tiling.shards import patches_folder

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def load(tmp_path, text, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


# --- help


def test_help_names_every_key_with_its_default_and_a_meaning():
    text = describe_keys()
    keys = Config().flat()
    assert len(keys) > 50
    lines = text.splitlines()
    for key in keys:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {key}  (")]
        assert "default " in lines[at]
        assert len(lines[at + 1].strip()) > 10, f"{key} has no docstring"
        assert "None" not in lines[at + 1]


@pytest.mark.parametrize(
    "line",
    [
        "tiling.patch_px  (an integer >= 8 and <= 4096; default 224)",
        "tiling.mpp  (a number > 0 and <= 1000, or null; default 0.5)",
        "tiling.min_tissue  (a number >= 0 and <= 1; default 0.1)",
        'tiling.strategy  (foreground | crop | pad | features; default "foreground")',
        'training.use_gpu  (auto | true | false; default "auto")',
        "bags.mixed_bag_loss  (true | false; default false)",
        "tiling.verify  (repair | true | false; default false)",
        "prediction.split  (train | val | test | null; default null)",
        "training.run  (text of 1 to 128 letters, digits, . _ -, without a leading dot, or null; default null)",
        'cohort.classes  (a list of 2 to 100 texts; default ["negative", "positive"])',
    ],
)
def test_help_states_type_bounds_and_default(line):
    assert f"  {line}\n" in describe_keys()


# --- refusals


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tilling: {}", ["unknown key tilling", "did you mean tiling?"]),
        ("tiling: {patchpx: 3}", ["unknown key tiling.patchpx", "patch_px"]),
        ("mpp: 3", ["unknown key mpp", "tiling.mpp"]),
        ("tiling: {epochs: 3}", ["unknown key tiling.epochs", "training.epochs"]),
        ("tiling: {qqqq: 3}", ["unknown key tiling.qqqq", "strategy", "chunk_patches"]),
        ("tiling: {patch_px: '224'}", ["tiling.patch_px", "'224'", "an integer >= 8"]),
        ("tiling: {patch_px: 224.0}", ["tiling.patch_px", "224.0", "an integer"]),
        ("tiling: {patch_px: 4}", ["tiling.patch_px", "4", ">= 8 and <= 4096"]),
        ("tiling: {patch_px: true}", ["tiling.patch_px", "True", "an integer"]),
        ("tiling: {strategy: all}", ["tiling.strategy", "'all'", "foreground | crop | pad"]),
        ("tiling: {mpp: -0.5}", ["tiling.mpp", "-0.5", "> 0"]),
        ("tiling: 3", ["tiling", "3", "section"]),
        ("tiling: {verify: maybe}", ["tiling.verify = 'maybe': expected repair | true | false"]),
        ("losses: {patch: 1001}", ["losses.patch", "1001", "<= 1000"]),
        ("training: {use_gpu: maybe}", ["training.use_gpu", "'maybe'", "auto | true | false"]),
        ("training: {run: ../escape}", ["training.run", "'../escape'", "letters"]),
        ("cohort: {classes: [a, a]}", ["cohort.classes", "['a', 'a']", "distinct"]),
        ("cohort: {val_fraction: 0.6, test_fraction: 0.5}", ["val_fraction", "0.6", "test_fraction", "0.5", "below 1"]),
        ("labels: {positive_at: 0.2, negative_below: 0.5}", ["labels.negative_below", "0.5", "positive_at", "0.2"]),
        ("labels: {affine: [1, 0, 0]}", ["labels.affine = [1.0, 0.0, 0.0]", "expected 6 finite numbers, a to f"]),
        ("labels: {affine: [1, .inf, 0, 0, 1, 0]}", ["labels.affine", "inf", "expected 6 finite numbers"]),
        ("labels: {affine: [1, 2, 0, 2, 4, 0]}", ["labels.affine: a e - b d is 0", "maps every outline to a line"]),
        ("labels: {preset: camelyon}", ["labels.preset = 'camelyon'", "camelyon16", "camelyon17", "qupath"]),
        ("labels: {groups: {Tumor: 3}}", ["labels.groups.Tumor", "3"]),
        ("losses: {patch: 0, bag: 0, topk: 0, attention: 0}", ["losses", "above 0"]),
        ("losses: {ramp: {bags: 3}}", ["losses.ramp", "bags", "patch | bag | topk | attention"]),
        ("losses: {ramp: {bag: 1.5}}", ["losses.ramp.bag", "1.5", "an integer"]),
        ("training: {num_workers: 2, min_workers: 3}", ["training.min_workers", "3", "num_workers", "2"]),
        ("model: {name: abmil}", ["model.name", "'abmil'", "gated_attention"]),
        ("encoder: {name: texture, weights: DEFAULT}", ["encoder.weights", "'DEFAULT'", "leave it out"]),
        ("encoder: {name: texture, trainable: true}", ["encoder.trainable", "efficientnet_lite0 or resnet18"]),
        ("encoder: {trainable: true}", ["encoder.trainable", "one encoder", "such as efficientnet_lite0"]),
        ("encoder: {name: resnet18, trainable: first}", ["encoder.trainable = 'first'", "last"]),
        ("[1, 2]", ["config.yaml", "sections", "list"]),
        ("tiling: {mpp: 1, mpp: 2}", ["config.yaml", "'mpp'", "twice"]),
        ("tiling: {}\ntiling: {}", ["config.yaml", "'tiling'", "twice"]),
        ("tiling: [", ["config.yaml", "not valid YAML in line 1, column 10: "]),
        (
            "cohort:\n  manifest: a.csv\n tiling:\n   mpp: 1\n",
            ["not valid YAML in line 3, column 2: ", "lines of one section begin in one column"],
        ),
        ("!!python/object/apply:os.getcwd []", ["config.yaml", "not valid YAML"]),
    ],
)
def test_a_wrong_file_is_refused_naming_key_value_and_expectation(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_error_is_reported_at_once():
    values = {"tiling": {"patch_px": 1, "stride": 3}, "training": {"lr": "fast"}, "nonsense": 1}
    with pytest.raises(ConfigError) as caught:
        build_config(values)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for key in ("tiling.patch_px", "tiling.stride", "training.lr", "nonsense"):
        assert sum(key in line for line in lines) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [key for key, value in Config().flat().items() if type(value) is float])
def test_a_number_that_is_none_is_refused(key, value):
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=rf"{key} = -?(nan|inf)"):
        build_config({section: {name: value}})


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


# --- what is accepted


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "0.001", ".1e-2", "+1e-3"])
def test_numbers_read_as_numbers(tmp_path, text):
    assert load(tmp_path, f"training: {{lr: {text}}}").training.lr == 0.001
    assert load(tmp_path, "", f"training.lr={text}").training.lr == 0.001


@pytest.mark.parametrize("text", ["", "# nothing\n", "tiling:\ncohort:\n"])
def test_an_empty_file_or_section_means_every_default(tmp_path, text):
    assert load(tmp_path, text) == Config()


def test_overrides_lie_over_the_file_and_the_last_one_counts(tmp_path):
    text = "tiling: {mpp: 1.0, patch_px: 96}\ncohort:\n"
    overrides = ["tiling.mpp=0.25", "tiling.mpp=null", "cohort.classes=[n, a, b]", "labels.groups.Tumor 1=b"]
    config = load(tmp_path, text, *overrides, "storage.root=/data/a=b")
    assert config.tiling.mpp is None
    assert config.tiling.patch_px == 96
    assert config.cohort.classes == ["n", "a", "b"]
    assert config.labels.groups == {"Tumor 1": "b"}
    assert config.storage.root == "/data/a=b"
    assert set(config.explicit()) == {
        "tiling.mpp",
        "tiling.patch_px",
        "cohort.classes",
        "labels.groups",
        "storage.root",
    }


@pytest.mark.parametrize("override", ["tiling.mpp", "mpp=1", "=1", ".mpp=1", "tiling.=1", "tiling.mpp=[1"])
def test_a_malformed_override_is_named(override):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert repr(override) in str(caught.value)


def test_an_override_below_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tiling\.mpp\.x=3"):
        load(tmp_path, "tiling: {mpp: 1}", "tiling.mpp.x=3")


def test_a_merge_key_takes_an_anchor_over(tmp_path):
    text = "labels: {groups: &g {a: positive}}\ncohort: {}\ntiling: {mpp: 1.0}\n"
    assert load(tmp_path, text).labels.groups == {"a": "positive"}
    assert parse_yaml("base: &b {p: 1, q: 2}\nmore: {<<: *b, q: 3}")["more"] == {"p": 1, "q": 3}


@pytest.mark.parametrize("name", ["demo", "camelyon16", "images"])
def test_the_named_example_exists(name):
    assert (CONFIGS / f"{name}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_example_loads(path):
    assert load_config(path).explicit()


# --- fingerprints

TILING = {
    "strategy": "pad",
    "patch_px": 256,
    "stride_px": 100,
    "mpp": 1.0,
    "mpp_tolerance": 0.1,
    "default_mpp": 0.25,
    "min_tissue": 0.3,
    "snap": True,
    "encode": "png",
    "jpeg_quality": 80,
    "reduce": "dct",
    "reader": "openslide",
    "store": "coords",
    "chunk_patches": 64,
    "chunk_timeout_s": 5,
    "stream": True,
    "checksum": "full",
    "verify": True,
    "max_bad_fraction": 0.5,
}
# A slide's own record remembers the default resolution it was made with; the others change no pixel.
SAME_PATCHES = {"default_mpp", "reader", "max_bad_fraction", "chunk_timeout_s", "checksum", "verify", "stream"}


def test_the_table_of_tiling_keys_is_complete():
    assert set(TILING) == set(TilingConfig.model_fields)


@pytest.mark.parametrize("key", TILING)
def test_patches_get_another_folder_where_they_would_differ(key):
    changed = patches_folder(TilingConfig(**{key: TILING[key]}))
    assert (changed == patches_folder(TilingConfig())) is (key in SAME_PATCHES)


@pytest.mark.parametrize(
    ("section", "key", "value", "is_same"),
    [
        ("labels", "positive_at", 0.5, False),
        ("labels", "groups", {"necrosis": "exclude"}, False),
        ("labels", "groups", {"Tumor": "positive"}, True),  # what is built in anyway
        ("labels", "form", "fraction", True),
        ("cohort", "classes", ["normal", "tumour"], False),
        ("tiling", "patch_px", 96, False),
        ("encoder", "name", "resnet18", True),
        ("training", "epochs", 3, True),
    ],
)
def test_labels_get_another_folder_where_they_would_differ(section, key, value, is_same):
    changed = build_config({section: {key: value}})
    assert (labels_folder(changed) == labels_folder(Config())) is is_same


def test_what_may_differ_from_a_bundle_never_decides_an_identity():
    assert {"tiling.default_mpp", "tiling.reader", "encoder.batch_size"} <= per_job_keys()
    for dotted in per_job_keys():
        section, _, key = dotted.partition(".")
        assert key not in getattr(Config(), section).identity()


def test_a_fingerprint_follows_values_and_not_their_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})


def test_a_config_comes_back_from_its_own_values():
    config = load_config(None, ["training.lr=1e-4", "labels.groups={Tumor: positive}", "tiling.mpp=null"])
    assert build_config(config.model_dump()) == config


def bomb(depth: int, width: int = 9) -> str:
    """YAML of a few hundred bytes that stands for width ** depth values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines)


def merged(depth: int) -> str:
    """The same by merge keys."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(5), "more than 20000 values"),
        (bomb(10), "more than 20000 values"),
        (bomb(1000), "more than 20000 values"),
        (merged(12), "more than 20000 values"),
        (f"tiling: {'[' * 5000}{']' * 5000}", "nested more than 50 deep"),
        (f"tiling: {'{a: ' * 5000}1{'}' * 5000}", "nested more than 50 deep"),
        ("\n".join(f"{' ' * i}a:" for i in range(2000)), "nested more than 50 deep"),
        ("tiling: &a {mpp: *a}", "an alias is inside the value"),
        ("tiling: &a [*a, *a]", "an alias is inside the value"),
        ("\n".join(f"k{i}: 1" for i in range(40_000)), "more than 20000 values"),
        ("\n".join(f"k{i}: 1" for i in range(9_000)), "... and 8950 more"),
        ("tiling: {mpp: '" + "x" * 10**6 + "'}", "expected a number"),
        ("tiling: {" + "x" * 1000 + ": 1}", "unknown key"),
        ("x" * 1000 + ": 1", "unknown key"),
        ("x" * 10**6 + ": 1", "not valid YAML"),
        ("tiling: " + "x" * 10**6, "expected a section"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("tiling: {mpp: 2026-13-41}", "not valid YAML"),
        ("tiling: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
@pytest.mark.timeout(20)
def test_hostile_yaml_is_refused_in_few_words_and_little_time(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml")
    assert said in str(caught.value)
    assert max(map(len, str(caught.value).splitlines())) < 700
    assert len(str(caught.value).splitlines()) < 60


def test_aliases_within_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("search: {space: {bags.top_k: &b {choice: [1, 2]}, bags.n: *b}}")
    config = load_config(tmp_path / "c.yaml")
    assert config.search.space["bags.n"] == config.search.space["bags.top_k"] == {"choice": [1, 2]}


def test_a_printed_configuration_is_read_as_the_same_one_and_marks_what_was_set(tmp_path):
    texts = ["a # b", "two\nlines", "null", "1e-3", "x: y", "ä" * 200 + " " + "b c " * 60]
    given = {
        "cohort": {"columns": dict(zip("abcdef", texts, strict=True)), "classes": texts},
        "tracking": {"experiment": texts[1]},
        "training": {"epochs": 7, "lr": 0.001},
    }
    config = build_config(given)
    text = annotated_yaml(config, title="train")
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config
    lines = text.splitlines()
    marked = [lines[i + 1].split(":")[0].strip() for i, line in enumerate(lines) if line.startswith("  # default: ")]
    assert marked == ["columns", "classes", "epochs", "experiment"]


def test_a_trainable_encoder_needs_stored_pixels(tmp_path):
    with pytest.raises(ConfigError, match=r"tiling\.store = 'coords': with encoder\.trainable .* use image"):
        load(tmp_path, "", "tiling.store=coords", "encoder.name=resnet18", "encoder.trainable=true")


def test_pixels_that_are_stored_keep_the_folders_of_earlier_versions():
    assert patches_folder(TilingConfig()) == patches_folder(TilingConfig(store="image", stream=True))
    assert "store" not in TilingConfig().identity()
    assert patches_folder(TilingConfig(store="coords")) != patches_folder(TilingConfig())
