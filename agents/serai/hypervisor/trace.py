"""Instruction traces as the guest's process records them, made readable."""

from __future__ import annotations

from serai.hypervisor.driver import TracedInstruction
from serai.machine.isa.disassembler import disassemble
from serai.machine.trace import read_records


def decode_trace(records: bytes) -> tuple[TracedInstruction, ...]:
    """Disassemble the records of `serai.machine.trace`."""
    return tuple(
        TracedInstruction(
            step=record.step,
            hart=record.hart,
            privilege=record.privilege,
            address=record.address,
            word=record.word,
            text=disassemble(record.word, record.address),
            trapped=record.trapped,
            interrupt=record.interrupt,
        )
        for record in read_records(records)
    )
