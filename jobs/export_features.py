"""Write the store's embeddings as CLAM, TRIDENT, STAMP or slide2vec does; what is missing is embedded first.

    python jobs/export_features.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/export_features.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("export_features", __doc__))
