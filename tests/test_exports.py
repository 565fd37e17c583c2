"""Every package says what it offers, and importing it loads nothing heavy."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "distmil").rglob("__init__.py")
)  # fmt: skip
INTERNAL = [
    f"distmil.{name}"
    for name in (
        "annotations.formats",
        "api",
        "command",
        "demo",
        "encoders.networks",
        "encoders.weights",
        "pipeline",
        "pipeline.doctor",
        "pipeline.dry_run",
        "pipeline.exchange",
        "pipeline.export",
        "pipeline.pretraining",
        "pipeline.streaming",
        "pipeline.training",
        "pipeline.tuning",
        "pipeline.view",
        "processes",
        "recording",
    )
]
"""They offer nothing: jobs are commands, and ``import distmil`` has all of the API."""
OFFERING = [name for name in PACKAGES if name not in INTERNAL]
HEAVY = {"cv2", "matplotlib", "mlflow", "numpy", "openslide", "PIL", "pyarrow", "pydantic", "ray", "torch"}
IMPORT_MS = 30


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", OFFERING)
def test_a_package_lists_what_it_offers(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__ == sorted(package.__all__, key=order)
    assert set(package.__all__) <= set(dir(package))
    for exported in package.__all__:
        value = getattr(package, exported)
        if callable(value):
            assert value.__doc__, f"{name}.{exported} has no docstring"
            assert not value.__doc__.startswith(f"{exported}("), f"{name}.{exported} has a dataclass's own docstring"
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("name", OFFERING)
def test_a_type_checker_sees_what_is_loaded(name: str) -> None:
    path = ROOT / Path(*name.split(".")) / "__init__.py"
    imported = {
        alias.name: node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module not in {"typing", "distmil.exports"}
        for alias in node.names
    }
    package = importlib.import_module(name)
    assert sorted(imported, key=order) == package.__all__
    for exported, module in imported.items():
        assert getattr(package, exported) is getattr(importlib.import_module(str(module)), exported)


@pytest.mark.parametrize("name", INTERNAL)
def test_an_internal_package_is_its_docstring(name: str) -> None:
    source = (ROOT / Path(*name.split(".")) / "__init__.py").read_text(encoding="utf-8")
    assert [type(node) for node in ast.parse(source).body] == [ast.Expr]


def test_importing_packages_is_light() -> None:
    code = f"import sys, {', '.join(PACKAGES)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_distmil_is_quick() -> None:
    def took_ms() -> float:
        command = [sys.executable, "-X", "importtime", "-c", "import distmil"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stderr.splitlines() if line.endswith("| distmil"))
        return int(line.split("|")[1]) / 1000

    assert min(took_ms() for _ in range(5)) < IMPORT_MS
