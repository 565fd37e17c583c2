"""Show finished predictions in a browser: deep zoom, maps, outlines, top patches.

    python jobs/view.py --config FILE.yaml [section.key=value ...]

`--help` lists the keys that it reads.
"""

import sys

from distmil.cli import main

if __name__ == "__main__":
    sys.exit(main("view", __doc__))
