"""C: Unprivileged ISA chapter 28 (RV64, with D). Each 16-bit encoding expands to an instruction."""

from serai.machine.isa import atomic, base, float_, system  # noqa: F401 - they fill the table first
from serai.machine.isa.table import compressed

RD_FIELD = 0xF80
RS2_FIELD = 0x07C

compressed("c.addi4spn", "000 ........ ... 00", "CIW", "addi", nonzero=0x1FE0, clause="28.5.1")
compressed("c.lw", "010 ... ... .. ... 00", "CL-word", "lw", clause="28.3.2")
compressed("c.ld", "011 ... ... .. ... 00", "CL-double", "ld", clause="28.3.2")
compressed("c.sw", "110 ... ... .. ... 00", "CS-word", "sw", clause="28.3.2")
compressed("c.sd", "111 ... ... .. ... 00", "CS-double", "sd", clause="28.3.2")
compressed("c.addi", "000 . ..... ..... 01", "CI", "addi", clause="28.5.1")
compressed("c.addiw", "001 . ..... ..... 01", "CI", "addiw", nonzero=RD_FIELD, clause="28.5.1")
compressed("c.li", "010 . ..... ..... 01", "CI-li", "addi", clause="28.5.1")
compressed("c.addi16sp", "011 . 00010 ..... 01", "CI-sp", "addi", nonzero=0x107C, clause="28.5.1")
compressed("c.lui", "011 . ..... ..... 01", "CI-lui", "lui", nonzero=0x107C, clause="28.5.1")
compressed("c.srli", "100 . 00 ... ..... 01", "CB-shift", "srli", clause="28.5.1")
compressed("c.srai", "100 . 01 ... ..... 01", "CB-shift", "srai", clause="28.5.1")
compressed("c.andi", "100 . 10 ... ..... 01", "CB-and", "andi", clause="28.5.1")
compressed("c.sub", "100 0 11 ... 00 ... 01", "CA", "sub", clause="28.5.2")
compressed("c.xor", "100 0 11 ... 01 ... 01", "CA", "xor", clause="28.5.2")
compressed("c.or", "100 0 11 ... 10 ... 01", "CA", "or", clause="28.5.2")
compressed("c.and", "100 0 11 ... 11 ... 01", "CA", "and", clause="28.5.2")
compressed("c.subw", "100 1 11 ... 00 ... 01", "CA", "subw", clause="28.5.2")
compressed("c.addw", "100 1 11 ... 01 ... 01", "CA", "addw", clause="28.5.2")
compressed("c.j", "101 ........... 01", "CJ", "jal", clause="28.4")
compressed("c.beqz", "110 ... ... ..... 01", "CB", "beq", clause="28.4")
compressed("c.bnez", "111 ... ... ..... 01", "CB", "bne", clause="28.4")
compressed("c.slli", "000 . ..... ..... 10", "CI-shift", "slli", clause="28.5.1")
compressed("c.lwsp", "010 . ..... ..... 10", "CI-lwsp", "lw", nonzero=RD_FIELD, clause="28.3.1")
compressed("c.ldsp", "011 . ..... ..... 10", "CI-ldsp", "ld", nonzero=RD_FIELD, clause="28.3.1")
compressed("c.jr", "100 0 ..... 00000 10", "CR-jump", "jalr", nonzero=RD_FIELD, clause="28.4")
compressed("c.mv", "100 0 ..... ..... 10", "CR-move", "add", nonzero=RS2_FIELD, clause="28.5.2")
compressed("c.ebreak", "100 1 00000 00000 10", "none", "ebreak", clause="28.5.5")
compressed("c.jalr", "100 1 ..... 00000 10", "CR-call", "jalr", nonzero=RD_FIELD, clause="28.4")
compressed("c.add", "100 1 ..... ..... 10", "CR", "add", nonzero=RS2_FIELD, clause="28.5.2")
compressed("c.swsp", "110 ...... ..... 10", "CSS-word", "sw", clause="28.3.1")
compressed("c.sdsp", "111 ...... ..... 10", "CSS-double", "sd", clause="28.3.1")

compressed("c.fld", "001 ... ... .. ... 00", "CL-double", "fld", clause="28.3.2")
compressed("c.fsd", "101 ... ... .. ... 00", "CS-double", "fsd", clause="28.3.2")
compressed("c.fldsp", "001 . ..... ..... 10", "CI-ldsp", "fld", clause="28.3.1")
compressed("c.fsdsp", "101 ...... ..... 10", "CSS-double", "fsd", clause="28.3.1")
