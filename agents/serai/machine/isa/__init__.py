"""The instruction set: formats, the table, and the semantics of every instruction."""

# Whichever module is imported first, the table is complete and in one order: what is generated from it (code
# cache keys, published pages, random programs) does not depend on who asked.
from serai.machine.isa import compressed as compressed
