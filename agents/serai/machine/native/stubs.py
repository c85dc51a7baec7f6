"""The handlers that belong to no instruction: entry, slice end, traps, page crossing, decoding."""

from __future__ import annotations

from serai.machine.isa.table import Effect, Float, Instruction
from serai.machine.native.interpreter import ARGUMENTS, HandlerCompiler
from serai.machine.native.layout import FIELDS
from serai.machine.native.runtime.traps import STATUS_FS
from serai.machine.native.translator.routines import enter_handler

__all__ = ["RUNTIME_NEEDED", "stubs_ir"]

RUNTIME_NEEDED = {
    "proceed",
    "exception",
    "illegal",
    "translate_slot",
    "link_edge",
    "find_code",
    "decode_straddling",
}


def _nothing() -> None: ...


def _stub() -> HandlerCompiler:
    blank = Instruction("stub", 0, 0, "none", Effect.NONE, Float.NO, "", _nothing)
    return HandlerCompiler(_nothing, instruction=blank)


def _leave(stub: HandlerCompiler) -> None:
    """Commit the steps and return the exit reason to Python."""
    limit, budget = stub.load_field("step_limit"), stub.load_field("slice_budget")
    stub.store_field("steps", stub.assign("i64", f"sub i64 {limit.text}, {budget.text}").text)
    stub.emit(f"ret i64 {stub.load_field('exit_reason').text}")
    stub.terminated = True


def _resume() -> str:
    """Go on at s.pc with the given budget: slices, interrupts, fetch."""
    stub = _stub()
    stub.store_field("slice_budget", "%budget")
    left = stub.as_condition(stub.assign("i64", "call i64 @proceed(ptr %s)"))
    stub.branch(left, "%out", "%on", unlikely=True)
    stub.label("%out")
    _leave(stub)
    stub.label("%on")
    ip = stub.assign("ptr", f"load ptr, ptr {stub.field_pointer('ip')}")
    tlb = stub.assign("ptr", f"load ptr, ptr {stub.field_pointer('tlb')}")
    budget, delta = stub.load_field("slice_budget"), stub.load_field("delta")
    stub.dispatch(ip.text, budget.text, delta.text, tlb.text)
    return stub.function_text("resume")


def _slice_end() -> str:
    stub = _stub()
    stub.store_field("pc", stub.pc_of("%ip").text)
    stub.tail("@resume")
    return stub.function_text("slice_end")


def _raise() -> str:
    """Deliver the recorded exception of the instruction at ip."""
    stub = _stub()
    stub.store_field("pc", stub.pc_of("%ip").text)
    stub.store_field("slice_budget", "%budget")
    stuck = stub.as_condition(stub.assign("i64", "call i64 @exception(ptr %s)"))
    stub.branch(stuck, "%out", "%on", unlikely=True)
    stub.label("%out")
    _leave(stub)
    stub.label("%on")
    stub.tail("@resume", budget=stub.load_field("slice_budget").text)
    return stub.function_text("raise")


def _leave_stub() -> str:
    stub = _stub()
    stub.store_field("pc", stub.pc_of("%ip").text)
    stub.store_field("slice_budget", "%budget")
    _leave(stub)
    return stub.function_text("leave")


def _illegal() -> str:
    stub = _stub()
    stub.store_field("pc", stub.pc_of("%ip").text)
    stub.emit("call i64 @illegal(ptr %s)")
    stub.tail("@raise")
    return stub.function_text("h.illegal")


def _enable_float() -> str:
    """mstatus.FS was not what the instruction needs: illegal if off, else dirty and try again."""
    stub = _stub()
    status = stub.load_field("mstatus")
    state = stub.assign("i64", f"and i64 {status.text}, {STATUS_FS}")
    stub.branch(stub.as_condition(state), "%on", "%off")
    stub.label("%off")
    stub.tail("@h.illegal")
    stub.label("%on")
    stub.store_field("mstatus", stub.assign("i64", f"or i64 {status.text}, {STATUS_FS}").text)
    stub.dispatch("%ip")
    return stub.function_text("enable_float")


def _decode() -> str:
    stub = _stub()
    slot = stub.assign("i64", "ptrtoint ptr %ip to i64")
    stub.emit(f"call i64 @translate_slot(ptr %s, i64 {slot.text}, i64 {stub.pc_of('%ip').text})")
    stub.dispatch("%ip")
    return stub.function_text("h.decode")


def _cross() -> str:
    """Behind the last slot of a page: find the next page."""
    stub = _stub()
    from serai.machine.native.language import Value  # noqa: PLC0415

    stub.find_page(stub.pc_of("%ip"), Value("i64", "%budget"))
    return stub.function_text("h.cross")


def _straddle() -> str:
    """The last halfword of a page begins a 32-bit instruction: decode it aside and execute it there."""
    stub = _stub()
    slot = stub.assign("i64", "ptrtoint ptr %ip to i64")
    pc = stub.pc_of("%ip")
    status = stub.assign("i64", f"call i64 @decode_straddling(ptr %s, i64 {slot.text}, i64 {pc.text})")
    stub.branch(stub.as_condition(status), "%fault", "%fine", unlikely=True)
    stub.label("%fault")
    stub.tail("@raise")
    stub.label("%fine")
    aside = stub.field_pointer("straddle")
    number = stub.assign("i64", f"ptrtoint ptr {aside} to i64")
    shifted = stub.assign("i64", f"lshr i64 {number.text}, 3")
    delta = stub.assign("i64", f"sub i64 {pc.text}, {shifted.text}")
    stub.dispatch(aside, delta=delta.text)
    return stub.function_text("h.straddle")


def _entry() -> str:
    """The C entry: run for at most ``budget`` steps. Also tells the runtime the handlers it stores."""
    lines = ["define i64 @serai_run(ptr %s, i64 %budget) #0 {"]
    number = 0

    def place(name: str) -> str:
        nonlocal number
        number += 1
        lines.append(f"  %p{number} = getelementptr i8, ptr %s, i64 {FIELDS[name].offset}")
        return f"%p{number}"

    lines.append(f"  store ptr @h.decode, ptr {place('decode_handler')}")
    for name in ("cross", "straddle", "enter"):
        lines.append(f"  %{name} = sub i64 ptrtoint (ptr @h.{name} to i64), ptrtoint (ptr @h.decode to i64)")
        lines.append(f"  store i64 %{name}, ptr {place(name + '_handler')}")
    for name in ("slice_end", "resume"):
        lines.append(f"  store ptr @{name}, ptr {place(name + '_handler')}")
    for name, function in (("link", "link_edge"), ("miss", "find_code")):
        lines.append(f"  store ptr @{function}, ptr {place(name + '_function')}")
    steps = place("steps")
    lines.append(f"  %steps = load i64, ptr {steps}")
    lines.append("  %limit = add i64 %steps, %budget")
    lines.append("  %stale = sub i64 %steps, 1048576")
    for name, value in (("run_limit", "%limit"), ("step_limit", "%steps"), ("last_clock_steps", "%stale")):
        lines.append(f"  store i64 {value}, ptr {place(name)}")
    arguments = ARGUMENTS.format(ip="null", budget="0", delta="0", tlb="null")
    lines.append(f"  %r = call preserve_nonecc i64 @resume({arguments})")
    lines.append("  ret i64 %r\n}")
    return "\n".join(lines)


def stubs_ir() -> list[str]:
    """Return the IR of all stubs."""
    return [
        _resume(),
        _slice_end(),
        _raise(),
        _leave_stub(),
        _illegal(),
        _enable_float(),
        _decode(),
        _cross(),
        _straddle(),
        enter_handler(_stub()),
        _entry(),
    ]
