"""Pre-train an encoder on the patches of the train slides, without labels.

    python jobs/pretrain.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/pretrain.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain", __doc__))
