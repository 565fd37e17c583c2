"""Tiling under attack: kills, full disks, failing calls, flipped bits, damaged slides, several drivers at once.

    python -m tests.campaigns.durability [--kills 1000] [--only NAME ...] [--seed 0] [--out results.json]

Run it from the project's folder. Every campaign compares with an unbroken run, byte for byte, and ends in one line; the
exit code is 1 if any failed. What a failure needs to be looked at stays in the work folder. Real disks that are full
need root and mount, else they are simulated; jobs start a local Ray.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

import distmil
from tests.campaigns.accounts import Account
from tests.campaigns.faults import faults, full_disks
from tests.campaigns.flips import flips, repairs
from tests.campaigns.job_runs import JobCohort, JobRuns, job_full_disks, job_kills, job_repair, job_runs, make_cohort
from tests.campaigns.kills import kills, twins
from tests.campaigns.mutants import job_of_mutants, mutants, read_sources
from tests.campaigns.scenes import Scene, make_scenes
from tests.support.data import DATA


@dataclass
class Bench:
    """What campaigns work with; slides and jobs are made when the first one needs them."""

    options: argparse.Namespace
    folder: Path
    exits: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def scenes(self) -> list[Scene]:
        """Return the small slides."""
        return make_scenes(self.folder / "scenes")

    @cached_property
    def runs(self) -> JobRuns:
        """Return what runs jobs."""
        return self.exits.enter_context(job_runs(self.folder / "runs"))

    @cached_property
    def cohort(self) -> JobCohort:
        """Return the slides of the jobs, tiled once without a break."""
        return make_cohort(self.folder / "cohort", self.runs)

    def place(self, name: str) -> Path:
        """Return a campaign's own folder."""
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def rng(self, name: str) -> np.random.Generator:
        """Return a campaign's own generator."""
        return np.random.default_rng([self.options.seed, *name.encode()])


def _kills(bench: Bench, account: Account) -> None:
    kills(account, bench.scenes, bench.place("kills"), num=bench.options.kills, rng=bench.rng("kills"))


def _job_kills(bench: Bench, account: Account) -> None:
    place, rng = bench.place("job-kills"), bench.rng("job-kills")
    job_kills(account, bench.runs, bench.cohort, place, num=bench.options.job_kills, rng=rng)


def _full_disks(bench: Bench, account: Account) -> None:
    full_disks(account, bench.scenes, bench.place("full-disks"), num=bench.options.full_disks)
    if not bench.options.no_jobs:
        job_full_disks(account, bench.runs, bench.cohort, bench.place("full-disks"))


def _faults(bench: Bench, account: Account) -> None:
    wanted = bench.options.faults
    faults(account, bench.scenes[0], bench.place("faults"), num=None if wanted == "all" else int(wanted))


def _flips(bench: Bench, account: Account) -> None:
    place, rng = bench.place("flips"), bench.rng("flips")
    flips(account, bench.scenes, place, num=bench.options.flips, rng=rng)
    repairs(account, bench.scenes, place)
    if not bench.options.no_jobs:
        job_repair(account, bench.runs, bench.cohort, place / "job", rng=rng)


def _mutants(bench: Bench, account: Account) -> None:
    place, seed = bench.place("mutants"), bench.options.seed
    sources = read_sources(bench.options.data, bench.place("mutants/whole"))
    mutants(account, sources, place, num=bench.options.mutants, seed=seed)
    if not bench.options.no_jobs:
        job_of_mutants(account, bench.runs, sources, bench.place("mutants/job"), seed=seed)


def _twins(bench: Bench, account: Account) -> None:
    twins(account, bench.scenes, bench.place("twins"), num=bench.options.twins, rng=bench.rng("twins"))


CAMPAIGNS: dict[str, Callable[[Bench, Account], None]] = {
    "kills": _kills,
    "faults": _faults,
    "full-disks": _full_disks,
    "flips": _flips,
    "twins": _twins,
    "mutants": _mutants,
    "job-kills": _job_kills,
}


def run(bench: Bench, name: str) -> Account:
    """Run one campaign; whatever stops it is a failure of it."""
    account = Account(name, tolerates_left_over=bench.options.tolerate_left_over)
    started = time.monotonic()
    try:
        CAMPAIGNS[name](bench, account)
    except Exception:  # noqa: BLE001 (the other campaigns go on)
        account.fail(f"it was stopped:\n{traceback.format_exc()}")
    account.seconds = time.monotonic() - started
    print(account.line(), flush=True)
    return account


def report(accounts: Sequence[Account], options: argparse.Namespace) -> None:
    """Print the table, and write the JSON."""
    print("\n| campaign | result | minutes | counts |\n|---|---|---|---|")
    for account in accounts:
        word = "passed" if account.has_passed else "FAILED"
        print(f"| {account.name} | {word} | {account.seconds / 60:.1f} | {account.summary()} |")
    values = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "distmil": distmil.__version__,
        "options": {name: str(value) for name, value in vars(options).items()},
        "campaigns": {account.name: account.to_json() for account in accounts},
    }
    if options.out:
        options.out.write_text(json.dumps(values, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaigns and return the exit code."""
    options = _parser().parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="distmil-durability-", dir=options.work))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; work in {folder}")
    with ExitStack() as exits:
        bench = Bench(options, folder, exits)
        names = [name for name in CAMPAIGNS if name in (options.only or CAMPAIGNS)]
        accounts = [run(bench, name) for name in names if name != "job-kills" or not options.no_jobs]
    report(accounts, options)
    if not all(account.has_passed for account in accounts):
        print(f"\nwhat failed is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=1000, metavar="N", help="kills of the plain loop")
    add("--job-kills", type=int, default=30, metavar="N", help="kills of the job's driver")
    add("--full-disks", type=int, default=20, metavar="N", help="sizes of disks, each made from empty to nearly enough")
    add("--faults", default="all", metavar="N", help="calls that are made to fail, spread over all; or all")
    add("--flips", type=int, default=2000, metavar="N", help="flipped bits")
    add("--mutants", type=int, default=500, metavar="N", help="damaged slides")
    add("--twins", type=int, default=100, metavar="N", help="rounds of two or three drivers at once")
    add("--only", action="append", choices=list(CAMPAIGNS), help="run this campaign only; may be given several times")
    add("--no-jobs", action="store_true", help="leave out everything that starts Ray")
    add(
        "--tolerate-left-over", action="store_true", help="count work files that stay for good, but do not fail on them"
    )
    add("--seed", type=int, default=0)
    add("--data", type=Path, default=DATA, help="folder of the real slides; without it only made ones are damaged")
    add("--work", type=Path, default=Path("/tmp"), help="where the work folder is made, on a real disk")
    add("--out", type=Path, default=None, help="JSON file for the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
