"""Command line in, JSON line and exit code out: 0 done, 1 failed, 2 bad input."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from distmil.config import describe_keys, load_config
from distmil.console import Console, set_up_logging
from distmil.errors import DistmilError
from distmil.stages.runtime import Job, stop_ray
from distmil.storage import Store, resolve_root

logger = logging.getLogger(__name__)

DONE, FAILED, BAD_INPUT = 0, 1, 2


def main(name: str, run: Callable[[Job], dict[str, Any]], argv: Sequence[str] | None = None) -> int:
    """Run a job from its command line and return the exit code.

    Args:
        name: The job's name.
        run: The job.
        argv: Arguments without the program's name; default: the process's.
    """
    options = _parser(name, run).parse_args(argv)
    console = Console()
    set_up_logging(console)
    try:
        config = load_config(options.config, options.overrides)
        store = Store(resolve_root(config.storage.root))
        store.check()
        console.note(f"storage: {store.root}")
        answer = run(Job(config, store, console))
    except DistmilError as error:
        console.note(f"{name}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        console.note(f"{name}: interrupted; the same command goes on where it stopped")
        return FAILED
    except Exception:  # noqa: BLE001 (the last line of defence: a defect, shown whole)
        console.note(f"{name}: an unexpected error, which is a defect in distmil:\n{traceback.format_exc()}")
        return FAILED
    finally:
        stop_ray()
    sys.stdout.write(json.dumps({"job": name, "storage": store.root, **answer}) + "\n")
    sys.stdout.flush()
    return DONE


def _parser(name: str, run: Callable[[Job], dict[str, Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"jobs/{name}.py",
        description=run.__doc__,
        epilog="Keys, in the YAML file by section or as overrides:\n\n" + describe_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="configuration file; without it, every default")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="laid over the file")
    return parser
