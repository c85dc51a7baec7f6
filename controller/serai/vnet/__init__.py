"""VNet descriptions: XML, schema, validation. No I/O."""
