"""Measure a trained bundle on a split of a labelled manifest.

    python jobs/evaluate.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/evaluate.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("evaluate", __doc__))
