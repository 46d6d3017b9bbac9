"""What evidence is made of: numbers that know their range, pictures, and frozen parts that know their keys."""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)

PNG_PREFIX = "data:image/png;base64,"
_PNG_PATTERN = rf"^{PNG_PREFIX}iVBORw0KGgo[A-Za-z0-9+/]+={{0,2}}$"
_COLOURS = {"grey": 0, "RGB": 2}


def _read_infinity(value: Any, info: ValidationInfo) -> Any:
    if info.mode == "json" and value == math.inf:
        raise ValueError('infinity is written as the string "inf"')
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("NaN says nothing: find out where it comes from, or give None for unknown")
    return math.inf if value == "inf" else value


def _finite_json(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("JSON holds finite numbers only")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite_json(item)
    return value


def _checked_png(data: str) -> str:
    try:
        png = base64.b64decode(data.removeprefix(PNG_PREFIX), validate=True)
        depth, colour = struct.unpack(">BB", png[24:26])
    except (binascii.Error, struct.error):
        raise ValueError("is not base64 of a PNG image") from None
    if depth != 8 or colour not in _COLOURS.values():
        raise ValueError(f"a PNG image of 8-bit {' or '.join(_COLOURS)} is needed")
    return data


Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Extended = Annotated[
    float,
    BeforeValidator(_read_infinity),
    Field(ge=0),
    PlainSerializer(lambda value: "inf" if value == math.inf else value, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"const": "inf"}]}),
]
"""A number from 0 to infinity."""
Png = Annotated[str, Field(pattern=_PNG_PATTERN), AfterValidator(_checked_png)]
"""A data URI of an 8-bit grey or RGB PNG image; ``png`` makes one."""
Tree = Annotated[dict[str, JsonValue], AfterValidator(_finite_json)]


class Part(BaseModel):
    """A part of the evidence: frozen, and it knows all of its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def png(pixels: NDArray[Any]) -> str:
    """Picture of an example for ``AttackEvidence``.

    Args:
        pixels: In [0, 1]; ``[height, width]``, ``[height, width, 1]`` (both grey) or ``[height, width, 3]``.

    Raises:
        ValueError: Another shape, or a pixel that is not finite or out of range.
    """
    from PIL import Image

    image = np.asarray(pixels, np.float64)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)) or not image.size:
        raise ValueError(
            f"pixels have shape {np.shape(pixels)}: [height, width], with 1 or 3 channels or none, is needed"
        )
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"pixels must be finite and within [0, 1], got {image.min()} to {image.max()}")
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return PNG_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")
