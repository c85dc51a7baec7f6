"""``serai vm trace``: what the guest executes, instruction by instruction."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable
from pathlib import Path

from serai.cli.output import Format, show_data, stderr, stdout
from serai.errors import InvalidInputError, NotFoundError
from serai.v1.guest_pb2 import TraceGuestRequest, TraceGuestResponse

_SYMBOL = re.compile(r"([0-9a-fA-F]+)\s+([A-Za-z])\s+(\S+)")
_PRIVILEGES = {0: "U", 1: "S", 3: "M"}
_M64 = (1 << 64) - 1


def trace_request(
    name: str, *, count: int, steps: int, low: str, high: str, function: str, symbols: Path | None
) -> TraceGuestRequest:
    """What to ask for; addresses as people write them. Raises InvalidInputError, NotFoundError."""
    if function:
        if symbols is None:
            raise InvalidInputError(
                "--function needs a list of symbols",
                hint="give --symbols FILE with lines as in System.map or /proc/kallsyms: ADDRESS TYPE NAME",
            )
        first, last = function_range(symbols, function)
    else:
        first, last = _address(low, 0), _address(high, _M64)
    if first >= last:
        raise InvalidInputError(f"no address lies from {first:#x} to {last:#x}", hint="--to is exclusive")
    return TraceGuestRequest(name=name, count=count, steps=steps, low=first, high=last)


def function_range(symbols: Path, function: str) -> tuple[int, int]:
    """Where a function lies: from its symbol to the next one."""
    try:
        text = symbols.read_text(errors="replace")
    except OSError as error:
        raise NotFoundError(f"cannot read {symbols}: {error.strerror}") from None
    found = sorted((int(match[1], 16), match[3]) for match in _SYMBOL.finditer(text) if match[2] in "tTwW")
    starts = [address for address, name in found if name == function]
    if not starts:
        raise NotFoundError(f"{symbols} has no function {function!r}")
    following = [address for address, _ in found if address > starts[0]]
    return starts[0], following[0] if following else _M64


def _address(text: str, default: int) -> int:
    if not text:
        return default
    try:
        return int(text, 0) & _M64
    except ValueError:
        raise InvalidInputError(f"{text!r} is not an address", hint="write 0xffffffff80000000") from None


async def show_trace(responses: AsyncIterable[TraceGuestResponse], output: Format) -> None:
    """Print records as they come; what ended the trace goes to stderr."""
    rows: list[dict[str, object]] = []
    async for response in responses:
        for record in response.records:
            if output is Format.TABLE:
                mark = "!" if record.trapped else "*" if record.interrupt else " "
                stdout.print(
                    f"{record.hart} {_PRIVILEGES.get(record.privilege, '?')} "
                    f"{record.address:016x} {record.word:08x}{mark} {record.text}",
                    markup=False,
                )
            else:
                rows.append(
                    {
                        "step": record.step,
                        "hart": record.hart,
                        "privilege": _PRIVILEGES.get(record.privilege, "?"),
                        "address": f"{record.address:#x}",
                        "word": f"{record.word:#x}",
                        "text": record.text,
                        "trapped": record.trapped,
                        "interrupt": record.interrupt,
                    }
                )
        if response.finished:
            stderr.print(f"{response.reason} after {response.steps} steps")
    if output is not Format.TABLE:
        show_data(rows, output)
