"""The disassembler against the assembler, and against GNU objdump where it is installed."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serai.errors import SeraiError
from serai.images import Image, ImageStore, build_debian
from serai.machine.isa.assembler import assemble
from serai.machine.isa.disassembler import CSR_NAMES, disassemble, disassemble_range
from serai.machine.isa.formats import FORMATS
from serai.machine.native.decoder import Encoding, decode_in_python, encodings

OBJDUMP = shutil.which("riscv64-linux-gnu-objdump")
BASE = 0x8020_0000
LINE = re.compile(r"\s*([0-9a-f]+):\s+([0-9a-f]{8}|[0-9a-f]{4}) +\t?\s*(\S.*)")

needs_objdump = pytest.mark.skipif(OBJDUMP is None, reason="needs riscv64-linux-gnu-objdump")


def words_of(encoding: Encoding, count: int, seed: int) -> list[int]:
    """Random words that have this encoding and no other."""
    choose = random.Random(f"{encoding.name}{seed}")
    found: list[int] = []
    while len(found) < count:
        word = choose.getrandbits(8 * encoding.length) & ~encoding.mask | encoding.match
        if "R4" in encoding.format or "rm" in encoding.format:
            word = word & ~0x7000 | choose.choice((0, 1, 2, 3, 4, 7)) << 12
        if encoding.format == "I-csr":
            word = word & 0xFFFFF | choose.choice(list(CSR_NAMES)) << 20
        if encoding.target.name in ("fence", "fence_i"):
            word &= 0x0FF0_707F if encoding.target.name == "fence" else 0x707F
        if decode_in_python(word) == encoding:
            found.append(word)
    return found


def objdump(path: Path, *options: str) -> list[tuple[int, int, str]]:
    """Address, word and text of every line."""
    assert OBJDUMP is not None
    run = subprocess.run(
        [OBJDUMP, "-M", "no-aliases", *options, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = []
    for line in run.stdout.splitlines():
        if match := LINE.match(line):
            text = match[3].split("#")[0].split("<")[0].strip().replace("\t", " ")
            lines.append((int(match[1], 16), int(match[2], 16), text))
    return lines


EXACT = ("fcvt_d_w", "fcvt_d_wu", "fcvt_d_s")


def alike(mine: str, theirs: str) -> bool:
    """Equal but for the 0x that objdump leaves out before an address."""
    return mine == theirs or re.sub(r"0x([0-9a-f]+)$", r"\1", mine) == re.sub(
        r"0x([0-9a-f]+)$", r"\1", theirs
    )


def explained(mine: str, theirs: str, word: int) -> bool:
    """Where the two differ on purpose."""
    if word & 0x707F in (0x000F, 0x100F):
        return True  # reserved fields of FENCE and FENCE.I: to be executed as if zero (Unprivileged ISA 2.7)
    if mine.startswith("csrr"):
        return "0x" in mine or theirs == "unimp"  # a CSR that is not in this machine; csrrw x0, cycle, x0
    if mine.startswith(("fcvt.d.w", "fcvt.d.s")) and theirs.startswith(".4byte"):
        return True  # binutils before 2.41 know these exact conversions with one rounding mode only
    if mine.startswith((".2byte", ".4byte")):
        # What only other machines have, and longer encodings, which are data here.
        return True
    return mine.startswith("c.nop") or theirs.startswith(("c.slli64", "c.srli64", "c.srai64"))


def compare(lines: list[tuple[int, int, str]]) -> int:
    """The number of distinct words in which the two agree; fails on an unexplained difference."""
    agreed = set()
    for address, word, theirs in lines:
        mine = disassemble(word, address)
        if alike(mine, theirs):
            agreed.add(word)
        else:
            assert explained(mine, theirs, word), f"{word:#x} is {mine!r} here and {theirs!r} to objdump"
    return len(agreed)


@pytest.mark.parametrize("encoding", [e for e in encodings() if e.length == 4], ids=lambda e: e.name)
def test_what_is_disassembled_assembles_to_the_same_word(encoding: Encoding) -> None:
    layout = FORMATS[encoding.format]
    for word in words_of(encoding, 20, 1):
        plain = word
        if encoding.target.name in ("fence", "fence_i"):
            continue  # the assembler knows them without operands
        if encoding.target.match & 0x7F == 0x2F:
            plain = word & ~(3 << 25)  # nor the ordering bits
        if encoding.target.name in EXACT and not plain & 0x7000:
            continue  # rne is not written there, and the assembler takes what is not written as dyn
        text = disassemble(plain, BASE)
        again = int.from_bytes(assemble(text, BASE)[:4], "little")
        significant = encoding.mask
        for place in (layout.rd, layout.rs1, layout.rs2, layout.extra):
            significant |= place.insert(31 + place.base)
        significant |= layout.immediate.insert(-1)
        assert again & significant == plain & significant, text


@needs_objdump
def test_every_encoding_agrees_with_objdump(tmp_path: Path) -> None:
    words = [word for encoding in encodings() for word in words_of(encoding, 30, 2)]
    code = b"".join(word.to_bytes(4 if word & 3 == 3 else 2, "little") for word in words)
    (tmp_path / "code").write_bytes(code)
    lines = objdump(tmp_path / "code", "-D", "-b", "binary", "-m", "riscv:rv64", f"--adjust-vma={BASE}")
    assert [word for _, word, _ in lines] == words
    assert compare(lines) > 0.97 * len(set(words))
    assert [word for _, word, _ in disassemble_range(code, BASE)] == words


def debian() -> Image:
    try:
        return ImageStore().get("debian")
    except SeraiError:
        return build_debian()


@needs_objdump
@pytest.mark.guest
def test_the_debian_kernel_agrees_with_objdump(tmp_path: Path) -> None:
    text = debian().kernel.read_bytes()[0x1000 : 0x1000 + (3 << 20)]
    (tmp_path / "text").write_bytes(text)
    lines = objdump(tmp_path / "text", "-D", "-b", "binary", "-m", "riscv:rv64", f"--adjust-vma={BASE}")
    assert len(lines) > 700_000
    assert compare(lines) > 80_000


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x0000_0013, "addi zero,zero,0"),
        (0xFE01_0113, "addi sp,sp,-32"),
        (0x3020_0073, "mret"),
        (0x1005_252F, "lr.w a0,(a0)"),
        (0x0605_2D2F, "amoadd.w.aqrl s10,zero,(a0)"),
        (0x02B5_7553, "fadd.d fa0,fa0,fa1"),
        (0x0FF0_000F, "fence iorw,iorw"),
        (0x3005_1073, "csrrw zero,mstatus,a0"),
        (0x8082, "c.jr ra"),
        (0x0001, "c.nop"),
        (0x0000, ".2byte 0x0"),
        (0xFFFF_FFFF, ".4byte 0xffffffff"),
    ],
)
def test_known_words(word: int, text: str) -> None:
    assert disassemble(word) == text
