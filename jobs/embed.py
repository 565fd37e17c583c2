"""Turn patch shards into embeddings; what is not tiled is tiled first.

    python jobs/embed.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/embed.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("embed", __doc__))
