"""The base of every section of the configuration, and the marks of its fields."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]

# Marks of fields: NO_IDENTITY does not change a stage's output; PER_JOB may differ from the bundle's at prediction.
NO_IDENTITY: JsonDict = {"identity": False}
PER_JOB: JsonDict = {"identity": False, "per_job": True}


class Section(BaseModel):
    """One section of the configuration: strict, frozen, without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the output of this section's stage."""
        fields = type(self).model_fields
        return {
            name: getattr(self, name) for name, field in fields.items() if has_mark(field, "identity", default=True)
        }


def has_mark(field: FieldInfo, name: str, *, default: bool) -> bool:
    """Return a mark of a field, such as ``identity`` or ``per_job``."""
    extra = field.json_schema_extra
    return bool(extra.get(name, default)) if isinstance(extra, dict) else default
