"""The program that reseeds a copied guest is what its assembly says."""

from __future__ import annotations

import re

from serai.images import reseed
from serai.machine.isa.assembler import assemble


def test_the_words_are_the_assembly() -> None:
    assert assemble(re.sub(r"#.*", "", reseed.ASSEMBLY)) == reseed.CODE


def test_the_path_is_where_the_program_looks() -> None:
    program = reseed.program()
    entry = int.from_bytes(program[24:32], "little") - 0x10000
    # `auipc` is the second instruction and counts from itself.
    assert program[entry + 4 + 52 :] == b"/dev/urandom\0"
