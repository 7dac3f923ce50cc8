"""Text and numbers that many fields of jobs and profiles are: quantities, labels, names."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WithJsonSchema

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"
# The limits stand on each member: on the union, pydantic would ask an integer for its length.
Quantity = Annotated[
    Annotated[str, Field(max_length=32, pattern=_QUANTITY)] | Annotated[int, Field(ge=0)],
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "minimum": 0,
            "pattern": _QUANTITY,
        }
    ),
]
Seconds = Annotated[int, Field(ge=1, le=31536000)]
QueueName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
GpuType = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63)]
LabelKey = Annotated[str, Field(max_length=317)]
