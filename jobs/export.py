"""Write finished predictions as QuPath, ASAP and tables take them: maps, regions, patches.

    python jobs/export.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/export.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("export", __doc__))
