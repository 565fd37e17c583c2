"""What a package offers others, imported when it is first asked for: importing a package loads nothing heavy."""

import ast
import importlib
import sys
from pathlib import Path
from typing import Any


def lazy_exports(package: str) -> None:
    """Give a package what it imports under ``TYPE_CHECKING``, each name when it is first asked for.

    The package's own source is the only list of homes: type checkers and editors read it too.

    Args:
        package: The package's ``__name__``.

    Source: PEP 562.
    """
    module = sys.modules[package]
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    blocks = [node.body for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for body in blocks for node in body if isinstance(node, ast.ImportFrom)]
    home_of = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({name for name in vars(module) if name.startswith("__")} | home_of.keys())

    vars(module).update(__getattr__=load, __dir__=names)
