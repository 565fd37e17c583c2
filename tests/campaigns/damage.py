"""Bits that flip and files that are exchanged in what is stored: found by who reads it next, or without effect.

    python -m tests.campaigns.damage [--flips 300] [--swaps 5] [--seed 0] [--kinds NAME ...]

Each case damages one file of a small trained store and reads it as the jobs do. The damage is *found* where the reader
raises an error of distmil's or makes the file again, *without effect* where it reads the same values, and *wrong*
otherwise. Exit code 1 if a case is wrong.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from distmil.errors import DistmilError
from distmil.storage.local_files import CACHE_VARIABLE, SETTLED_S
from tests.campaigns.damage_kinds import KINDS, MADE_AGAIN, Kind, Reader
from tests.campaigns.scenes import flip_bit
from tests.campaigns.trained_store import make_trained_store

FOUND, HARMLESS, WRONG = "found", "without effect", "wrong"


def attack(kind: Kind, *, flips: int, swaps: int, rng: np.random.Generator) -> tuple[Counter[str], list[str]]:
    """Flip bits in files of a kind and exchange files, one at a time, each undone.

    Args:
        kind: The files and their readers.
        flips: Number of flipped bits.
        swaps: Number of exchanged files.
        rng: Which files and which bits.

    Returns:
        How many cases had each outcome, and what is needed to see the wrong ones again.
    """
    sound = [read() for _, read in kind.files]
    whole = {path: path.read_bytes() for path, _ in kind.files}
    counts, failures = Counter[str](), []
    others = {path: [o for o in whole if o.suffix == path.suffix and whole[o] != whole[path]] for path in whole}
    swapped = [index for index, (path, _) in enumerate(kind.files) if others[path]]
    for number in range(flips + swaps):
        is_flip = number < flips
        index = int(rng.integers(len(kind.files))) if is_flip else int(rng.choice(swapped))
        path, read = kind.files[index]
        if is_flip:
            what = f"bit {(bit := int(rng.integers(8 * len(whole[path]))))} of {path}"
            flip_bit(path, bit=bit)
        else:
            other = others[path][int(rng.integers(len(others[path])))]
            what = f"{other} in place of {path}"
            path.write_bytes(whole[other])
        outcome, why = _outcome(read, sound[index])
        counts[f"{'flips' if is_flip else 'swaps'} {outcome}"] += 1
        failures += [f"{kind.name}: {what}: {why}"] * (outcome == WRONG)
        path.write_bytes(whole[path])
    return counts, failures


def _outcome(read: Reader, sound: object) -> tuple[str, str]:
    """Return what became of a damaged file, and why."""
    try:
        found = read()
    except DistmilError as error:
        return FOUND, str(error)
    except Exception as error:  # noqa: BLE001 (a defect is what is looked for)
        return WRONG, f"{type(error).__name__}: {error}"
    if isinstance(found, str) and found == MADE_AGAIN:
        return FOUND, found
    return (HARMLESS, "") if found == sound else (WRONG, "other values were read")


def main() -> int:
    """Print a table of kinds and outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=300, help="flipped bits in each kind")
    parser.add_argument("--swaps", type=int, default=5, help="exchanged files in each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    failures: list[str] = []
    print("| kind | flips: found | without effect | wrong | swaps: found | without effect | wrong | s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="distmil-") as folder:
        os.environ[CACHE_VARIABLE] = f"{folder}/cache"
        made = make_trained_store(Path(folder))
        time.sleep(SETTLED_S)  # from here on, what is verified is remembered
        for name in options.kinds:
            kind, started = KINDS[name](made), time.monotonic()
            rng = np.random.default_rng([options.seed, list(KINDS).index(name)])
            counts, wrong = attack(kind, flips=options.flips, swaps=options.swaps, rng=rng)
            cells = [str(counts[f"{what} {how}"]) for what in ("flips", "swaps") for how in (FOUND, HARMLESS, WRONG)]
            print(f"| {kind.name} | {' | '.join(cells)} | {time.monotonic() - started:.0f} |", flush=True)
            failures += wrong
    for text in failures[:50]:
        print(text, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
