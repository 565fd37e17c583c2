"""Compare evaluated runs on the same slides.

    python jobs/compare.py RUN RUN [RUN ...] [--split val] [--config FILE.yaml] [section.key=value ...]

`--help` says more.
"""

import sys

from distmil.api.comparison import main

if __name__ == "__main__":
    sys.exit(main(__doc__, program="python jobs/compare.py"))
