"""How a command ends: its answer as a JSON line on stdout, a message on the terminal, and an exit code."""

import json
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from distmil.console import Console
from distmil.errors import DistmilError
from distmil.processes.interruption import Interrupted, Interruption, exit_code
from distmil.processes.tree import end_descendants

DONE, FAILED, BAD_INPUT = 0, 1, 2
PATIENCE_S = 0.5


def run_command(name: str, act: Callable[[Interruption], dict[str, Any] | None], console: Console) -> int:
    """Run a command to its end and return the exit code.

    Exit codes: 0 done, 1 failed, 2 bad input; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Args:
        name: For its messages.
        act: Does the work and returns the answer, None if it has printed its own.
        console: For messages.
    """
    sentence = f"{name}: interrupted; the same command goes on where it stopped"
    interruption = Interruption(sentence)
    interruption.install()
    try:
        answer = act(interruption)
    except DistmilError as error:
        console.note(f"{name}: {error}")
        return error.exit_code
    except KeyboardInterrupt as error:
        number = interruption.number
        if number is None:  # no handler of this command's own has said it
            console.note(sentence)
            number = error.number if isinstance(error, Interrupted) else None
        if number is not None:
            end_descendants(patience_s=PATIENCE_S)  # such as of a Ray that was just starting
        return exit_code(number or signal.SIGINT)
    except Exception:  # noqa: BLE001 (the last line of defence: a defect, shown whole)
        console.note(f"{name}: an unexpected error, which is a defect in distmil:\n{traceback.format_exc()}")
        return FAILED
    finally:
        interruption.remove()
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return DONE
