"""The folder of real data beside the project, or where DISTMIL_DATA says; tests that use it skip where it is absent."""

import os
from pathlib import Path

DATA = Path(os.environ.get("DISTMIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
PCAM_COHORT = (DATA / "pcam_cohort").resolve()
