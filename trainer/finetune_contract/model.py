"""The base of every type that crosses a border: frozen, strict about unknown fields, camelCase on the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A value: frozen, compared by content, camelCase in JSON and snake_case in Python.

    Attribute docstrings are the descriptions of the generated CRD; `finetune_operator.api.crd` reads them.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def to_wire(self) -> dict[str, object]:
        """Return the JSON object as it stands in manifests and files: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_json(self) -> str:
        """Return compact JSON with sorted keys, so that equal values are equal bytes."""
        import json

        return json.dumps(self.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
