"""Columns and classes under the manifest's own names: mapped, asked about, never lost in silence."""

import itertools
import shlex

import numpy as np
import pytest

from distmil.cohort import read_cohort
from distmil.cohort.columns import setting
from distmil.cohort.row import COLUMNS
from distmil.config.loading import load_config
from distmil.errors import ConfigError, DistmilError, ManifestError
from tests.support.scale import cases


def read(folder, text, *overrides, needs_labels=False):
    (folder / "a.png").touch()
    (folder / "m.csv").write_text(text, encoding="utf-8")
    config = load_config(None, overrides).cohort
    return read_cohort(config, manifest=folder / "m.csv", needs_labels=needs_labels, needs_splits=False).slides


def wrong(folder, text, *overrides, needs_labels=False):
    with pytest.raises(DistmilError) as caught:
        read(folder, text, *overrides, needs_labels=needs_labels)
    assert caught.value.exit_code == 2
    return str(caught.value).removeprefix(f"{folder / 'm.csv'}: ")


def pasted(message):
    """Take the overrides out of a message as a shell would read them."""
    return [word for word in shlex.split(message.partition("set ")[2]) if word.startswith("cohort.")]


def test_a_column_is_mapped_by_the_files_own_name(tmp_path):
    text = "Präparat,Pfad,isMSIH,Patient ID,center\n7,a.png,MSIH,p9,Brno\n"
    mapping = (
        'cohort.columns={slide_id: Präparat, slide_path: pfad, label: isMSIH, patient_id: "Patient ID", site: center}'
    )
    (slide,) = read(tmp_path, text, mapping, "cohort.class_names={MSIH: positive}", needs_labels=True)
    assert (slide.slide_id, slide.label, slide.patient_id, slide.site) == ("7", 1, "p9", "Brno")


def test_a_mapped_column_replaces_the_one_of_that_name(tmp_path):
    text = "slide_id,slide_path,label,grade,patient_id\na,a.png,junk,1,p\n"
    (slide,) = read(tmp_path, text, "cohort.columns={label: grade, patient_id: null}", needs_labels=True)
    assert (slide.label, slide.patient_id) == (1, "a")


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("{patient: x}", "cohort.columns: distmil has no column 'patient'; did you mean patient_id?"),
        (
            "{nonsense: x}",
            "cohort.columns: distmil has no column 'nonsense'; distmil's columns are slide_id, slide_path,",
        ),
        (
            '{"Patient ID": patient_id}',
            "cohort.columns: distmil has no column 'Patient ID'; write it the other way round: "
            "'cohort.columns={patient_id: \"Patient ID\"}'",
        ),
        ("{site: x, patient_id: x}", "cohort.columns: site and patient_id are both 'x'; a column has one meaning"),
        ("{slide_id: null}", "cohort.columns: slide_id = null, but every slide needs it; give the file's name for it"),
        ("{label: 3}", "cohort.columns.label = 3: expected pairs of text: text or null"),
        ("{site: x, site: y}", "override 'cohort.columns={site: x, site: y}': line 1: key 'site' is given twice"),
        (
            "{site: Centre}",
            "cohort.columns says that site is 'Centre', which is not among the file's columns slide_id, slide_path, "
            "Center, x; did you mean 'Center'?",
        ),
    ],
)
def test_a_wrong_mapping_is_refused(tmp_path, mapping, said):
    assert wrong(tmp_path, "slide_id,slide_path,Center,x\na,a.png,1,2\n", f"cohort.columns={mapping}").startswith(said)


def test_a_doubled_column_is_refused_with_the_choice(tmp_path):
    message = wrong(tmp_path, "slide_id,slide_path,case_id,patient_id\na,a.png,p,q\n")
    assert message == (
        "column patient_id is there twice, as 'case_id' and 'patient_id'; choose one: "
        "'cohort.columns={patient_id: case_id}'"
    )
    (slide,) = read(
        tmp_path, "slide_id,slide_path,case_id,patient_id\na,a.png,p,q\n", "cohort.columns={patient_id: case_id}"
    )
    assert slide.patient_id == "p"


def test_a_near_name_is_refused_with_both_ways_out(tmp_path):
    text = "slide_id,slide_path,Patient ID,complete\na,a.png,p,yes\n"
    question, *ways = wrong(tmp_path, text).splitlines()
    assert question == (
        "column 'Patient ID' (is patient_id meant?), 'complete' (is annotation_complete meant?) would not be used"
    )
    (yes,), (no,) = ([word for word in shlex.split(way) if word.startswith("cohort.")] for way in ways)
    (slide,) = read(tmp_path, text, yes)
    assert (slide.patient_id, slide.annotation_complete) == ("p", True)
    (slide,) = read(tmp_path, text, no)
    assert (slide.patient_id, slide.annotation_complete) == ("a", False)


def test_needed_columns_under_near_names_are_offered_to_paste(tmp_path):
    names = {
        "slide_id": ["Slide", "slide name", "image_id", "slideid", "ID", "WSI"],
        "slide_path": ["path", "File Path", "slidepath", "filename", "svs path"],
        "label": ["class", "Labels", "target", "lable"],
    }
    for slide_id, slide_path, label in itertools.product(*names.values()):
        text = f"{slide_id},{slide_path},{label}\na,a.png,1\n"
        (override,) = pasted(wrong(tmp_path, text, needs_labels=True))
        (slide,) = read(tmp_path, text, override, needs_labels=True)
        assert (slide.slide_id, slide.label) == ("a", 1), text


def test_no_label_column_is_one_line(tmp_path):
    text = "slide_id,slide_path,isMSIH\n" + "".join(f"{i},a.png,yes\n" for i in range(50))
    assert wrong(tmp_path, text, needs_labels=True) == (
        "there is no column label among slide_id, slide_path, isMSIH; this job needs the class of every slide; "
        "if it has another name, set 'cohort.columns={label: ...}'"
    )


def test_a_wide_table_is_not_listed_whole(tmp_path):
    message = wrong(tmp_path, ",".join(f"gene{i}" for i in range(500)) + "\n" + ",".join("1" * 500) + "\n")
    assert "gene0, gene1," in message
    assert "... (470 more)" in message
    assert len(message) < 600


def test_a_table_of_patients_is_told_how_to_be_joined(tmp_path, monkeypatch):
    (tmp_path / "SLIDES.csv").write_text("slide_id,slide_path,PATIENT\n007,a.png,p1\n008,b.png,p2\n")
    (tmp_path / "b.png").touch()
    message = wrong(tmp_path, "PATIENT,isMSIH\np1,MSIH\np2,NA\n", needs_labels=True)
    assert "a table of patients has to be joined with a table of slides, in Python:" in message
    monkeypatch.chdir(tmp_path)
    exec(message.splitlines()[-1].strip(), {})
    slides = read(
        tmp_path, (tmp_path / "manifest.csv").read_text(), "cohort.columns={label: isMSIH, patient_id: PATIENT}",
        "cohort.class_names={MSIH: positive}",
    )  # fmt: skip
    assert [(slide.slide_id, slide.label, slide.patient_id) for slide in slides] == [
        ("007", 1, "p1"),
        ("008", None, "p2"),
    ]


@pytest.mark.parametrize("key", ["clini_table", "slide_table", "ground_truth_label", "label_column"])
def test_keys_of_other_tools_are_answered(key):
    with pytest.raises(ConfigError, match=rf"unknown key cohort\.{key}; (a manifest is one table|set cohort\.columns)"):
        load_config(None, [f"cohort.{key}=x"])


def test_every_setting_can_be_pasted():
    rng = np.random.default_rng(4)
    letters = list("aZ é0_-'\"\\:,{}[]#&*!|>%@`$ \t中")
    for _ in range(cases(300, full=5000)):
        names = ["".join(rng.choice(letters, size=rng.integers(1, 12))) for _ in range(3)] + [
            "no",
            "null",
            "12",
            "1e3",
            "~",
        ]
        names = [str(name) for name in rng.permutation(names)[:3]]
        pairs = dict(zip(rng.permutation(COLUMNS)[:4].tolist(), [*names, None], strict=True))
        (override,) = shlex.split(setting("cohort.columns", pairs))
        assert load_config(None, [override]).cohort.columns == pairs


# --- classes


@pytest.mark.parametrize(
    ("mapping", "texts", "labels"),
    [
        ("{tumor: positive, normal: negative}", ["tumor", "normal", "negative", "1"], [1, 0, 0, 1]),
        ("{0: positive, 1: negative}", ["0", "1", "1.0", "positive"], [1, 0, 0, 1]),
        ("{'yes': positive, 'no': negative, NA: negative}", ["yes", "no", "NA", "n/a"], [1, 0, 0, None]),
    ],
)
def test_labels_are_mapped_to_classes(tmp_path, mapping, texts, labels):
    text = "slide_id,slide_path,label\n" + "".join(f"s{i},a.png,{text}\n" for i, text in enumerate(texts))
    assert [slide.label for slide in read(tmp_path, text, f"cohort.class_names={mapping}")] == labels


def test_labels_that_are_no_class_are_counted_with_the_setting(tmp_path):
    rows = "".join(f"s{i},a.png,{['tumor', 'tumor', 'no', '0', 'NA'][i % 5]}\n" for i in range(50))
    message = wrong(tmp_path, f"slide_id,slide_path,label\n{rows}", needs_labels=True)
    assert message.splitlines()[-1] == (
        "  labels that are no class: tumor (20), no (10); say which class each is (negative, positive): "
        "'cohort.class_names={tumor: ..., \"no\": ...}'"
    )
    assert "and 27 more: label: not a class" in message


def test_a_label_near_a_mapped_one_is_asked_about(tmp_path):
    text = "slide_id,slide_path,label\na,a.png,Tumor\n"
    assert "did you mean tumor?" in wrong(tmp_path, text, "cohort.class_names={tumor: positive}")


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("{yes: positive}", "YAML reads yes, no, on, off, true and false as True; write the label in quotes"),
        ("{tumor: pos}", "'tumor' is to be 'pos', which is not a class; expected one of negative, positive"),
        ("{tumor: 1}", "cohort.class_names.tumor = 1: expected pairs of text: text"),
        ("tumor", "cohort.class_names = 'tumor': expected pairs of text: text"),
    ],
)
def test_a_wrong_mapping_of_classes_is_refused(tmp_path, mapping, said):
    assert said in wrong(tmp_path, "slide_id,slide_path\na,a.png\n", f"cohort.class_names={mapping}")


def test_unknown_classes_leave_labels_unread(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text("slide_id,slide_path,label\na,a.png,carcinoma\n")
    config = load_config(None, ["cohort.class_names={x: carcinoma}"]).cohort
    options = {"manifest": tmp_path / "m.csv", "needs_labels": True, "needs_splits": False}
    assert read_cohort(config, **options, are_classes_known=False).slides[0].label is None
    with pytest.raises(ConfigError, match="not a class"):
        read_cohort(config, **options)
    (tmp_path / "m.csv").write_text("slide_id,slide_path\na,a.png\n")
    with pytest.raises(ManifestError, match="there is no column label"):
        read_cohort(config, **options, are_classes_known=False)


def test_a_list_of_paths_is_no_table(tmp_path):
    said = wrong(tmp_path, "/slides/Jane Doe.svs\n/slides/b.svs\n")
    assert said.startswith("the first line has a slide's path where the names of the columns should be; write a line")
    assert "Jane" not in said
    assert "slide_id,slide_path,label above" in wrong(tmp_path, "a.svs,1\nb.svs,0\n", needs_labels=True)
