"""How a job's slides ended, for its last words: doubts, dropped slides with their reasons, and defects."""

import re
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field

from distmil.console import Console
from distmil.defects import DEFECT
from distmil.errors import DefectError
from distmil.storage.records import Record

_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
_NAMED = 5

Group = tuple[str, list[str]]
"""A text, and the slides that it is true of."""


@dataclass
class Outcomes:
    """The outcome of every slide of a job, by its id."""

    statuses: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Status and reason of every slide."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Split and class, where the job learns from them."""
    doubts: dict[str, list[str]] = field(default_factory=dict)
    defects: dict[str, str] = field(default_factory=dict)

    def add(self, records: Mapping[str, Record]) -> None:
        """Add the records of slides; of a slide that is added twice, the later status counts."""
        for slide_id, record in records.items():
            self.statuses[slide_id] = (record.status, record.error or "")
            self.doubt(slide_id, record.info.get("doubts") or ())
            if DEFECT in record.info:
                self.defects[slide_id] = str(record.info[DEFECT])

    def doubt(self, slide_id: str, doubts: Iterable[str]) -> None:
        """Add doubts about a slide that is used all the same."""
        known = self.doubts.setdefault(slide_id, [])
        known += [text for text in dict.fromkeys(map(str, doubts)) if text not in known]

    def note_failure(self, failure: Record, what: str) -> None:
        """Add failed work beside a slide: the slide is used all the same, but a defect is a defect."""
        self.doubt(failure.name, [f"{what}: {failure.error}"])
        if DEFECT in failure.info:
            self.defects[failure.name] = str(failure.info[DEFECT])

    def show(self, console: Console) -> None:
        """Show the doubts, then the dropped slides, with equal texts in one line."""
        doubtful = {slide_id: texts for slide_id, texts in self.doubts.items() if texts}
        if doubtful:
            found = grouped((slide_id, text) for slide_id, texts in doubtful.items() for text in texts)
            rows = [(len(slides), _some(slides), text) for text, slides in found]
            of = len(self.statuses.keys() | doubtful.keys())
            console.table(f"doubts about {len(doubtful)} of {of} slides", ("slides", "which", "doubt"), rows)
        bad = self.dropped
        if bad:
            causes = [
                (len(slides), status, _some(slides), text)
                for status in sorted({status for status, _ in bad.values()})
                for text, slides in grouped((i, reason) for i, (found, reason) in bad.items() if found == status)
            ]
            title = f"{len(bad)} of {len(self.statuses)} slides were dropped{self.dropped_by_kind()}"
            console.table(title, ("slides", "status", "which", "why"), causes)

    @property
    def dropped(self) -> dict[str, tuple[str, str]]:
        """List status and reason of every slide that is not used."""
        return {i: found for i, found in sorted(self.statuses.items()) if found[0] != "ok"}

    def check_defects(self) -> None:
        """Fail a job that met a defect. Raises: DefectError."""
        if not self.defects:
            return
        lines = [
            f"  {_count(slides)} ({_some(slides)}): {text}" for text, slides in grouped(sorted(self.defects.items()))
        ]
        raise DefectError(
            f"unexpected errors, which are defects in distmil, on {_count(self.defects)}; the others are done, and "
            "the same command tries again:\n" + "\n".join(lines)
        )

    def dropped_by_kind(self) -> str:
        """Count the dropped slides by split and class, "" where nothing is learned or nothing was dropped."""
        total: dict[str, int] = {}
        gone: dict[str, int] = {}
        for slide_id, kind in self.kinds.items():
            total[kind] = total.get(kind, 0) + 1
            gone[kind] = gone.get(kind, 0) + (slide_id in self.dropped)
        words = [f"{gone[kind]} of {total[kind]} {kind}" for kind in sorted(total) if gone[kind]]
        return f" ({', '.join(words)})" if words else ""


def grouped(texts: Iterable[tuple[str, str]]) -> list[Group]:
    """Put slides with equal texts together, the largest group first.

    Args:
        texts: Slide ids and texts. Texts that differ in numbers, or in the slide's own id, count as equal.

    Returns:
        The first text of each group and its slides, in the order in which they came.
    """
    found: dict[str, Group] = {}
    for slide_id, text in texts:
        named = re.sub(rf"(?<!\w){re.escape(slide_id)}(?!\w)", "0", text) if slide_id in text else text
        found.setdefault(_NUMBER.sub("#", named), (text, []))[1].append(slide_id)
    return sorted(found.values(), key=lambda group: -len(group[1]))


def _count(slides: Sized) -> str:
    return f"{len(slides)} slide{'s' * (len(slides) != 1)}"


def _some(slides: list[str]) -> str:
    return ", ".join(slides[:_NAMED]) + ", ..." * (len(slides) > _NAMED)
