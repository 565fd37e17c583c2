"""How a job's slides ended, for its last words: doubts, dropped slides with their reasons, and defects."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field

from distmil.console import Console
from distmil.defects import DEFECT, REASON
from distmil.errors import DefectError, Reason
from distmil.reasons import Cause, Dropped, as_lines, causes_of, grouped, some
from distmil.storage.records import Record

_MOST_CAUSES = 10


@dataclass
class Outcomes:
    """The outcome of every slide of a job, by its id."""

    noun: str = "slide"
    """What a slide is called in messages: "image" in a cohort of plain images."""
    statuses: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Status and message of every slide."""
    reasons: dict[str, Reason] = field(default_factory=dict)
    """Of slides that are not used, where it is known in a form that can be counted."""
    mpp: dict[str, float] = field(default_factory=dict)
    """um per pixel of the slides that are used."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Split and class, where the job learns from them."""
    doubts: dict[str, list[str]] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    """Slides whose doubts the job has shown beside their scores."""
    defects: dict[str, str] = field(default_factory=dict)

    def add(self, records: Mapping[str, Record]) -> None:
        """Add the records of slides; of a slide that is added twice, the later status counts."""
        for slide_id, record in records.items():
            self.statuses[slide_id] = (record.status, record.error or "")
            if reason := Reason.from_json(record.info.get(REASON)):
                self.reasons[slide_id] = reason
            if record.ok and record.info.get("mpp"):
                self.mpp[slide_id] = record.info["mpp"]
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

    def show(self, console: Console, *, with_dropped: bool = True) -> None:
        """Show the doubts that were not shown yet, then the dropped slides, with equal texts in one line."""
        doubtful = {slide_id: texts for slide_id, texts in self.doubts.items() if texts and slide_id not in self.shown}
        if doubtful:
            found = grouped((slide_id, text) for slide_id, texts in doubtful.items() for text in texts)
            rows = [(str(len(slides)), some(slides), text) for text, slides in found]
            of = len((self.statuses.keys() | doubtful.keys()) - self.shown)
            title = f"doubts about {len(doubtful)} of {'the other ' if self.shown else ''}{of} {self.noun}s"
            console.table(title, (f"{self.noun}s", "which", "doubt"), rows)
        if (bad := self.dropped) and with_dropped:
            rows = [(cause.title, some(cause.slides), cause.text) for cause in self.causes()]
            title = f"{len(bad)} of {len(self.statuses)} {self.noun}s were dropped{self.dropped_by_kind()}"
            console.table(title, (f"{self.noun}s", "which", "why"), rows)

    @property
    def dropped(self) -> dict[str, tuple[str, str]]:
        """List status and message of every slide that is not used."""
        return {i: found for i, found in sorted(self.statuses.items()) if found[0] != "ok"}

    def causes(self) -> list[Cause]:
        """List why slides are not used, equal reasons together, with the setting that would fit."""
        dropped = [Dropped(i, status, text, self.reasons.get(i)) for i, (status, text) in self.dropped.items()]
        return causes_of(dropped, known_mpp=list(self.mpp.values()))

    def dropped_text(self) -> str:
        """Word why slides are not used, a line for each reason, for an error's message."""
        return as_lines(self.causes(), most=_MOST_CAUSES)

    def check_defects(self) -> None:
        """Fail a job that met a defect. Raises: DefectError."""
        if not self.defects:
            return
        lines = [
            f"  {self._count(slides)} ({some(slides)}): {text}"
            for text, slides in grouped(sorted(self.defects.items()))
        ]
        raise DefectError(
            f"unexpected errors, which are defects in distmil, on {self._count(self.defects)}; the others are done, "
            "and the same command tries again:\n" + "\n".join(lines)
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

    def _count(self, slides: Sized) -> str:
        return f"{len(slides)} {self.noun}{'s' * (len(slides) != 1)}"
