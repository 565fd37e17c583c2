"""Judge slides with a trained bundle: scores, tables and maps.

    python jobs/predict.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/predict.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("predict", __doc__))
