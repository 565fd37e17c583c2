"""Writes docs/reference/configuration.md from the typed configuration; a test compares the two.

python docs/generate.py
"""

from pathlib import Path

from distmil.config.description import describe_section
from distmil.config.root import Config

PAGE = Path(__file__).parent / "reference" / "configuration.md"
_HEAD = """# Configuration

One YAML file by section, and dotted overrides on the command line: `section.key=value`. An unknown key, a wrong type or
a value out of range ends the job with exit code 2 before any work starts.
"""


def configuration_page() -> str:
    """Write every section and key as Markdown."""
    parts = [_HEAD]
    for name in Config.model_fields:
        title, keys = describe_section(name)
        parts += [f"## {name}\n\n{title}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [f"| `{k.name}` | {_cell(k.type)} | `{_cell(k.default)}` | {_cell(k.meaning)} |" for k in keys]
        parts.append("")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("``", "`").split())


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")
