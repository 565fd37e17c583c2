"""Searches K, the loss weights or any other key, and compares the best with the default values over fresh seeds.

    python jobs/tune.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/tune.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("tune", __doc__))
