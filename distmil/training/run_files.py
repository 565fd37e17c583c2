"""Where a training run and a search keep their files in the store. Needs no torch."""


def checkpoint_folder(run: str) -> str:
    """Name the folder of a run's checkpoints."""
    return f"checkpoints/{run}"


def run_file(run: str, what: str) -> str:
    """Name a file beside a run's checkpoints."""
    return f"{checkpoint_folder(run)}/{what}.json"


def search_folder(run: str) -> str:
    """Name the folder of a search."""
    return f"searches/{run}"
