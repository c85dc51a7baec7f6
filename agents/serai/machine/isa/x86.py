"""Robin and Irvine's list for the Pentium (USENIX Security 2000), tried out with the Unicorn emulator.

Every instruction of the list is executed in protected mode in ring 0 and in ring 3 from the same state but for
the ring. It defeats trap-and-emulate if in ring 3 it does not trap and yet shows privileged state or does
something else than in ring 0. Needs the package ``unicorn`` (extra ``x86``); what is confirmed is confirmed of
that emulator's (QEMU's) processor. ``python -m serai.machine.isa x86`` prints it.
"""

# ruff: noqa: E501 - a table
from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

GDT, IDT, LDT, TSS, CODE, DATA, STACK = 0x1000, 0x2000, 0x3000, 0x3800, 0x10000, 0x20000, 0x31000
SIZE = 0x40000
CODE0, DATA0, CODE3, DATA3, TSS_SELECTOR, LDT_SELECTOR = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30
ENTRY = CODE + 0x200


@dataclass(frozen=True, slots=True)
class X86Case:
    """An instruction of the list; ``code`` leaves what it sees in EAX or at DATA."""

    name: str
    code: str
    why: str


CASES = (
    X86Case("SGDT", "0f0105 00000200", "stores the real GDTR"),
    X86Case("SIDT", "0f010d 00000200", "stores the real IDTR"),
    X86Case("SLDT", "31c0 0f00c0", "stores the real LDTR"),
    X86Case("SMSW", "31c0 0f01e0", "stores the low bits of the real CR0"),
    X86Case("PUSHF", "9c 58", "shows the real IF and IOPL"),
    X86Case("POPF", "6a02 9d 9c 58", "silently leaves IF and IOPL as they are"),
    X86Case("LAR", "bb10000000 31c0 0f02c3 0f94c1", "access rights depend on CPL and DPL"),
    X86Case("LSL", "bb10000000 31c0 0f03c3 0f94c1", "the limit depends on CPL and DPL"),
    X86Case("VERR", "bb10000000 31c0 0f00e3 0f94c0", "readability depends on CPL and DPL"),
    X86Case("VERW", "bb10000000 31c0 0f00eb 0f94c0", "writability depends on CPL and DPL"),
    X86Case("PUSH CS", "0e 58", "shows the real CPL"),
    X86Case("POP SS", "6a23 17 8cd0", "what may be loaded depends on CPL"),
    X86Case("MOV from CS", "8cc8", "shows the real CPL"),
    X86Case("STR", "31c0 0f00c8", "stores the real task register"),
    X86Case("CALL far", "9a 20020100 1b00", "checks CPL against the target's DPL, pushes the real CPL"),
    X86Case("JMP far", "ea 20020100 1b00", "checks CPL against the target's DPL"),
    X86Case("RET far", "6a1b 6820020100 cb", "pops a stack pointer too if the ring changes"),
    X86Case("INT n", "cd30", "checks CPL against the gate's DPL (Unicorn keeps interrupts to itself)"),
)


@dataclass(frozen=True, slots=True)
class X86Result:
    """What was seen: outcome in ring 0 and in ring 3, and whether the instruction defeats trap-and-emulate."""

    name: str
    why: str
    ring0: str
    ring3: str
    confirmed: bool


def _descriptor(base: int, limit: int, access: int, flags: int) -> bytes:
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | (limit >> 16 & 15) << 16 | flags << 20 | base & 0xFF000000
    return struct.pack("<II", low, high)


def _machine(unicorn: Any, names: Any) -> Any:
    machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    machine.mem_map(0, SIZE)
    table = bytes(8)
    table += _descriptor(0, 0xFFFFF, 0x9B, 0xC) + _descriptor(0, 0xFFFFF, 0x93, 0xC)
    table += _descriptor(0, 0xFFFFF, 0xFB, 0xC) + _descriptor(0, 0xFFFFF, 0xF3, 0xC)
    table += _descriptor(TSS, 0x67, 0x89, 0) + _descriptor(LDT, 0xFF, 0x82, 0)
    machine.mem_write(GDT, table)
    machine.reg_write(names.UC_X86_REG_GDTR, (0, GDT, len(table) - 1, 0))
    machine.reg_write(names.UC_X86_REG_IDTR, (0, IDT, 0x7FF, 0))
    machine.mem_write(CODE + 0x220, b"\x89\xe2" + b"\x90" * 16)  # mov edx, esp: where RET far differs
    return machine


def _execute(unicorn: Any, names: Any, case: X86Case, ring: int) -> str:
    """The outcome as text: EAX, ECX and the data, or the trap."""
    machine = _machine(unicorn, names)
    trapped: list[int] = []

    def interrupt(engine: Any, number: int, _: Any) -> None:
        trapped.append(number)
        engine.emu_stop()

    machine.hook_add(unicorn.UC_HOOK_INTR, interrupt)
    code, data = (CODE3, DATA3) if ring == 3 else (CODE0, DATA0)
    # Into the ring by IRET, from ring 0 with all selectors loaded.
    enter = bytes.fromhex("66b82800 0f00d8 66b83000 0f00d0".replace(" ", ""))
    enter += b"\x66\xb8" + struct.pack("<H", data) + bytes.fromhex("8ed8 8ec0".replace(" ", ""))
    if ring == 3:
        enter += b"\x6a" + bytes([data]) + b"\x68" + struct.pack("<I", STACK - 0x800)
    enter += b"\x68" + struct.pack("<I", 0x202) + b"\x6a" + bytes([code])
    enter += b"\x68" + struct.pack("<I", ENTRY) + b"\xcf"
    machine.mem_write(CODE, enter)
    body = bytes.fromhex(case.code.replace(" ", ""))
    machine.mem_write(ENTRY, body + b"\x90" * (0x20 - len(body)))
    for register, value in (("SS", DATA0), ("CS", CODE0)):
        machine.reg_write(getattr(names, f"UC_X86_REG_{register}"), value)
    machine.reg_write(names.UC_X86_REG_ESP, STACK)
    try:
        machine.emu_start(CODE, CODE + 0x22A)
    except unicorn.UcError as error:
        trapped.append(-error.errno)
    if trapped:
        return f"trap {trapped[0]}"
    eax, ecx = machine.reg_read(names.UC_X86_REG_EAX), machine.reg_read(names.UC_X86_REG_ECX)
    return f"eax {eax:#x}, cl {ecx & 0xFF}, memory {bytes(machine.mem_read(DATA, 6)).hex()}"


def try_out() -> list[X86Result]:
    """Every case of the list. Raises ImportError without the package."""
    import unicorn  # noqa: PLC0415 - an optional extra
    import unicorn.x86_const as names  # noqa: PLC0415

    results = []
    for case in CASES:
        ring0, ring3 = (_execute(unicorn, names, case, ring) for ring in (0, 3))
        results.append(X86Result(case.name, case.why, ring0, ring3, not ring3.startswith("trap")))
    return results


def markdown(results: list[X86Result]) -> str:
    """A table for people."""
    confirmed = sum(result.confirmed for result in results)
    lines = [
        "# The Pentium's sensitive, unprivileged instructions",
        "",
        "*Generated by `python -m serai.machine.isa x86`; a test compares. Do not edit.*",
        "",
        "Robin and Irvine (2000) list them as 17; with PUSH, POP and MOV of segment registers apart they are 18",
        f"cases. {confirmed} are confirmed here: in ring 3 they do not trap, and show privileged state or do",
        "something else than in ring 0. So Popek and Goldberg's condition does not hold for that processor.",
        "",
        "| instruction | ring 0 | ring 3 | confirmed | why it is sensitive |",
        "|---|---|---|---|---|",
    ]
    for item in results:
        answer = "yes" if item.confirmed else "no"
        lines.append(f"| {item.name} | {item.ring0} | {item.ring3} | {answer} | {item.why} |")
    return "\n".join(lines) + "\n"
