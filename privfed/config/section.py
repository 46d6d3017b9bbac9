"""What all tables of the settings have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A table of the settings file: frozen, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _integers_are_floats(cls, values: Any) -> Any:
        # TOML writes 1 where the field is a float; strict mode would refuse the int.
        if isinstance(values, dict):
            return {key: _as_float_if(cls, key, value) for key, value in values.items()}
        return values


def _as_float_if(section: type[BaseModel], key: str, value: Any) -> Any:
    field = section.model_fields.get(key)
    if field is not None and type(value) is int and field.annotation in (float, float | None):
        return float(value)
    return value
