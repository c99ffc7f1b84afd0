"""JsonRecord: base of what a product's JSON files hold, as typed records with a published schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class JsonRecord(BaseModel):
    """A record of a product: `model_dump(mode="json")` is what stands in the file; fields of other versions are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True, serialize_by_alias=True)

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not given: a key that stands in a record says something."""
        fields = type(self).model_fields.items()
        absent = {field.alias or name for name, field in fields if name not in self.model_fields_set}
        return {key: value for key, value in handler(self).items() if key not in absent}
