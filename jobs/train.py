"""The main job: from a manifest to a trained bundle, its metrics and its maps.

    python jobs/train.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/train.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("train", __doc__))
