"""Turn patch shards into embeddings; tiles what is missing first.

    python jobs/embed.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/embed.py --config FILE.yaml [section.key=value ...]

`--help` lists every key.
"""

import sys

from distmil.cli import main
from distmil.stages.jobs import run_embed

if __name__ == "__main__":
    sys.exit(main("embed", run_embed))
