"""The result of one check, and the child process in which checks run, so that none can crash or stall the doctor."""

import importlib
import textwrap
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from distmil.processes.child import Child, ChildCrashed, ChildTimedOut

OK, WARNING, FAILED = "ok", "warning", "FAILED"
_COLOURS = {OK: "32", WARNING: "33", FAILED: "1;31"}
_INDENT = 9
_MAX_REASON = 500


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    ``level`` is ``ok``, ``warning`` (a job may run, but slowly or without a feature) or ``FAILED`` (jobs will fail).
    """

    level: str
    name: str
    text: str
    advice: str = ""

    def lines(self, width: int | None, *, has_colour: bool = False) -> str:
        """Write the finding for a terminal of that width; None: in one line."""
        level = f"\033[{_COLOURS[self.level]}m{self.level}\033[0m" if has_colour else self.level
        start = level + " " * (_INDENT - len(self.level))
        result = f"{self.name}: {self.text}"
        if width is None:
            return start + result + f"; {self.advice}" * bool(self.advice)
        wrap = partial(textwrap.wrap, width=width - _INDENT, break_on_hyphens=False)
        body = [*wrap(result), *wrap(self.advice, initial_indent="-> ", subsequent_indent="   ")]
        return start + f"\n{' ' * _INDENT}".join(body)


def reason(error: BaseException) -> str:
    """Shorten an exception to one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_REASON]


@dataclass(frozen=True)
class Check:
    """A check that runs in a child process."""

    name: str
    function: str
    """``module:function`` from keyword arguments to a list of findings."""
    limit_s: float
    advice: str = ""
    """What to do if the check itself crashes or exceeds its limit."""

    def run(self, **arguments: Any) -> list[Finding]:
        """Run the check. Nothing is raised: a crash is a finding, and so is a check that takes too long."""
        value, failures = self.call(**arguments)
        return failures or [Finding(**values) for values in value]

    def call(self, **arguments: Any) -> tuple[Any, list[Finding]]:
        """Return the function's value as JSON keeps it, or None and why there is none."""
        child = Child("distmil.pipeline.doctor.finding:answer", is_silent=True)
        try:
            value, fault = child.call((self.function, arguments), timeout_s=self.limit_s)
        except ChildCrashed as error:
            value, fault = None, f"the check crashed: {error}"
        except ChildTimedOut:
            value, fault = None, f"no answer within {self.limit_s:g} s"
        except OSError as error:  # no process can be started
            value, fault = None, reason(error)
        finally:
            child.close()
        return value, [Finding(FAILED, self.name, fault, self.advice)] if fault else []


def answer(request: tuple[str, dict[str, Any]]) -> tuple[Any, str]:
    """Run a check in this process, the child; return its value, and what it raised."""
    module, _, function = request[0].partition(":")
    try:
        value = getattr(importlib.import_module(module), function)(**request[1])
    except BaseException as error:  # noqa: BLE001 (a library may even exit when it is imported)
        return None, reason(error)
    return [asdict(finding) for finding in value] if isinstance(value, list) else value, ""
