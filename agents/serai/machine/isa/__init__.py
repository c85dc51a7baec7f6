"""The instruction set: formats, the table, and the semantics of every instruction."""
