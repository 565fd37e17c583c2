"""How right a dry run is: the seconds and patches that `--dry-run` says beforehand, beside those of the job itself.

    python -m benchmarks.dry_run [tile train predict] [--data FOLDER] [--epochs 40]

Each job is dry-run and then run, in a store that the jobs before it have filled. A stage lasts from the line
that begins it to the line that begins the next one. A dry run says the seconds of an idle machine: the load is printed
beside each job, and where it is above the number of cores the job takes longer than it says.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.data import PCAM_COHORT

RUN = "first"
BEGINS = {
    r"tiling ": "tile",
    r"tile: (\d+)/\1 ": "report",
    r"embedding ": "embed",
    r"labelling ": "label",
    r"training ": "train",
    r"predicting ": "predict",
    r"metrics on ": "record",
}
"""How the line starts that begins a stage; before the first one is the start, and Ray starts in the first one."""


@dataclass
class Done:
    """A command that has ended."""

    answer: dict[str, Any]
    """Its JSON line."""
    wall_s: float
    cpu_s: float
    """Of the command and the processes that it waited for, which are not all of Ray's."""
    stage_s: dict[str, float] = field(default_factory=dict)


def run_command(arguments: Sequence[str]) -> Done:
    """Run a job, time its stages by its messages, and read its answer. Raises: RuntimeError if it fails."""
    before, started = sum(os.times()[2:4]), time.monotonic()
    marks = [("start", started)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        command = [sys.executable, "-m", "distmil", *arguments]
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                marks += [(stage, time.monotonic()) for begin, stage in BEGINS.items() if re.match(begin, line)]
        if process.returncode:
            raise RuntimeError("".join(lines))
        out.seek(0)
        answer = json.loads(out.read().splitlines()[-1])
    ended = time.monotonic()
    stage_s: dict[str, float] = {}
    for (stage, since), (_, until) in zip(marks, [*marks[1:], ("end", ended)], strict=True):
        stage_s[stage] = stage_s.get(stage, 0.0) + until - since
    return Done(answer, ended - started, sum(os.times()[2:4]) - before, stage_s)


def patches_of(amount: str) -> int:
    """Read the number of patches out of a stage's amount, such as "3,000 patches"."""
    return int(amount.split(maxsplit=1)[0].replace(",", ""))


def told_patches(told: Done) -> int | None:
    """Read how many patches a dry run says that a job cuts; None where all are cut."""
    found = [
        patches_of(stage["amount"]) for stage in told.answer["stages"] if stage["name"] == "tile" and stage["todo"]
    ]
    return found[0] if found else None


def show(job: str, told: Done, real: Done, load: float) -> None:
    """Print a job's rows: its stages, and the whole."""
    for stage in told.answer["stages"]:
        took_s = real.stage_s.get(stage["name"])
        took = "" if took_s is None else f"{took_s:.1f}"
        print(f"| {job} | {stage['name']} | {stage['seconds']:.1f} | {took} | | |")
    told_s = told.answer["seconds"]
    share = f"{told_s / real.wall_s - 1:+.0%}"
    print(f"| {job} | **all** | {told_s:.1f} | {real.wall_s:.1f} | {share} | {load:.1f} |", flush=True)
    patches, made = told_patches(told), real.answer.get("num_patches")
    more = f"; patches: {patches:,} told, {made:,} made" if patches is not None and made is not None else ""
    print(f"  dry run: {told.wall_s:.1f} s (cpu {told.cpu_s:.1f} s){more}", file=sys.stderr)


def arguments_of(job: str, data: Path, root: Path, epochs: int) -> list[str]:
    """Return a job's command line."""
    common = [job, f"cohort.manifest={data / 'manifest.csv'}", f"storage.root={root}"]
    tiling = ["tiling.mpp=0.972", "tiling.patch_px=96"]
    of_job = {
        "tile": tiling,
        "train": [*tiling, f"training.run={RUN}", f"training.epochs={epochs}"],
        "predict": [f"prediction.model={RUN}"],
    }
    return [*common, *of_job[job]]


def main() -> None:
    """Print what was told beside what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=["tile", "train", "predict"], help="in this order")
    parser.add_argument("--data", type=Path, default=PCAM_COHORT)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; load: of the minute before the job\n")
    print("| job | stage | told, s | took, s | told against took | load |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="distmil-") as root:
        for job in options.jobs:
            arguments = arguments_of(job, options.data, Path(root), options.epochs)
            told = run_command([*arguments, "--dry-run"])
            load = os.getloadavg()[0]
            show(job, told, run_command(arguments), load)


if __name__ == "__main__":
    main()
