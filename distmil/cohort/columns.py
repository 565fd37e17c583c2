"""The columns of a manifest under distmil's names: by their own name, by ``cohort.columns``, else asked about.

A column whose name is nearly one of distmil's is never left out in silence, because that may tear a patient apart.
"""

import difflib
import json
import logging
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from distmil.cohort.kinds import is_slide
from distmil.cohort.row import COLUMNS
from distmil.config.loading import parse_yaml
from distmil.errors import ConfigError, ManifestError

logger = logging.getLogger(__name__)

ALIASES = {"case_id": "patient_id"}
NEEDED = ("slide_id", "slide_path")
SYNONYMS = {
    "patient_id": ("patient", "patientno", "case", "caseid", "subject", "subjectid", "casesubmitterid"),
    "annotation_path": ("annotation", "annotations", "annotationfile", "outlines", "mask", "maskpath"),
    "annotation_complete": ("complete", "fullyannotated"),
    "label": ("class", "target", "groundtruth"),
    "split": ("fold", "set"),
    "mpp": ("micronsperpixel",),
}
"""What other tools call a column, without blanks and signs."""
_FOR_MISSING = {
    "slide_path": (
        "path", "filepath", "fullpath", "slidefile", "wsipath", "imagepath", "file", "filename", "image",
    ),
    "slide_id": (
        "slide", "slidename", "slideno", "imageid", "imagename", "wsiid", "wsiname", "image", "wsi", "id", "name",
    ),
}  # fmt: skip
"""Names so common that they are only offered for a column that is missing."""
_NEAR, _NEAR_MISSING = 0.8, 0.6
_MOST_NAMED = 30
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def find_columns(
    path: Path,
    header: Sequence[str],
    mapping: Mapping[str, str | None],
    *,
    needs_labels: bool,
    needs_slides: bool = True,
) -> dict[str, int]:
    """Find the place of each of distmil's columns in a header.

    Args:
        path: The manifest, for messages.
        header: Names as the file spells them.
        mapping: ``cohort.columns``.
        needs_labels: The column ``label`` is needed too.
        needs_slides: The column ``slide_path`` is needed.

    Raises:
        ConfigError: If the mapping itself is wrong.
        ManifestError: If a column is missing, doubled, or perhaps there under another name.
    """
    if not any(header):
        raise ManifestError(f"{path}: there is no column slide_id: the first line, which names the columns, is empty")
    _check_mapping(mapping)
    found = _mapped(path, header, mapping)
    free = [i for i in range(len(header)) if header[i] and i not in found.values()]
    for column in COLUMNS:
        places = [i for i in free if column not in mapping and _own_column(header[i]) == column]
        if len(places) > 1:
            raise ManifestError(f"{path}: {_doubled(column, [header[i] for i in places])}")
        if places:
            found[column] = places[0]
    free = [i for i in free if i not in found.values()]
    others = [header[i] for i in free if _own_column(header[i]) not in found]
    needed = [*(NEEDED if needs_slides else NEEDED[:1]), *(["label"] if needs_labels else [])]
    if missing := [column for column in needed if column not in found]:
        if len(missing) > 1 and any(map(_is_path, header)):
            raise ManifestError(
                f"{path}: the first line has a slide's path where the names of the columns should be; write a line "
                f"such as {','.join(needed)} above it, and give every slide an id; a folder of slides needs no "
                "manifest in tile, embed and predict"
            )
        raise ManifestError(f"{path}: {_missing(path, missing, header, others)}")
    _ask(path, others, settled={*found, *mapping})
    if free:
        logger.info("manifest columns that distmil does not use: %s", _listed([header[i] for i in free]))
    return found


def _is_path(text: str) -> bool:
    """Tell whether a name of a column is rather the path of a slide."""
    return is_slide(Path(text))


def setting(key: str, pairs: Mapping[str, str | None]) -> str:
    """Write pairs as an override that can be pasted into a shell."""
    return shlex.quote(f"{key}={{{', '.join(f'{_yaml(k)}: {_yaml(v)}' for k, v in pairs.items())}}}")


def _yaml(text: str | None) -> str:
    if text is None:
        return "null"
    is_plain = text == "..." or (_PLAIN.fullmatch(text) and parse_yaml(text) == text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _check_mapping(mapping: Mapping[str, str | None]) -> None:
    """Check what can be checked without the file. Raises: ConfigError."""
    for column, name in mapping.items():
        if column not in COLUMNS:
            meant = _meant(column, COLUMNS)
            if name in COLUMNS:
                hint = f"write it the other way round: {setting('cohort.columns', {name: column})}"
            else:
                hint = f"did you mean {meant}?" if meant else f"distmil's columns are {', '.join(COLUMNS)}"
            raise ConfigError(f"cohort.columns: distmil has no column {column!r}; {hint}")
        if column in NEEDED and name is None:
            raise ConfigError(f"cohort.columns: {column} = null, but every slide needs it; give the file's name for it")
    names = [name for name in mapping.values() if name is not None]
    for name in names:
        columns = [column for column, other in mapping.items() if other == name]
        if len(columns) > 1:
            raise ConfigError(f"cohort.columns: {' and '.join(columns)} are both {name!r}; a column has one meaning")


def _mapped(path: Path, header: Sequence[str], mapping: Mapping[str, str | None]) -> dict[str, int]:
    """Find the columns that the mapping names, as spelled or else in any case. Raises: ManifestError."""
    found: dict[str, int] = {}
    for column, name in mapping.items():
        if name is None:
            continue
        wanted = name.strip()
        same = [i for i, text in enumerate(header) if text == wanted]
        places = same or [i for i, text in enumerate(header) if text.casefold() == wanted.casefold()]
        if not places:
            near = difflib.get_close_matches(wanted, header, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ManifestError(
                f"{path}: cohort.columns says that {column} is {name!r}, which is not among the file's columns "
                f"{_listed(header)}{hint}"
            )
        if len(places) > 1:
            raise ManifestError(f"{path}: {_doubled(column, [header[i] for i in places])}")
        found[column] = places[0]
    return found


def _own_column(name: str) -> str:
    return ALIASES.get(name.lower(), name.lower())


def _doubled(column: str, names: Sequence[str]) -> str:
    if len(set(names)) == 1:
        return f"column {names[0]} is there twice; rename or remove one"
    return (
        f"column {column} is there twice, as {' and '.join(map(repr, names))}; choose one: "
        f"{setting('cohort.columns', {column: names[0]})}"
    )


def _missing(path: Path, missing: Sequence[str], header: Sequence[str], others: Sequence[str]) -> str:
    """Word that needed columns are not there, and which may be meant."""
    offers = _offers(missing, others)
    what = f"is no column {missing[0]}" if len(missing) == 1 else f"are no columns {', '.join(missing)}"
    text = f"there {what} among {_listed(header)}"
    patient = next((name for name in header if _meant(name, ["patient_id"])), None)
    if patient and "slide_path" in missing and "slide_path" not in offers:
        return f"{text}; {_join(path, patient)}"
    if "label" in missing:
        text += "; this job needs the class of every slide"
    asked = " and ".join(repr(offers[column]) for column in missing if column in offers)
    elsewhere = "if it has another name, set" if len(missing) == 1 else "if they have other names, set"
    question = f"{'is' if len(offers) == 1 else 'are'} {asked} meant? set" if offers else elsewhere
    pairs: dict[str, str | None] = {column: offers.get(column, "...") for column in missing}
    return f"{text}; {question} {setting('cohort.columns', pairs)}"


def _join(path: Path, patient: str) -> str:
    """Word how a table of patients and one of slides become a manifest."""
    clinical, slides = (f"p.read_csv({name!r}, dtype=str)" for name in (path.name, "SLIDES.csv"))
    return (
        "a table of patients has to be joined with a table of slides, in Python:\n  import pandas as p; "
        f"{slides}.merge({clinical}, on={patient!r}).to_csv('manifest.csv', index=False)"
    )


def _offers(missing: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Find the name that most likely stands for each missing column: by what is common, then by what is similar."""
    left = {_squashed(name): name for name in reversed(names)}
    order = sorted(missing, reverse=True)  # slide_path before slide_id: a file's name is rather a path than an id
    offers: dict[str, str] = {}
    for column in order:
        common = (_squashed(column), *SYNONYMS.get(column, ()), *_FOR_MISSING.get(column, ()))
        if known := next((name for name in common if name in left), None):
            offers[column] = left.pop(known)
    for column in order:
        near = difflib.get_close_matches(_squashed(column), left, n=1, cutoff=_NEAR_MISSING)
        if near and column not in offers:
            offers[column] = left.pop(near[0])
    return offers


def _ask(path: Path, names: Sequence[str], *, settled: Collection[str]) -> None:
    """Refuse names that nearly are a column which the file lacks, with both ways out. Raises: ManifestError."""
    open_columns = [column for column in COLUMNS if column not in settled]
    meant = {name: column for name in names if (column := _meant(name, open_columns))}
    if not meant:
        return
    columns: dict[str, str | None] = {}
    for name, column in meant.items():
        columns.setdefault(column, name)
    questions = ", ".join(f"{name!r} (is {column} meant?)" for name, column in meant.items())
    raise ManifestError(
        f"{path}: column {questions} would not be used\n"
        f"  if it is meant:  {setting('cohort.columns', columns)}\n"
        f"  if not:          {setting('cohort.columns', dict.fromkeys(columns))}"
    )


def _meant(name: str, columns: Collection[str]) -> str | None:
    """Find the column that another name may stand for."""
    plain = _squashed(name)
    for column in columns:
        if {plain, plain.removesuffix("s")} & {_squashed(column), *SYNONYMS.get(column, ())}:
            return column
    squashed = {_squashed(column): column for column in columns}
    near = difflib.get_close_matches(plain, squashed, n=1, cutoff=_NEAR)
    return squashed[near[0]] if near else None


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _listed(names: Sequence[str]) -> str:
    shown = [name for name in names if name]
    more = f", ... ({len(shown) - _MOST_NAMED} more)" if len(shown) > _MOST_NAMED else ""
    return ", ".join(shown[:_MOST_NAMED]) + more
