"""Take over features that CLAM, TRIDENT, STAMP, slide2vec or LazySlide made, as embeddings of the store.

    python jobs/import_features.py --config FILE.yaml [section.key=value ...]
    ray job submit --working-dir . -- python jobs/import_features.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("import_features", __doc__))
