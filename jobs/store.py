"""Show what is in the store, and remove what may go.

    python jobs/store.py [--config FILE.yaml] [--remove NAME ...] [section.key=value ...]

`--help` says more.
"""

import sys

from distmil.inventory.job import main

if __name__ == "__main__":
    sys.exit(main(__doc__, program="python jobs/store.py"))
