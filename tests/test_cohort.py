"""The manifest's rules: every broken one is reported with its line, and splits are drawn by patient."""

import csv
import functools
import os
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmil.cohort import Cohort, Slide, draw_splits, read_cohort
from distmil.config.data import CohortConfig
from distmil.errors import ManifestError
from tests.support.dicom import save_dicom
from tests.support.scale import cases

CLASSES = ["normal", "adenoma", "Carcinoma, in situ"]


@pytest.fixture
def folder(tmp_path):
    """A folder with three empty slide files and an annotation."""
    for name in ("a.tif", "b.tif", "c.tif", "a.xml"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def read(folder, text, *, needs_labels=True, needs_splits=False, encoding="utf-8", classes=CLASSES, **config):
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    options = CohortConfig(classes=classes, **config)
    return read_cohort(options, manifest=path, needs_labels=needs_labels, needs_splits=needs_splits)


def read_parquet(folder, columns, **needs):
    path = folder / "manifest.parquet"
    pq.write_table(pa.table(columns), path)
    return read_cohort(
        CohortConfig(classes=CLASSES), manifest=path, **{"needs_labels": False, "needs_splits": False} | needs
    )


def wrong(folder, text, **options):
    with pytest.raises(ManifestError) as caught:
        read(folder, text, **options)
    return str(caught.value)


# --- refusals


@pytest.mark.parametrize(
    ("header", "row", "parts"),
    [
        ("slide_id,slide_path,label", "a b,a.tif,0", ["'a b'", "letters"]),
        ("slide_id,slide_path,label", ".,a.tif,0", ["slide_id '.'"]),
        ("slide_id,slide_path,label", "..,a.tif,0", ["slide_id '..'"]),
        ("slide_id,slide_path,label", "../a,a.tif,0", ["slide_id '../a'"]),
        ("slide_id,slide_path,label", f"{'a' * 129},a.tif,0", ["128"]),
        ("slide_id,slide_path,label", ",a.tif,0", ["slide_id is empty", "letters"]),
        ("slide_id,slide_path,label", "a,absent.tif,0", ["'absent.tif'", "no such file"]),
        ("slide_id,slide_path,label", "a,,0", ["slide_path is empty"]),
        ("slide_id,slide_path,label", "a,s3://bucket/a.tif,0", ["s3://bucket/a.tif", "mount"]),
        ("slide_id,slide_path,label", "a,~nobody-here/a.tif,0", ["~nobody-here/a.tif"]),
        ("slide_id,slide_path,label", f"a,{'x' * 300}.tif,0", ["slide_path"]),
        ("slide_id,slide_path,label", "a,a.tif,", ["label is empty", "normal", "adenoma"]),
        ("slide_id,slide_path,label", "a,a.tif,Adenom", ["'Adenom'", "did you mean adenoma?"]),
        ("slide_id,slide_path,label", "a,a.tif,3", ["label '3'", "0 to 2", "cohort.classes"]),
        ("slide_id,slide_path,label", "a,a.tif,-1", ["label '-1'"]),
        ("slide_id,slide_path,label", "a,a.tif,0.5", ["label '0.5'"]),
        ("slide_id,slide_path,label,split", "a,a.tif,0,holdout", ["split 'holdout'", "train, val or test"]),
        ("slide_id,slide_path,label,mpp", "a,a.tif,0,0", ["mpp '0'", "above 0"]),
        ("slide_id,slide_path,label,mpp", "a,a.tif,0,inf", ["mpp 'inf'"]),
        ("slide_id,slide_path,label,mpp", 'a,a.tif,0,"1,234"', ["mpp '1,234'", "with a point"]),
        ("slide_id,slide_path,label,mpp", 'a,a.tif,0,"1.234,5"', ["mpp '1.234,5'", "a number above 0"]),
        ("slide_id,slide_path,label,patient_id", "a,a.tif,0,1.23E+05", ["patient_id '1.23E+05'", "rounded"]),
        ("slide_id,slide_path,label,patient_id", "a,a.tif,0,NA", ["patient_id 'NA'", "leave the cell empty"]),
        ("slide_id,slide_path,label", "nan,a.tif,0", ["slide_id 'nan'", "stands for an empty cell"]),
        ("slide_id,slide_path,label", "a,a.tif,n/a", ["label 'n/a' is empty: expected normal"]),
        ("slide_id,slide_path,label,mpp", "a,a.tif,0,40x", ["mpp '40x'"]),
        ("slide_id,slide_path,label,annotation_path", "a,a.tif,0,b.xml", ["annotation_path 'b.xml'", "no such file"]),
        ("slide_id,slide_path,label,annotation_complete", "a,a.tif,0,maybe", ["'maybe'", "true or false"]),
        ("slide_id,slide_path,label,label_source", "a,a.tif,0,guessed", ["'guessed'", "given or pseudo"]),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_its_line(folder, header, row, parts):
    fine = ["z", "c.tif", "0", "train"][: header.count(",") + 1]
    fine[3:] = ["train" if header.endswith("split") else ""] * (header.count(",") - 2)
    message = wrong(folder, f"{header}\n{','.join(fine)}\n{row}\n")
    for part in ["manifest.csv", "line 3:", *parts]:
        assert part in message
    assert "line 2:" not in message


@pytest.mark.parametrize("column", ["slide_path", "annotation_path", "tissue_path"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "is a FIFO, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
def test_what_is_no_file_is_refused_with_its_line(folder, column, make, reason):
    make(folder / "odd")
    columns = ["slide_id", "slide_path", "label", *([column] if column != "slide_path" else [])]
    cells = ["x", "odd", "0"] if column == "slide_path" else ["x", "a.tif", "0", "odd"]
    message = wrong(folder, f"{','.join(columns)}\n{','.join(cells)}\n")
    assert re.search(rf"line 2: {column} 'odd': .*{reason}", message)


def test_a_file_that_this_user_may_not_read_is_refused_with_its_line(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    assert "line 2: slide_path 'a.tif': cannot be read: permission denied" in wrong(
        folder, "slide_id,slide_path,label\na,a.tif,0\n"
    )


def test_a_folder_stands_for_the_one_slide_in_it(folder):
    (folder / "series").mkdir()
    for i in range(3):
        save_dicom(folder / "series" / f"{i}.dcm", "1.2.3", seed=i)
    cohort = read(folder, "slide_id,slide_path,label\na,series,0\n")
    assert cohort.slides[0].path == str(folder / "series" / "0.dcm")


HEADER = "slide_id,slide_path,label,patient_id,split\n"


def linked(folder):
    (folder / "link.tif").symlink_to("a.tif")
    os.link(folder / "b.tif", folder / "hard.tif")


def test_one_file_in_two_splits_is_refused_with_both_lines(folder):
    linked(folder)
    rows = "a,a.tif,0,p1,train\nb,b.tif,0,p2,val\nc,c.tif,0,p3,val\na2,link.tif,0,p4,val\nb2,hard.tif,0,p5,test\n"
    message = wrong(folder, HEADER + rows)
    assert "2 lines cannot be used" in message
    assert "line 5: slide 'a2' is in val, and 'a' on line 2, which is the same file, in train" in message
    assert "line 6: slide 'b2' is in test, and 'b' on line 3, which is the same file, in val" in message


def test_one_file_within_a_split_is_warned_of_once(folder, caplog):
    linked(folder)
    read(folder, HEADER + "a,a.tif,0,p1,train\na2,link.tif,1,p2,train\nb,b.tif,0,p3,val\nb2,hard.tif,0,p4,val\n")
    (text,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert text == (
        "2 files stand in the manifest under several slide ids, each of which counts; 1 of them with different labels: "
        "a (line 2) = a2 (line 3), b (line 4) = b2 (line 5)"
    )
    caplog.clear()
    read(folder, HEADER + "a,a.tif,0,p1,train\nb,b.tif,0,p2,val\n")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_drawn_splits_never_tear_a_file_apart(tmp_path):
    rng = np.random.default_rng(9)
    for seed in range(cases(60, full=1000)):
        files = int(rng.integers(3, 9))
        folder = tmp_path / str(seed)
        folder.mkdir()
        for i in range(files):
            (folder / f"{i}.tif").write_bytes(b"")
        rows = [(int(rng.integers(files)), int(rng.integers(6))) for _ in range(20)]
        lines = [f"s{i},{file}.tif,{i % 2},p{patient}" for i, (file, patient) in enumerate(rows)]
        text = "slide_id,slide_path,label,patient_id\n" + "\n".join(lines) + "\n"
        cohort = read(folder, text, needs_splits=True, split_seed=seed, val_fraction=0.4)
        for names in ([file for file, _ in rows], [patient for _, patient in rows]):
            splits = {}
            for name, slide in zip(names, cohort.slides, strict=True):
                splits.setdefault(name, set()).add(slide.split)
            assert all(len(found) == 1 for found in splits.values()), seed


def test_all_wrong_rows_are_reported_at_once(folder):
    text = (
        "slide_id,slide_path,label,patient_id,split\n"
        "a,a.tif,normal,p1,train\n"
        "a,b.tif,tumor,p2,val\n"
        "c,d.tif,0,p1,val\n"
        "d,c.tif,0,p3,\n"
    )
    message = wrong(folder, text)
    assert "3 lines cannot be used" in message
    for part in (
        "line 3: label 'tumor'",
        "line 3: slide_id 'a' is a duplicate of line 2",
        "line 4: slide_path 'd.tif'",
        "line 4: patient 'p1' is in val, but in train on line 2",
        "line 5: split is empty while other rows have one",
    ):
        assert part in message


def test_a_thousand_wrong_rows_are_counted_and_not_all_shown(folder):
    message = wrong(folder, "slide_id,slide_path,label\n" + "".join(f"s{i},none.tif,0\n" for i in range(1000)))
    assert message.splitlines()[0].endswith("manifest.csv: 1000 lines cannot be used")
    assert [line.split(":")[0] for line in message.splitlines()[1:4]] == ["  line 2", "  line 3", "  line 4"]
    assert message.splitlines()[4:] == ["  and 997 more: slide_path: there is no such file"]


def test_rare_faults_are_shown_beside_a_frequent_one(folder):
    rows = [f"s{i},none.tif,0,train" for i in range(1000)] + ["z,a.tif,0,holdout", "s5,b.tif,0,train"]
    message = wrong(folder, "slide_id,slide_path,label,split\n" + "\n".join(rows))
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "line 2", "line 3", "line 4", "line 1002", "line 1003", "and 997 more",
    ]  # fmt: skip


def test_a_wrong_split_is_one_fault(folder):
    message = wrong(folder, "slide_id,slide_path,label,split\na,a.tif,0,holdout\nb,b.tif,0,train\n")
    assert message.splitlines()[1:] == ["  line 2: split 'holdout': expected train, val or test"]


def test_ids_that_are_all_empty_are_not_called_duplicates(folder):
    message = wrong(folder, "slide_id,slide_path,label\n,a.tif,0\n,b.tif,0\n")
    assert [line.split(":")[1] for line in message.splitlines()[1:]] == [" slide_id is empty"] * 2


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no column slide_id"),
        ("slide_id,slide_path,label\n", "no rows"),
        ("slide_id,label\na,0\n", "no column slide_path"),
        ("slideid,slide_path\na,a.tif\n", "'slideid'"),
        ("slide_id,slide_path,label,label\na,a.tif,0,0\n", "label is there twice"),
        ("slide_id,slide_path,label,mpp\na,a.tif,0,0,25\n", "line 2 has 5 cells, the header has 4; a cell that holds"),
        ("slide_id,slide_path,case_id,patient_id\na,a.tif,p,q\n", "patient_id is there twice"),
        ("slide_id,slide_path,label\na,a.tif,0\nb,b.tif\n", "line 3 has 2 cells"),
        ("slide_id,slide_path,label\na,a.tif,0\0\n", "line 2: label"),
        ('slide_id,slide_path,label\na,a.tif,"0\nb,b.tif,0\n' + "c,c.tif,0\n" * 20_000, "quote left open"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(folder, text, part):
    assert part in wrong(folder, text)


def test_an_absent_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest at .*absent\.csv"):
        read_cohort(CohortConfig(), manifest=tmp_path / "absent.csv", needs_labels=False, needs_splits=False)


# --- what is accepted


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_spreadsheets_of_every_country_are_read(folder, encoding, delimiter, newline):
    rows = [
        ["Slide_ID", " slide_path ", "label", "case_id", "remark"],
        ["007", "a.tif", "Carcinoma, in situ", "0042", "first; second"],
        ["1e5", "b.tif", "1", "", 'says "so"'],
    ]
    path = folder / "text.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=newline).writerows(rows)
    cohort = read(folder, path.read_bytes().decode(), encoding=encoding)
    assert [slide.slide_id for slide in cohort.slides] == ["007", "1e5"]
    assert [slide.label for slide in cohort.slides] == [2, 1]
    assert [slide.patient_id for slide in cohort.slides] == ["0042", "1e5"]  # alone in the world without a patient


@pytest.mark.parametrize(("text", "label"), [("normal", 0), ("adenoma", 1), ("0", 0), ("2", 2), ("1.0", 1)])
def test_a_label_is_a_name_or_an_index(folder, text, label):
    assert read(folder, f"slide_id,slide_path,label\na,a.tif,{text}\n").slides[0].label == label


def test_a_class_name_wins_over_an_index(folder):
    # grades named by numbers: "1" is the class of that name, which is at index 0
    cohort = read(folder, "slide_id,slide_path,label\na,a.tif,1\n", classes=["1", "2", "3"])
    assert cohort.slides[0].label == 0


@pytest.mark.parametrize(("text", "flag"), [("", False), ("true", True), ("False", False), ("1", True), ("no", False)])
def test_an_annotation_is_complete_only_where_it_is_said(folder, text, flag):
    header = "slide_id,slide_path,label,annotation_path,annotation_complete"
    slide = read(folder, f"{header}\na,a.tif,1,a.xml,{text}\n").slides[0]
    assert slide.annotation_complete is flag
    assert slide.annotation_path == str(folder / "a.xml")


def test_labels_may_be_missing_where_none_are_needed(folder):
    cohort = read(folder, "slide_id,slide_path,label\na,a.tif,\nb,b.tif,1\n", needs_labels=False)
    assert [slide.label for slide in cohort.slides] == [None, 1]


def test_paths_start_at_the_manifests_folder(folder, monkeypatch):
    (folder / "Präparate 2024").mkdir()
    (folder / "Präparate 2024" / "Größe ½.tif").write_bytes(b"")
    monkeypatch.chdir("/")
    text = f"slide_id,slide_path\na,Präparate 2024/Größe ½.tif\nb,{folder / 'b.tif'}\n"
    cohort = read(folder, text, needs_labels=False)
    assert [slide.path for slide in cohort.slides] == [
        str(folder / "Präparate 2024" / "Größe ½.tif"),
        str(folder / "b.tif"),
    ]


def test_every_column_reaches_its_slide(folder):
    text = (
        "slide_id,slide_path,label,patient_id,split,mpp,annotation_path,annotation_complete,tissue_path,label_source,site\n"
        "a,a.tif,1,p,VAL,0.243,a.xml,yes,b.tif,pseudo,Brno\n"
    )
    slide = read(folder, text).slides[0]
    place = {name: str(folder / name) for name in ("a.tif", "a.xml", "b.tif")}
    assert slide == Slide("a", place["a.tif"], 1, "p", "val", 0.243, place["a.xml"], True, place["b.tif"], True, "Brno")


# --- Parquet


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_parquet_keeps_ids_as_text(folder, kind):
    columns = {"slide_id": pa.array(["007", "008"]).cast(kind), "slide_path": pa.array(["a.tif", "b.tif"]).cast(kind)}
    columns |= {"label": [1.0, None], "patient_id": pa.nulls(2), "annotation_complete": [True, None]}
    cohort = read_parquet(folder, columns)
    assert [slide.slide_id for slide in cohort.slides] == ["007", "008"]
    assert [slide.label for slide in cohort.slides] == [1, None]
    assert [slide.annotation_complete for slide in cohort.slides] == [True, False]
    assert [slide.patient_id for slide in cohort.slides] == ["007", "008"]


@pytest.mark.parametrize("column", ["slide_id", "patient_id", "case_id"])
def test_parquet_ids_that_are_numbers_are_refused(folder, column):
    columns = {"slide_id": ["1", "2"], "slide_path": ["a.tif", "b.tif"]} | {column: [1, 2]}
    with pytest.raises(ManifestError, match="leading zeros"):
        read_parquet(folder, columns)


def test_parquet_rows_are_counted_from_one(folder):
    with pytest.raises(ManifestError, match=r"row 2: slide_path 'x\.tif'"):
        read_parquet(folder, {"slide_id": ["1", "2"], "slide_path": ["a.tif", "x.tif"]})


def test_a_damaged_parquet_is_refused(folder):
    (folder / "m.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ManifestError, match="Parquet"):
        read_cohort(CohortConfig(), manifest=folder / "m.parquet", needs_labels=False, needs_splits=False)


# --- splits


def some_patients(num=60, seed=3):
    """Slides of patients with one to four slides, a third of the patients with a positive one."""
    generator = np.random.default_rng(seed)
    slides = []
    for patient in range(num):
        for i in range(int(generator.integers(1, 5))):
            label = int(patient % 3 == 0 and i == 0)
            slides.append(Slide(f"s{patient}-{i}", "", label, f"p{patient}"))
    return Cohort(slides, ["negative", "positive"])


CONFIG = CohortConfig(val_fraction=0.2, test_fraction=0.1)


def split_of(cohort, config=CONFIG):
    return {slide.slide_id: slide.split for slide in draw_splits(cohort, config).slides}


def test_splits_never_share_a_patient_and_are_stratified():
    drawn = draw_splits(some_patients(), CONFIG)
    assert drawn.is_split_drawn
    patients = {}
    for slide in drawn.slides:
        assert patients.setdefault(slide.patient_id, slide.split) == slide.split
    positive = Counter(split for patient, split in patients.items() if int(patient[1:]) % 3 == 0)
    negative = Counter(split for patient, split in patients.items() if int(patient[1:]) % 3)
    assert positive == {"train": 14, "val": 4, "test": 2}
    assert negative == {"train": 28, "val": 8, "test": 4}


def test_splits_follow_the_seed_and_not_the_order_of_rows():
    cohort = some_patients()
    shuffled = Cohort([cohort.slides[i] for i in np.random.default_rng(0).permutation(len(cohort.slides))], ["n", "p"])
    assert split_of(shuffled) == split_of(cohort)
    assert split_of(cohort, CohortConfig(val_fraction=0.2, test_fraction=0.1, split_seed=1)) != split_of(cohort)


def test_a_small_class_still_reaches_validation():
    slides = [Slide(f"s{i}", "", int(i < 3), f"p{i}") for i in range(40)]
    drawn = draw_splits(Cohort(slides, ["n", "p"]), CohortConfig(val_fraction=0.1))
    assert sum(slide.label for slide in drawn.of_split("val")) == 1
    assert not drawn.of_split("test")


def test_given_splits_are_kept(folder):
    text = "slide_id,slide_path,label,split\na,a.tif,0,test\nb,b.tif,1,train\nc,c.tif,1,train\n"
    cohort = read(folder, text, needs_splits=True)
    assert [slide.split for slide in cohort.slides] == ["test", "train", "train"]
    assert not cohort.is_split_drawn


def test_splits_are_drawn_only_where_they_are_needed(folder):
    text = "slide_id,slide_path,label\na,a.tif,0\nb,b.tif,1\nc,c.tif,1\n"
    assert {slide.split for slide in read(folder, text).slides} == {None}
    assert None not in {slide.split for slide in read(folder, text, needs_splits=True).slides}


@pytest.mark.parametrize(
    ("change", "is_same"),
    [({"path": "/moved"}, True), ({"label": 1}, False), ({"split": "val"}, False), ({"is_pseudo": True}, False)],
)
def test_the_fingerprint_is_of_what_a_run_learns_from(change, is_same):
    base = {"slide_id": "a", "path": "/x", "label": 0, "split": "train"}
    one, other = Cohort([Slide(**base)], ["n", "p"]), Cohort([Slide(**base | change)], ["n", "p"])
    assert (one.fingerprint == other.fingerprint) is is_same


def test_a_column_that_is_one_already_is_not_offered_for_one_that_is_missing(tmp_path):
    manifest = tmp_path / "m.csv"
    read = functools.partial(read_cohort, CohortConfig(), manifest=manifest, needs_labels=True, needs_splits=True)
    manifest.write_text("slide_id,where,label\na,a.svs,positive\n")
    with pytest.raises(
        ManifestError, match=r"there is no column slide_path among slide_id, where, label; if it has an"
    ):
        read()
    manifest.write_text("slide_id,slide_pth,label\na,a.svs,0\n")
    with pytest.raises(ManifestError, match=r"there is no column slide_path .*; is 'slide_pth' meant\? set"):
        read()


@pytest.mark.parametrize("text", ["", ",,\na,a.svs,positive\n"])
def test_a_manifest_whose_first_line_is_empty_is_told_so(tmp_path, text):
    manifest = tmp_path / "m.csv"
    manifest.write_text(text)
    with pytest.raises(ManifestError, match=r"no column slide_id: the first line, .*, is empty$"):
        read_cohort(CohortConfig(), manifest=manifest, needs_labels=True, needs_splits=True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Patient ID", "patient_id"), ("PATIENT", "patient_id"), ("patient-id", "patient_id"), ("case", "patient_id"),
        ("annotation", "annotation_path"), ("annotations", "annotation_path"), ("complete", "annotation_complete"),
        ("labels", "label"), ("class", "label"), ("splits", "split"), ("sites", "site"),
        ("tissue_paths", "tissue_path"), ("Label Source", "label_source"),
    ],
)  # fmt: skip
def test_a_column_under_a_slightly_other_name_is_asked_about(tmp_path, name, meant):
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text(f"slide_id,slide_path,{name}\na,a.png,x\n")
    with pytest.raises(ManifestError, match=rf"column '.*' \(is {meant} meant\?\) would not be used"):
        read_cohort(CohortConfig(), manifest=tmp_path / "m.csv", needs_labels=False, needs_splits=False)


@pytest.mark.parametrize(
    "name", ["stain", "scanner", "age", "notes", "grade", "tissue", "block", "stage", "hospital", "path"]
)
def test_other_columns_are_left_alone(tmp_path, name):
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text(f"slide_id,slide_path,{name}\na,a.png,x\n")
    cohort = read_cohort(CohortConfig(), manifest=tmp_path / "m.csv", needs_labels=False, needs_splits=False)
    assert [slide.slide_id for slide in cohort.slides] == ["a"]


def test_a_near_name_beside_the_column_itself_is_left_alone(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text("slide_id,slide_path,label,labels,patient_id,Patient\na,a.png,0,x,p,q\n")
    cohort = read_cohort(CohortConfig(), manifest=tmp_path / "m.csv", needs_labels=True, needs_splits=False)
    assert cohort.slides[0].patient_id == "p"


@pytest.mark.parametrize(
    ("names", "noun"),
    [(["a.png", "b.JPG"], "image"), (["a.png", "b.svs"], "slide"), (["a.tif"], "slide"), ([], "slide")],
)
def test_a_cohort_of_plain_images_calls_them_images(names, noun):
    assert Cohort([Slide(name, f"/data/{name}") for name in names], ["negative", "positive"]).noun == noun
