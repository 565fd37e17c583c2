"""Whether the tests see a wrong core: each mutation of it must fail a test.

    python -m tests.campaigns.mutations [--only NAME ...] [--work FOLDER]

Run it from the project's folder. Each mutation replaces one text of a copy of the project in a temporary folder, and
the test folders that should notice run on that copy until one test fails. A text that is not found, or found more than
once, ends the campaign before any test runs: mend the table. The exit code is 1 if a mutation survives.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.jobs import ROOT

COPIED = ("distmil", "tests", "jobs", "benchmarks", "deploy", "docs", "pyproject.toml", "README.md", "cluster.yaml")
LIMIT_S = 600
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """A mistake in one place of the core, and the tests that should see it."""

    name: str
    package: str
    """Under distmil/: the text is once in its modules."""
    before: str
    after: str
    tests: str
    """Folders or files under tests/, apart by blanks."""


MUTATIONS = (
    Mutation(
        "a sign in the attention loss", "models",
        "logsigmoid(-attention_N)", "logsigmoid(attention_N)", "models",
    ),
    Mutation(
        "the bag loss of the mixed bag is of the other class", "models",
        "if is_positive else -log_C[0]", "if not is_positive else -log_C[0]", "models",
    ),
    Mutation(
        "K is one too many", "models",
        "- _ROUNDING)", "+ 1 - _ROUNDING)", "models",
    ),
    Mutation(
        "attention is not normalised by a sigmoid", "models",
        "        return logsigmoid(attention_T)\n", "        return attention_T\n", "models",
    ),
    Mutation(
        "a chunk's peak is forgotten when parts merge", "models",
        "mine_B * self.total_B + ", "self.total_B + ", "models training",
    ),
    Mutation(
        "x and y of corners are swapped", "slides",
        "return grid_x.ravel(), grid_y.ravel()", "return grid_y.ravel(), grid_x.ravel()", "slides/test_geometry.py",
    ),
    Mutation(
        "the level is one too coarse", "slides",
        "level = max(finer, key=lambda i: ratios[i])", "level = min(len(ratios) - 1, 1 + max(finer))",
        "slides/test_geometry.py",
    ),
    Mutation(
        "a file is not synced before its rename", "storage",
        "if is_durable:\n                os.fsync(file.fileno())", "if is_durable:\n                pass", "storage",
    ),
    Mutation(
        "a folder is not synced after the rename", "storage",
        "os.fsync(folder)", "pass", "storage",
    ),
    Mutation(
        "training learns from the validation split", "pipeline/training",
        'learning = [bag for bag in bags if bag.split == "train"]\n    validation',
        'learning = [bag for bag in bags if bag.split == "val"]\n    validation', "pipeline/training/test_worker.py",
    ),
    Mutation(
        "validation judges the training split", "pipeline/training",
        'if bag.split == "val"', 'if bag.split == "train"', "pipeline/training/test_worker.py",
    ),
    Mutation(
        "class weights are of another class", "training",
        "self.class_weight_C.to(loss_B)[label_B]", "self.class_weight_C.to(loss_B)[label_B - 1]",
        "training/test_step.py",
    ),
    Mutation(
        "a patch at the label's threshold is not positive", "labels",
        "(share_N >= rule.positive_at - _ROUNDING)", "(share_N > rule.positive_at + _ROUNDING)",
        "labels/test_rules.py",
    ),
    Mutation(
        "a checkpoint is read without its checksum", "training",
        "load_safetensors(store.read_part(folder, model))",
        'load_safetensors(bytes(store.read(f"{folder}/{model.name}")))', "training/test_checkpoints.py",
    ),
    Mutation(
        "a seed is ignored", "bags",
        "np.random.default_rng([self._seed, epoch])", "np.random.default_rng([epoch])", "bags/test_bag.py",
    ),
    Mutation(
        "slides that a model called negative give hard negatives", "bags",
        "return self.label == 0 and not self.is_pseudo", "return self.label == 0", "training/test_hard_negatives.py",
    ),
    Mutation(
        "dropout of both passes is drawn apart", "training",
        "torch.manual_seed(mix_seed(self.steps_done, *values))", "torch.seed()", "training/test_step.py",
    ),
    Mutation(
        "x and y of exported outlines are swapped", "exporting",
        "shapely.get_coordinates(ring)", "shapely.get_coordinates(ring)[:, ::-1]", "exporting/test_geojson.py",
    ),
    Mutation(
        "um of another tool's features are taken for pixels", "features",
        'float(mpp) if header.unit == "um" and mpp else 1.0', "1.0", "features",
    ),
    Mutation(
        "a window of neighbouring patches is one row too high", "models",
        "grid.windows(*window)", "grid.windows(window[0] + 1, window[1])", "models/test_regions.py",
    ),
    Mutation(
        "pre-training goes uphill", "pretraining",
        "loss.backward()", "(-loss).backward()", "pretraining",
    ),
    Mutation(
        "an engine is compared with itself", "encoders/engines",
        "plain = found_NE.astype(np.float64), plain_NE.astype(np.float64)",
        "plain = found_NE.astype(np.float64), found_NE.astype(np.float64)", "encoders/engines",
    ),
)  # fmt: skip


def modules_with(root: Path, mutation: Mutation) -> list[Path]:
    """Find the mutation's text: the module that holds it, as often as it does."""
    modules = sorted((root / "distmil" / mutation.package).glob("*.py"))
    return [module for module in modules for _ in range(module.read_text().count(mutation.before))]


def find_wrong(root: Path, mutations: Sequence[Mutation]) -> list[str]:
    """Name the mutations whose text is not exactly once in its package, or whose tests are gone."""
    wrong = []
    for mutation in mutations:
        count = len(modules_with(root, mutation))
        if count != 1:
            wrong.append(
                f"{mutation.name}: {mutation.before!r} is {count} times in distmil/{mutation.package}, not once"
            )
        wrong += [f"{mutation.name}: no {folder}" for folder in paths_of(mutation) if not (root / folder).exists()]
    return wrong


def paths_of(mutation: Mutation) -> list[str]:
    """Return the tests' paths from the project's folder."""
    return [f"tests/{name}" for name in mutation.tests.split()]


@contextmanager
def applied(copy: Path, mutation: Mutation) -> Iterator[None]:
    """Change the copy, and change it back."""
    (module,) = modules_with(copy, mutation)
    whole = module.read_text()
    module.write_text(whole.replace(mutation.before, mutation.after))
    try:
        yield
    finally:
        module.write_text(whole)


def run_tests(copy: Path, paths: Sequence[str]) -> tuple[int, str]:
    """Run tests of the copy on the copy until one fails; return pytest's exit code and what it printed."""
    usual = {name: value for name, value in os.environ.items() if name != "DISTMIL_TEST_ALL"}
    environment = {**usual, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", *paths
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return done.returncode, done.stdout + done.stderr


def judge(copy: Path, mutation: Mutation) -> tuple[str, bool]:
    """Return the test that sees a mutation, or what happened instead, and whether one does."""
    with applied(copy, mutation):
        code, text = run_tests(copy, paths_of(mutation))
    failed = _FAILED.search(text)
    if code == 0:
        return "SURVIVES", False
    if code != 1 or failed is None:
        return f"pytest ended in {code}: {text[-300:]}", False
    return failed[1].removeprefix("tests/"), True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, print its table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="texts of which a mutation's name must hold one")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where the copy is made")
    options = parser.parse_args(argv)
    chosen = [one for one in MUTATIONS if not options.only or any(text in one.name for text in options.only)]
    if wrong := find_wrong(ROOT, chosen):
        print("\n".join(wrong))
        return 2
    num_surviving = 0
    with tempfile.TemporaryDirectory(prefix="mutations-", dir=options.work) as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(
                source, copy / name
            )
        print("| mutation | package | seen by | s |\n|---|---|---|---|", flush=True)
        for mutation in chosen:
            started_s = time.monotonic()
            found, is_seen = judge(copy, mutation)
            num_surviving += not is_seen
            print(
                f"| {mutation.name} | {mutation.package} | {found} | {time.monotonic() - started_s:.0f} |", flush=True
            )
    print(f"{len(chosen)} mutations, {num_surviving} not seen")
    return 1 if num_surviving else 0


if __name__ == "__main__":
    sys.exit(main())
