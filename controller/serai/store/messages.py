"""Contract messages as fields of records, so that what the wire defines is not defined a second time."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Stored:
    """Annotation ``Annotated[Slice, Stored()]``: the message is kept as protobuf JSON.

    Fields that this version does not know are dropped on reading, so that state survives a downgrade.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic reads and writes the field."""

        def read(value: Any) -> Message:
            if isinstance(value, source):
                return value  # type: ignore[no-any-return]
            message: Message = ParseDict(value, source(), ignore_unknown_fields=True)
            return message

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(MessageToDict)
        )
