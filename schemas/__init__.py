"""What crosses a boundary: the files that commands exchange, as frozen types and JSON Schemas."""
