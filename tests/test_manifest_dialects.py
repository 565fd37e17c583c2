"""A manifest reads to the same slides in every dialect of spreadsheets, R and pandas; other files are explained."""

import csv
import io
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distmil.cohort import Slide, read_cohort
from distmil.cohort.text_file import encoding_of, is_binary
from distmil.config.data import CohortConfig
from distmil.errors import ManifestError
from tests.support.dicom import save_dicom
from tests.support.scale import cases

CONFIG = CohortConfig(classes=["gesund", "Übergang", "krank; sehr"])
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
EMPTY_WORDS = ["", "", "nan", "NA", "N/A", "None", "null", "<NA>"]
SPLIT_WORDS = {
    "train": ["train", "Training"],
    "val": ["val", "valid", "validation", "dev"],
    "test": ["TEST", "testing"],
}
NAMES = ["Größe ½.tif", "a,b;c.tif", "plain.tif", "x'y.tif", "tab\there.tif", 'so "x".tif', "nan", "é.tif"]


def read(path, *, needs_labels=False, config=CONFIG):
    return read_cohort(config, manifest=path, needs_labels=needs_labels, needs_splits=False).slides


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def some_slides(folder, rng, *, letters):
    """Draw slides with ids that a spreadsheet would like to change; no patient and no file is in two splits."""
    ids = ["007", "1E5", "0x1F", "2024-01-02", "TRUE", "s_1.0", "1.", "-5"]
    slides = []
    for i in range(int(rng.integers(1, 8))):
        patient = f"{rng.choice(['00', 'P-', letters])}{i}" if rng.random() < 0.7 else ids[i]
        slides.append(Slide(
            ids[i], str(folder / NAMES[i]), [None, 0, 1, 2][rng.integers(4)], patient, "val",
            [None, 0.25, 0.2425, 12.5][rng.integers(4)], None, bool(rng.integers(2)), None, bool(rng.integers(2)),
            [None, f"Haus {letters}"][rng.integers(2)],
        ))  # fmt: skip
    split = str(rng.choice(["train", "val", "test"]))
    return [replace(slide, split=split) for slide in slides]


def cells_of(slide, rng, *, is_comma, notes):
    """Write a slide as the cells of one row, each in one of its spellings."""

    def empty():
        return str(rng.choice(EMPTY_WORDS))

    mpp = empty() if slide.mpp is None else f"{slide.mpp:.4f}".rstrip("0")
    return {
        "slide_id": slide.slide_id,
        "slide_path": slide.path.rpartition("/")[2],
        "label": empty() if slide.label is None else str(rng.choice([CONFIG.classes[slide.label], slide.label])),
        "patient_id": "" if slide.patient_id == slide.slide_id else slide.patient_id,
        "split": str(rng.choice(SPLIT_WORDS[slide.split])),
        "mpp": mpp.replace(".", ",") if is_comma else mpp,
        "annotation_complete": str(rng.choice(["true", "1"] if slide.annotation_complete else ["False", "no", ""])),
        "label_source": "Pseudo" if slide.is_pseudo else str(rng.choice(["given", empty()])),
        "site": empty() if slide.site is None else slide.site,
        f"remarks{'; 1' * 20}": str(rng.choice(notes)),
    }  # fmt: skip


def write_dialect(path, slides, rng, *, encoding):
    """Write the slides as CSV in a random dialect, and return its delimiter."""
    delimiter = str(rng.choice([",", ";", "\t"]))
    notes = ["", "first; second, third", 'says "so"\nand more', "Größe ½", "a\tb"]
    rows = [cells_of(slide, rng, is_comma=rng.random() < 0.5, notes=notes) for slide in slides]
    columns = [str(name) for name in rng.permutation(list(rows[0]))]
    style = rng.integers(4)
    spelled = [[name, name.upper(), name.title(), f" {name} "][style] for name in columns]
    spelled = [name.replace("patient_id", "case_id") if rng.random() < 0.5 else name for name in spelled]
    trailing, index = int(rng.integers(3)), bool(rng.integers(2))
    table = [[*([""] * index), *spelled, *([""] * trailing)]]
    for i, row in enumerate(rows):
        cells = [f"{row[name]}{' ' * int(rng.integers(2))}" for name in columns]
        table.append([*([str(i)] * index), *cells, *([""] * int(rng.integers(trailing + 2)))])
        if rng.random() < 0.2:
            table.append([""] * len(table[0]))
    text = io.StringIO()
    quoting = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL][rng.integers(2)]
    csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerows(table)
    stated = f"sep={delimiter}\n" if rng.random() < 0.2 else ""
    newline = str(rng.choice(["\n", "\r\n", "\r"]))
    path.write_bytes(f"{stated}{text.getvalue()}".replace("\n", newline).encode(encoding))


@pytest.mark.parametrize("encoding", [*UNICODE, "cp1252"])
def test_every_dialect_reads_to_the_same_slides(folder, encoding):
    path = folder / "manifest.csv"
    for seed in range(cases(30, full=500)):
        rng = np.random.default_rng(seed)
        slides = some_slides(folder, rng, letters="Z" if encoding == "cp1252" else "ÄŘ中")
        write_dialect(path, slides, rng, encoding=encoding)
        assert read(path) == slides, seed


@pytest.mark.parametrize("column", ["slide_id", "patient_id", "site"])
def test_letters_that_may_be_wrong_do_not_become_an_id(folder, column):
    row = {"slide_id": "a", "slide_path": "plain.tif", column: "Dvořák"}
    (folder / "m.csv").write_bytes(f"{','.join(row)}\n{','.join(row.values())}\n".encode("cp1250"))
    with pytest.raises(ManifestError, match=rf"(?s)line 2: {column} 'Dvo.*the file is not UTF-8"):
        read(folder / "m.csv")


def test_a_path_that_is_read_wrongly_is_explained(folder):
    (folder / "Dvořák.tif").touch()
    (folder / "m.csv").write_bytes("slide_id,slide_path\na,Dvořák.tif\n".encode("cp1250"))
    with pytest.raises(
        ManifestError, match=r"there is no such file[^\n]*\n  the file is not UTF-8 and was read as Wind"
    ):
        read(folder / "m.csv")


def test_bytes_of_no_encoding_are_explained(folder):
    (folder / "m.csv").write_bytes(b"slide_id,slide_path\na,\x81\xff.tif\n")
    with pytest.raises(ManifestError, match=r"neither UTF-8 nor UTF-16 nor Windows-1252.*save it as CSV"):
        read(folder / "m.csv")


def test_the_encoding_is_found_by_mark_or_pattern():
    text = "slide_id;slide_path\n" + "a;Größe.tif\n" * 5
    assert [encoding_of(text.encode(name)) for name in UNICODE] == [
        None, "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
    ]  # fmt: skip
    assert not any(is_binary(text.encode(name)) for name in [*UNICODE, "cp1252"])
    assert is_binary(np.random.default_rng(0).bytes(5000))


def test_parquet_gaps_are_empty_cells(folder):
    columns = {"slide_id": ["a", "b"], "slide_path": ["plain.tif", "x'y.tif"], "mpp": [0.5, float("nan")]}
    pq.write_table(pa.table(columns | {"label": ["gesund", "nan"], "site": pa.nulls(2)}), folder / "m.parquet")
    (folder / "m.parquet").rename(folder / "without_ending")
    slides = read(folder / "without_ending")
    assert [(slide.mpp, slide.label, slide.site) for slide in slides] == [(0.5, 0, None), (None, None, None)]


def test_a_class_may_be_called_like_an_empty_cell(folder):
    (folder / "m.csv").write_text("slide_id,slide_path,label\na,plain.tif,none\nb,x'y.tif,NA\n")
    config = CohortConfig(classes=["none", "tumor"])
    assert [slide.label for slide in read(folder / "m.csv", config=config)] == [0, None]


# --- files that are no table


def zipped(*names):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.xlsx", b"anything", "this is an Excel workbook; save its sheet as CSV"),
        ("m.csv", zipped("xl/workbook.xml"), "this is an Excel workbook; save its sheet as CSV"),
        ("m.csv", zipped("mimetype", "content.xml"), "this is a LibreOffice workbook; save"),
        ("m.csv", zipped("notes.txt"), "this is not a text file|has no|no column"),
        ("m.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "this is an Excel workbook; save"),
        ("m.ods", b"anything", "this is a LibreOffice workbook; save"),
        ("m.h5", b"\x89HDF\r\n", "given by features.folder; set cohort.manifest"),
        ("m.yaml", b"cohort: {}", "this is a configuration, which is given by --config"),
        ("m.csv", b"\x1f\x8b\x08\0", "this is compressed with gzip; unpack it"),
        ("m.csv", bytes(range(256)) * 9, "this is not a text file"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=said):
        read(tmp_path / name)


def test_a_manifest_on_an_object_store_is_explained():
    with pytest.raises(ManifestError, match=r"'s3://b/m\.csv': a manifest is read through the file system; mount"):
        read("s3://b/m.csv")


# --- a folder of slides, or one slide


def listed(place):
    return {slide.slide_id: slide.path for slide in read(place)}


def test_a_folder_of_slides_is_listed_by_the_names_of_its_files(tmp_path):
    for name in ("b.svs", "a.tif", "m.mrxs", "m/Slidedat.ini", "m/inner.svs", "thumb.png", "notes.txt", "._b.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("uuid1/c.svs", "uuid1/log.txt", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "series").mkdir()
    for i in range(3):
        save_dicom(tmp_path / "series" / f"{i}.dcm", "1.2.3", seed=i)
    found = {"a": "a.tif", "b": "b.svs", "m": "m.mrxs", "c": "uuid1/c.svs", "series": "series/0.dcm"}
    assert listed(tmp_path) == {slide_id: str(tmp_path / name) for slide_id, name in found.items()}


def test_plain_images_are_slides_where_there_is_no_whole_slide(tmp_path):
    for name in ("1.png", "2.JPG", "labels.json"):
        (tmp_path / name).touch()
    assert listed(tmp_path) == {"1": str(tmp_path / "1.png"), "2": str(tmp_path / "2.JPG")}
    assert listed(tmp_path / "1.png") == {"1": str(tmp_path / "1.png")}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.svs", "a.tif"], r"equal for 'a\.svs and a\.tif'; rename one"),
        (["a b.svs", "c.svs"], r"'a b\.svs' cannot be one: expected 1 to 128 letters.*; rename it"),
        (["case/1.svs", "case/2.svs"], r"'case' in it hold several slides each; give one of these folders"),
        (["notes.txt"], r"a folder without slides \(\.bif, .*; or set cohort\.manifest to a CSV"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_explained(tmp_path, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ManifestError, match=said):
        read(tmp_path)


@pytest.mark.parametrize("place", ["", "plain.tif"])
def test_a_folder_has_no_labels(folder, place):
    with pytest.raises(
        ManifestError, match=r"this is a (folder|slide), which has neither labels nor splits; set cohort"
    ):
        read(folder / place, needs_labels=True)
