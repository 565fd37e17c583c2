"""The report of a search: its tables, pictures and verdict, and the configuration that won."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from distmil.config.loading import to_yaml
from distmil.config.root import PRIVATE_KEYS, Config
from distmil.console import Console
from distmil.search.comparison import SIGNIFICANT, Difference, Spread, compare
from distmil.search.plots import comparison_plot, parallel_coordinates, parameter_plots
from distmil.search.space import Domain, Values
from distmil.search.trial import Trial
from distmil.storage.store import Store

SHOWN = 10
CAVEAT = """The seeds tell whether training would come out so again on these slides, not whether other slides would
agree; and the best values were chosen on the slides that mean, sd and difference are of."""

MANY_TESTS = """The ablations are tests of their own, {num_tests} in number, and p is not corrected for that: of so many
losses without effect {by_chance:.2g} would look as if they had one, on average."""


@dataclass(frozen=True)
class Outcome:
    """The result of a search."""

    run: str
    metric: str
    space: Mapping[str, Domain]
    default: Values
    winner: Trial
    records: Sequence[Trial]
    spreads: Mapping[str, Spread]
    """Scores of the settings that were trained again, over seeds; empty if none were."""
    held_out: Mapping[str, Spread]
    """Scores of these settings on slides that no trial saw; empty if there are none."""
    seconds: float
    failed: Mapping[str, str] = field(default_factory=dict)
    """Settings that could not be trained again, and why."""

    @property
    def difference(self) -> Difference | None:
        """The best values less the default ones, None if they were not trained again."""
        return _difference(self.spreads)

    @property
    def unseen(self) -> Difference | None:
        """The best values less the default ones on slides that no trial saw, None if there are none."""
        return _difference(self.held_out)

    @property
    def is_better(self) -> bool:
        """Whether the best values are better by more than seeds explain, and not worse on unseen slides."""
        found, unseen = self.difference, self.unseen
        return found is not None and found.is_better and (unseen is None or unseen.mean >= 0)

    @property
    def verdict(self) -> str:
        """A sentence that says whether the search was worth it."""
        if dict(self.winner.values) == dict(self.default):
            return "the default values are the best that was tried"
        found, unseen = self.difference, self.unseen
        if found is None:
            return "not compared with the default (search.repeats = 0): one trial proves nothing"
        seeds = len(self.spreads["best"].values)
        facts = _facts(found, seeds) + (f"; on unseen slides {_facts(unseen, seeds)}" if unseen else "")
        if found.p is None and found.mean:
            return f"no test possible, for every seed differs from the default by the same: {facts}"
        if self.is_better:
            return f"better than the default: {facts}"
        if found.is_better:
            return f"no better than the default, for it is worse on unseen slides: {facts}"
        return f"{'worse' if found.is_worse else 'no better'} than the default: {facts}"

    def numbers(self) -> dict[str, float | None]:
        """List the result as metrics."""
        found: dict[str, float | None] = {"search_best_score": self.winner.score}
        for place, spreads in (("", self.spreads), ("held_out_", self.held_out)):
            for name in ("best", "default"):
                if name in spreads:
                    found |= {f"{place}{name}_mean": spreads[name].mean, f"{place}{name}_sd": spreads[name].sd}
            if (difference := _difference(spreads)) is not None:
                found |= {f"{place}difference_mean": difference.mean, f"{place}difference_p": difference.p}
        return found


def _difference(spreads: Mapping[str, Spread]) -> Difference | None:
    return compare(spreads["best"], spreads["default"]) if {"best", "default"} <= spreads.keys() else None


def _facts(found: Difference, seeds: int) -> str:
    p = "" if found.p is None else f", p {_p(found.p, equals='= ')}"
    return f"{found.mean:+.4f} ± {found.sd:.4f} over {seeds} seeds{p}, {found.wins} of {seeds} seeds"


def write_report(outcome: Outcome, config: Config, store: Store, console: Console, *, folder: str) -> dict[str, Any]:
    """Write tables, pictures, the best configuration and the report, show the result, and return the job's answer."""
    space, metric = outcome.space, outcome.metric
    counts: dict[str, int] = dict(Counter(str(record.status) for record in outcome.records))
    files: dict[str, bytes] = {
        "trials.csv": _csv(_trial_rows(outcome)),
        "parallel.png": parallel_coordinates(outcome.records, space, metric=metric, winner=outcome.winner.values),
        "parameters.png": parameter_plots(outcome.records, space, metric=metric, default=outcome.default),
        "best.yaml": to_yaml(_best_config(config, outcome.winner.values)).encode(),
    }
    rows = _comparison_rows(outcome)
    if outcome.spreads:
        files["comparison.csv"] = _csv(rows)
        files["comparison.png"] = comparison_plot(outcome.spreads, metric=metric)
    files["report.md"] = _page(outcome, rows, counts).encode()
    for name, data in files.items():
        store.write(f"{folder}/{name}", data)
    answer = _answer(outcome, counts) | {
        "folder": store.path(folder),
        "best_config": store.path(f"{folder}/best.yaml"),
    }
    store.write_json(f"{folder}/result.json", answer)
    if rows:
        console.table(f"{metric} over seeds", list(rows[0]), [list(row.values()) for row in rows])
    console.note(outcome.verdict)
    console.note(f"report: {store.path(f'{folder}/report.md')}")
    given = {key: value for key, value in config.explicit().items() if key in PRIVATE_KEYS and value is not None}
    paths = "".join(f" {key}={value}" for key, value in given.items())
    console.note(f"train with it: python jobs/train.py --config {store.path(f'{folder}/best.yaml')}{paths}")
    return answer


def _best_config(config: Config, values: Values) -> dict[str, Any]:
    """Build sections of the keys that the user set and of the best values, without the search itself and paths."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in {**config.explicit(), **values}.items():
        section, _, name = key.partition(".")
        if section != "search" and key not in {"training.run", *PRIVATE_KEYS}:
            sections.setdefault(section, {})[name] = value
    return sections


def _answer(outcome: Outcome, counts: dict[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": outcome.run,
        "metric": outcome.metric,
        "trials": counts,
        "winner": {"values": dict(outcome.winner.values), "search_score": outcome.winner.score},
        "default": {"values": dict(outcome.default)},
        "verdict": outcome.verdict,
    }
    for name, key in (("best", "winner"), ("default", "default")):
        for place, spreads in (("", outcome.spreads), ("held_out_", outcome.held_out)):
            if name in spreads:
                spread = spreads[name]
                found[key] |= {f"{place}mean": spread.mean, f"{place}sd": spread.sd, "seeds": len(spread.values)}
    if outcome.difference is not None:
        found["difference"] = asdict(outcome.difference) | {"is_better": outcome.is_better}
    if outcome.unseen is not None:
        found["held_out_difference"] = asdict(outcome.unseen)
    return found


def _trial_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Make a row per trial, the best first, those without a score last."""
    order = sorted(outcome.records, key=lambda r: (r.status != "finished", -(r.score if r.score is not None else -1e9)))
    return [
        {
            "trial": record.key, **record.values, "status": record.status, outcome.metric: record.score,
            "epochs": len(record.rows), "seconds": round(record.seconds, 1), "error": record.error or "",
        }
        for record in order
    ]  # fmt: skip


def _comparison_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Make a row per setting: its spread, and how it differs from the best or the default values."""
    rows = []
    for name, spread in outcome.spreads.items():
        other = "default" if name == "best" else "best"
        found = compare(spread, outcome.spreads[other]) if name != "default" else None
        row = {"setting": name, "mean": f"{spread.mean:.4f}", "sd": f"{spread.sd:.4f}"}
        row["difference"] = f"{found.mean:+.4f} from the {other}" if found else ""
        row["p"] = "" if found is None else "-" if found.p is None else _p(found.p)
        row["seeds"] = f"{found.wins} of {len(spread.values)} above" if found else str(len(spread.values))
        if outcome.held_out:
            row["on unseen slides"] = str(outcome.held_out.get(name, ""))
        rows.append(row)
    return rows


def _p(value: float, *, equals: str = "") -> str:
    """Write a p value; a small one is not rounded to zero."""
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _page(outcome: Outcome, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """Write the report in Markdown."""
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"# Search {outcome.run}", "", f"**{outcome.verdict[0].upper()}{outcome.verdict[1:]}.**", ""]
    lines += [
        f"{len(outcome.records)} trials ({statuses}), {outcome.seconds:.0f} s of work, compared by {outcome.metric}.",
        "",
    ]
    values = [
        {"key": key, "default": outcome.default[key], "best": value} for key, value in outcome.winner.values.items()
    ]
    lines += _table(values)
    if rows:
        lines += ["", "Trained again with fresh seeds on the same slides; p is of a paired t-test over seeds.", ""]
        lines += [*_table(rows), "", CAVEAT, ""]
        if num_tests := sum(name not in {"best", "default"} for name in outcome.spreads):
            lines += [MANY_TESTS.format(num_tests=num_tests, by_chance=num_tests * SIGNIFICANT), ""]
        lines += ["![Scores over seeds](comparison.png)"]
    if outcome.failed:
        lines += ["", "Not compared, for a training failed:", ""]
        lines += [f"- {name}: {why}" for name, why in outcome.failed.items()]
    lines += ["", "![Trials, a line each](parallel.png)", "", "![Score over each parameter](parameters.png)", ""]
    lines += [f"The {SHOWN} best trials; all are in `trials.csv`.", "", *_table(_trial_rows(outcome)[:SHOWN])]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(rows[0])
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]
