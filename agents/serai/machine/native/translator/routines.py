"""Where translated code leaves: common routines behind every stub, and the way in from the interpreter."""

from __future__ import annotations

from typing import Final

from serai.machine.native.interpreter import ARGUMENTS, HandlerCompiler
from serai.machine.native.language import Value
from serai.machine.native.layout import (
    CODE_STRIDE,
    FIELDS,
    PAGE,
    PAGE_HEADER,
    SIDE,
    SLOT,
)
from serai.machine.native.translator.forms import PINS
from serai.machine.native.translator.stencils import ORDER, TYPES, StencilCompiler, blank

__all__ = ["common_routines", "enter_handler"]

EXTRA: Final = ", i64 %extra"


def pin_place(compiler: HandlerCompiler, number: int) -> str:
    """The address of a pinned register in the state block."""
    offset = FIELDS["x"].offset + 8 * PINS[number]
    return compiler.assign("ptr", f"getelementptr i8, ptr %s, i64 {offset}").text


def _spill(routine: StencilCompiler) -> None:
    for number in range(len(PINS)):
        routine.emit(f"store i64 %p{number}, ptr {pin_place(routine, number)}")


def _jump_to(routine: HandlerCompiler, code: str, budget: str = "%budget") -> None:
    """Fill the pins and go on in translated code."""
    values = {"budget": budget}
    for number in range(len(PINS)):
        values[f"p{number}"] = routine.assign("i64", f"load i64, ptr {pin_place(routine, number)}").text
    arguments = ", ".join(f"{TYPES.get(name, 'i64')} {values.get(name, '%' + name)}" for name in ORDER)
    result = routine.fresh("r")
    routine.emit(f"{result} = tail call preserve_nonecc i64 {code}({arguments})")
    routine.emit(f"ret i64 {result}")
    routine.terminated = True


def _interpret(
    routine: StencilCompiler, handler: str, *, ip: str = "null", budget: str = "%budget", delta: str = "0"
) -> None:
    """Go on in the interpreter."""
    result = routine.fresh("r")
    arguments = ARGUMENTS.format(ip=ip, budget=budget, delta=delta, tlb="%tlb")
    routine.emit(f"{result} = tail call preserve_nonecc i64 {handler}({arguments})")
    routine.emit(f"ret i64 {result}")
    routine.terminated = True


def _pointer(routine: StencilCompiler, name: str) -> str:
    return routine.assign("ptr", f"load ptr, ptr {routine.field_pointer(name)}").text


def _exit() -> str:
    """Deoptimise: give the rest of the block's budget back and execute the slot's own handler."""
    routine = blank()
    _spill(routine)

    def number(expression: str) -> str:
        return routine.assign("i64", expression).text

    page = number("lshr i64 %extra, 19")
    offset = number(f"and i64 {number('lshr i64 %extra, 7')}, {PAGE - 2}")
    budget = number(f"add i64 %budget, {number('and i64 %extra, 255')}")
    start = number(f"mul i64 {page}, {CODE_STRIDE}")
    start = number(f"add i64 {start}, {routine.load_field('code_pool').text}")
    slot = number(f"add i64 {start}, {number(f'shl i64 {offset}, 3')}")
    slot = number(f"add i64 {slot}, {PAGE_HEADER}")
    pc = number(f"add i64 {offset}, {routine.load_field('page_pc').text}")
    delta = number(f"sub i64 {pc}, {number(f'lshr i64 {slot}, 3')}")
    ip = routine.assign("ptr", f"inttoptr i64 {slot} to ptr").text
    routine.branch(
        Value("i1", routine.assign("i1", f"icmp eq i64 {budget}, 0").text), "%end", "%more", unlikely=True
    )
    routine.label("%end")
    _interpret(routine, _pointer(routine, "slice_end_handler"), ip=ip, budget="0", delta=delta)
    routine.label("%more")
    distance = number(f"load i64, ptr {ip}")
    head = routine.assign("i1", f"icmp eq i64 {distance}, {routine.load_field('enter_handler').text}")
    base = _pointer(routine, "decode_handler")
    routine.branch(head, "%head", "%inside")
    routine.label("%inside")
    handler = routine.assign("ptr", f"getelementptr i8, ptr {base}, i64 {distance}").text
    _interpret(routine, handler, ip=ip, budget=budget, delta=delta)
    routine.label("%head")
    side = number(f"sub i64 {slot}, {number(f'shl i64 {offset}, 2')}")
    side = number(f"add i64 {side}, {SIDE + 4}")
    place = routine.assign("ptr", f"inttoptr i64 {side} to ptr").text
    narrow = routine.assign("i32", f"load i32, ptr {place}").text
    original = routine.assign("ptr", f"getelementptr i8, ptr {base}, i32 {narrow}").text
    _interpret(routine, original, ip=ip, budget=budget, delta=delta)
    return routine.text("st.common_exit", EXTRA)


def _link() -> str:
    """An edge whose target was not translated yet: do it, patch the edge, go on there."""
    routine = blank()
    _spill(routine)
    link = _pointer(routine, "link_function")
    code = routine.assign("i64", f"call i64 {link}(ptr %s, i64 %extra)").text
    _jump_to(routine, routine.assign("ptr", f"inttoptr i64 {code} to ptr").text)
    return routine.text("st.common_link", EXTRA)


def _miss() -> str:
    """A target that the jump cache does not know; the jump has retired."""
    routine = blank()
    _spill(routine)
    routine.branch(routine.assign("i1", "icmp eq i64 %budget, 0"), "%leave", "%find", unlikely=True)
    routine.label("%find")
    find = _pointer(routine, "miss_function")
    code = routine.assign("i64", f"call i64 {find}(ptr %s, i64 %extra)").text
    routine.branch(routine.assign("i1", f"icmp eq i64 {code}, 0"), "%leave", "%found")
    routine.label("%found")
    _jump_to(routine, routine.assign("ptr", f"inttoptr i64 {code} to ptr").text)
    routine.label("%leave")
    routine.store_field("pc", "%extra")
    _interpret(routine, _pointer(routine, "resume_handler"))
    return routine.text("st.common_miss", EXTRA)


def common_routines() -> list[str]:
    """The IR of the common routines, which the copier puts at the start of the code buffer."""
    return [_exit(), _link(), _miss()]


def enter_handler(stub: HandlerCompiler) -> str:
    """The handler of a slot that begins a translated basic block."""
    pc = stub.pc_of("%ip").text
    offset = stub.assign("i64", f"and i64 {pc}, {PAGE - 1}").text
    stub.store_field("page_pc", stub.assign("i64", f"sub i64 {pc}, {offset}").text)
    back = stub.assign("i64", f"mul i64 {offset}, -4").text
    side = stub.assign("ptr", f"getelementptr i8, ptr %ip, i64 {back}").text
    side = stub.assign("ptr", f"getelementptr i8, ptr {side}, i64 {SIDE}").text
    narrow = stub.assign("i32", f"load i32, ptr {side}").text
    start = stub.load_field("code_execute").text
    code = stub.assign("i64", f"add i64 {stub.assign('i64', f'zext i32 {narrow} to i64').text}, {start}").text
    _jump_to(stub, stub.assign("ptr", f"inttoptr i64 {code} to ptr").text)
    return stub.function_text("h.enter")


assert SLOT == 16, "the arithmetic on slots and offsets above"
