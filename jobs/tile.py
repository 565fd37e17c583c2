"""Cut the slides of a manifest into patch shards.

    python jobs/tile.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/tile.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("tile", __doc__))
