"""The stencils as LLVM IR: the semantics of every instruction, compiled once per form.

A slow path is a tail call of the hole COLD, which deoptimises: the interpreter executes the instruction from
its beginning. That is why a stencil has no side effect before the last point where it can do so.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from serai.machine.isa.table import INSTRUCTIONS, Effect, Float, Instruction
from serai.machine.native.interpreter import HandlerCompiler
from serai.machine.native.language import NATIVE_FUNCTIONS, Value, function_ast
from serai.machine.native.layout import FIELDS, JUMP_MASK, PAGE
from serai.machine.native.runtime.softfloat import FLAG_NX, RNE, RTZ
from serai.machine.native.runtime.traps import STATUS_FS
from serai.machine.native.translator.forms import (
    FLOAT_RD,
    FLOAT_RS1,
    FLOAT_RS2,
    FLOAT_RS3,
    MEMORY,
    PINS,
    ROUNDING,
    ROUNDS,
    TWO_ADDRESS,
    USES_RD,
    USES_RS1,
    USES_RS2,
    ZERO,
    Hole,
    Kind,
    OperationForms,
)

__all__ = ["PARAMETERS", "Form", "forms_of", "operation_forms", "stencil_module"]

# The order gives the state block and the first pins the registers with short encodings.
ORDER: Final = ("budget", "tlb", "p6", "p7", "s", "p0", "p1", "p2", "p3", "p4", "p5")
TYPES: Final = {"tlb": "ptr", "s": "ptr"}
PARAMETERS: Final = ", ".join(f"{TYPES.get(name, 'i64')} %{name}" for name in ORDER)
DECLARED: Final = ", ".join(TYPES.get(name, "i64") for name in ORDER)

MOVES: Final = {"add", "sub"}  # three different registers at once, so that a move is one stencil
COMMON_REGISTER: Final = (
    *("sub", "and", "or", "xor", "sll", "srl", "sra", "slt", "sltu", "addw", "subw", "sllw", "srlw", "sraw"),
    *("mul", "mulw", "mulhu"),
)
ZERO_FIRST: Final = {"addi", "sub", "subw", "sltu", "add"}  # li, neg, negw, snez, mv
COLD_LABELS: Final = ("miss", "over", "bad", "taken", "dead")
# Functions that are not worth a place in a stencil: their callers have a fast path.
BIG: Final = {
    f"soft_{name}" for name in ("add", "mul", "div", "sqrt", "fma", "convert", "to_int", "from_int")
}


@dataclass(frozen=True, slots=True)
class Form:
    """An instruction with its operands' locations."""

    instruction: Instruction
    rd: int = MEMORY
    rs1: int = MEMORY
    rs2: int = MEMORY
    rounding: int = 0

    @property
    def symbol(self) -> str:
        """Its name in the object."""
        return f"st.{self.instruction.name}.{self.rd}.{self.rs1}.{self.rs2}.{self.rounding}"


def parameters(instruction: Instruction) -> tuple[str, ...]:
    """The operands of an instruction's semantics."""
    return tuple(inspect.signature(instruction.semantics).parameters)


@functools.cache
def uses_host(instruction: Instruction) -> bool:
    """Whether there is a fast path with the host's arithmetic, which rounds to nearest even."""
    pending, seen = [instruction.semantics], set()
    while pending:
        for node in ast.walk(function_ast(pending.pop())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in seen:
                seen.add(node.func.id)
                if node.func.id in NATIVE_FUNCTIONS and node.func.id not in BIG:
                    pending.append(NATIVE_FUNCTIONS[node.func.id])
    return "host_may" in seen


@functools.cache
def operation_forms(name: str) -> OperationForms:
    """How the copier treats an instruction."""
    instruction = INSTRUCTIONS[name]
    used = parameters(instruction)
    effect = instruction.effect
    if effect is Effect.SYSTEM:
        return OperationForms(Kind.NONE, 0, 0, 0, 0)
    kind = {Effect.BRANCH: Kind.BRANCH, Effect.JUMP: Kind.INDIRECT}.get(effect, Kind.PLAIN)
    if instruction.format == "J":
        kind = Kind.JUMP
    uses = USES_RD if effect in (Effect.INTEGER, Effect.JUMP) else 0
    uses |= (USES_RS1 if "rs1" in used else 0) | (USES_RS2 if "rs2" in used else 0)
    banks = (FLOAT_RD if effect is Effect.FLOAT else 0) | (FLOAT_RS1 if "frs1" in used else 0)
    banks |= (FLOAT_RS2 if "frs2" in used else 0) | (FLOAT_RS3 if "frs3" in used else 0)
    flags = TWO_ADDRESS if name in COMMON_REGISTER and name not in MOVES else 0
    flags |= ROUNDS if "rm" in used else 0
    check = {Float.NO: 0, Float.READS: 1, Float.WRITES: 2}[instruction.float]
    check = 3 if uses_host(instruction) else check
    return OperationForms(kind, uses, check, flags, banks)


def _register_forms(name: str) -> Iterator[tuple[int, int, int]]:
    """(rd, rs1, rs2) of an instruction with two sources and a destination."""
    places = range(MEMORY + 1)
    if name in MOVES:
        yield from itertools.product(places, places, places)
    elif name in COMMON_REGISTER:
        for rd, rs1, rs2 in itertools.product(places, places, places):
            if rd in (MEMORY, rs1, rs2):
                yield rd, rs1, rs2
    else:
        yield MEMORY, MEMORY, MEMORY
    if name in ZERO_FIRST:
        yield from ((rd, ZERO, rs2) for rd, rs2 in itertools.product(places, places))


def forms_of(instruction: Instruction) -> Iterator[Form]:
    """Every form of an instruction that gets a stencil."""
    operation = operation_forms(instruction.name)
    if operation.kind is Kind.NONE:
        return
    places = tuple(range(MEMORY + 1))
    if operation.uses == USES_RD | USES_RS1 | USES_RS2:
        located: Iterator[tuple[int, int, int]] = _register_forms(instruction.name)
    else:
        store = instruction.effect is Effect.NONE and operation.uses & USES_RS2
        branch = instruction.effect is Effect.BRANCH
        first = (*places, ZERO) if branch or instruction.name in ZERO_FIRST else places
        second = (*places, ZERO) if branch or store else places
        located = itertools.product(
            places if operation.uses & USES_RD else (MEMORY,),
            first if operation.uses & USES_RS1 else (MEMORY,),
            second if operation.uses & USES_RS2 else (MEMORY,),
        )
    for rounding in range(3 if operation.flags & ROUNDS else 1):
        for rd, rs1, rs2 in located if rounding == 0 else ((MEMORY, MEMORY, MEMORY),):
            yield Form(instruction, rd, rs1, rs2, rounding)


class _Rename(ast.NodeTransformer):
    """Gives the variables of an inlined function names of their own."""

    def __init__(self, names: set[str], prefix: str) -> None:
        self.names, self.prefix = names, prefix

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.prefix + node.id, node.ctx) if node.id in self.names else node


@dataclass
class StencilCompiler(HandlerCompiler):
    """Compiles one form."""

    form: Form = field(kw_only=True)
    returns: list[tuple[str, str]] = field(default_factory=list)

    # -- holes -----------------------------------------------------------------------------------------

    def hole(self, hole: Hole) -> Value:
        """The value that the copier patches in."""
        return self.assign("i64", f"ptrtoint ptr @H.{hole.name} to i64")

    def in_state(self, hole: Hole) -> str:
        """The address of the register that a hole names."""
        return self.assign("ptr", f"getelementptr i8, ptr %s, i64 {self.hole(hole).text}").text

    def tail_to(self, callee: str, **changed: str) -> None:
        """Go on at a hole with some of the arguments changed."""
        arguments = ", ".join(f"{TYPES.get(name, 'i64')} {changed.get(name, '%' + name)}" for name in ORDER)
        extra = f", i64 {changed['extra']}" if "extra" in changed else ""
        result = self.fresh("r")
        kind = "tail" if extra else "musttail"  # musttail wants the same prototype; both become a jump
        self.emit(f"{result} = {kind} call preserve_nonecc i64 {callee}({arguments}{extra})")
        self.emit(f"ret i64 {result}")
        self.terminated = True

    def tail(self, callee: str, *, ip: str = "", budget: str = "", delta: str = "", tlb: str = "") -> None:
        """Every way out of a handler that is not its end deoptimises."""
        self.tail_to(f"@H.{Hole.COLD.name}")

    # -- operands --------------------------------------------------------------------------------------

    def located(self, location: int, hole: Hole) -> Value:
        if location == ZERO:
            return Value("i64", "0")
        if location == MEMORY:
            return self.assign("i64", f"load i64, ptr {self.in_state(hole)}")
        return Value("i64", f"%p{location}")

    def immediate(self) -> Value:
        shifts = self.instruction.format.startswith("I-shift")
        return self.hole(Hole.AMOUNT if shifts else Hole.IMMEDIATE)

    def page_address(self, hole: Hole) -> Value:
        """A virtual address, as an offset from the start of the page that is executed."""
        return self.assign("i64", f"add i64 {self.load_field('page_pc').text}, {self.hole(hole).text}")

    def operand(self, name: str) -> Value:
        match name:
            case "rs1":
                return self.located(self.form.rs1, Hole.RS1)
            case "rs2":
                return self.located(self.form.rs2, Hole.RS2)
            case "frs1" | "frs2" | "frs3":
                return self.located(MEMORY, Hole[name[1:].upper()])
            case "pc":
                return self.page_address(Hole.OFFSET)
            case "rm":
                return self.rounding_mode()
        return super().operand(name)

    def rounding_mode(self) -> Value:
        if uses_host(self.instruction) and self.form.rounding != ROUNDING[RTZ]:
            return Value("i64", str(RNE))
        if self.form.rounding:
            return Value("i64", str(self.form.rounding - 1))
        mode = self.load_field("frm")
        bad, good = self.fresh("bad"), self.fresh("good")
        self.branch(self.assign("i1", f"icmp ugt i64 {mode.text}, 4"), bad, good, unlikely=True)
        self.label(bad)
        self.tail("")
        self.label(good)
        return mode

    # -- calls -----------------------------------------------------------------------------------------

    def special_call(self, name: str, node: ast.Call) -> Value | None:
        if name == "host_may":  # checked once per block, see _float_check
            return Value("i64", str(int(self.form.rounding != ROUNDING[RTZ])))
        if name in BIG:
            self.tail("")
            self.label(self.fresh("dead"))
            return Value("i64", "0")
        if name == "unbox":
            return self.unbox(self.i64(node.args[0]))
        if name in NATIVE_FUNCTIONS:
            return self.inline(name, node)
        return super().special_call(name, node)

    def unbox(self, value: Value) -> Value:
        """A binary32 operand; one that is not NaN-boxed is rare enough for the interpreter."""
        boxed = self.assign("i1", f"icmp uge i64 {value.text}, {-(1 << 32)}")
        good, bad = self.fresh("boxed"), self.fresh("bad")
        self.branch(boxed, good, bad)
        self.label(bad)
        self.tail("")
        self.label(good)
        return self.assign("i64", f"and i64 {value.text}, {(1 << 32) - 1}")

    def inline(self, name: str, node: ast.Call) -> Value:
        """Translate the body of a native function in place, so that it can deoptimise too."""
        function = NATIVE_FUNCTIONS[name]
        tree = copy.deepcopy(function_ast(function))
        prefix = self.fresh("inline")[1:] + "."
        names = {a.arg for a in tree.args.args if a.arg != "s"}
        names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for parameter, argument in zip(tree.args.args, node.args, strict=True):
            if parameter.arg != "s":
                value = self.i64(argument)
                self.declare(prefix + parameter.arg, "i64")
                self.emit(f"store i64 {value.text}, ptr %v.{prefix}{parameter.arg}")
        outer, self.function = self.function, function
        result, done = self.slot("i64"), self.fresh("returned")
        self.returns.append((result, done))
        self.block([_Rename(names, prefix).visit(statement) for statement in tree.body])
        self.returns.pop()
        self.function = outer
        self.label(done)
        return self.assign("i64", f"load i64, ptr {result}")

    def do_Return(self, node: ast.Return) -> None:  # noqa: N802
        if not self.returns:
            super().do_Return(node)
            return
        result, done = self.returns[-1]
        value = self.i64(node.value) if node.value is not None else Value("i64", "0")
        self.emit(f"store i64 {value.text}, ptr {result}")
        self.emit(f"br label {done}")
        self.terminated = True

    # -- the end ---------------------------------------------------------------------------------------

    def written(self, value: str) -> dict[str, str]:
        """Write the result; the arguments that change by it."""
        if self.form.rd == MEMORY:
            self.emit(f"store i64 {value}, ptr {self.in_state(Hole.RD)}")
            return {}
        return {f"p{self.form.rd}": value}

    def finish(self) -> None:
        effect = self.instruction.effect
        type_ = "i1" if effect is Effect.BRANCH else "i64"
        self.entry.append(f"  %value = alloca {type_}")
        self.label("%finish")
        go_on = f"@H.{Hole.CONTINUE.name}"
        if effect is Effect.NONE:
            self.tail_to(go_on)
            return
        value = self.assign(type_, f"load {type_}, ptr %value")
        if effect is Effect.BRANCH:
            taken, straight = self.fresh("taken"), self.fresh("straight")
            self.branch(value, taken, straight)
            self.label(taken)
            self.tail_to(f"@H.{Hole.TAKEN.name}")
            self.label(straight)
            self.tail_to(go_on)
        elif effect is Effect.JUMP:
            changed = self.written(self.page_address(Hole.NEXT).text)
            if operation_forms(self.instruction.name).kind is Kind.JUMP:
                self.tail_to(go_on, **changed)
            else:
                self.go_anywhere(value, changed)
        else:
            self.tail_to(go_on, **self.written(value.text))

    def go_anywhere(self, target: Value, changed: dict[str, str]) -> None:
        """Look the target up in the jump cache."""
        one = self.assign("i64", f"lshr i64 {target.text}, 1").text
        other = self.assign("i64", f"lshr i64 {target.text}, 9").text
        mixed = self.assign("i64", f"xor i64 {one}, {other}").text
        index = self.assign("i64", f"and i64 {mixed}, {JUMP_MASK}").text
        scaled = self.assign("i64", f"shl i64 {index}, 4").text
        table = self.assign("ptr", f"load ptr, ptr {self.field_pointer('jump_set')}").text
        entry = self.assign("ptr", f"getelementptr i8, ptr {table}, i64 {scaled}").text
        tag = self.assign("i64", f"load i64, ptr {entry}").text
        hit, miss = self.fresh("hit"), self.fresh("miss")
        self.branch(self.assign("i1", f"icmp eq i64 {tag}, {target.text}"), hit, miss)
        self.label(hit)
        page = self.assign("i64", f"and i64 {target.text}, {-PAGE}").text
        self.store_field("page_pc", page)
        place = self.assign("ptr", f"getelementptr i8, ptr {entry}, i64 8").text
        code = self.assign("ptr", f"load ptr, ptr {place}").text
        self.tail_to(code, **changed)
        self.label(miss)
        self.tail_to(f"@H.{Hole.MISS.name}", **changed, extra=target.text)

    def compile(self) -> str:
        tree = function_ast(self.instruction.semantics)
        for argument in tree.args.args:
            if argument.arg != "s":
                value = self.operand(argument.arg)
                self.declare(argument.arg, "i64")
                self.emit(f"store i64 {value.text}, ptr %v.{argument.arg}")
        if self.instruction.format == "J":  # the copier knows the target
            self.emit("store i64 0, ptr %value\n  br label %finish")
            self.terminated = True
        else:
            self.block(tree.body)
            if not self.terminated:
                self.emit("br label %finish")
                self.terminated = True
        self.finish()
        return self.text(self.form.symbol)

    def text(self, name: str, extra: str = "") -> str:
        """The function as IR."""
        head = f'define preserve_nonecc i64 @"{name}"({PARAMETERS}{extra}) #1 align 1 {{'
        return "\n".join([head, "entry:", *self.entry, *hot_first(self.lines), "}"])


def hot_first(lines: list[str]) -> list[str]:
    """Move the blocks that are seldom executed to the end: LLVM keeps the order where it may choose."""
    hot: list[str] = []
    cold: list[str] = []
    block = hot
    for line in lines:
        if not line.startswith(" "):
            block = cold if line.startswith(COLD_LABELS) else hot
        block.append(line)
    return hot + cold


def _nothing() -> None: ...


def blank() -> StencilCompiler:
    """A stencil that belongs to no instruction."""
    nothing = Instruction("special", 0, 0, "none", Effect.NONE, Float.NO, "", _nothing)
    return StencilCompiler(_nothing, instruction=nothing, form=Form(nothing))


def _head() -> str:
    """The start of a basic block: take its instructions from the budget, or deoptimise."""
    stencil = blank()
    count = stencil.hole(Hole.COUNT)
    pair = stencil.assign(
        "{ i64, i1 }", f"call {{ i64, i1 }} @llvm.usub.with.overflow.i64(i64 %budget, i64 {count.text})"
    )
    left = stencil.assign("i64", f"extractvalue {{ i64, i1 }} {pair.text}, 0").text
    over = stencil.assign("i1", f"extractvalue {{ i64, i1 }} {pair.text}, 1")
    stencil.branch(over, "%over", "%fine", unlikely=True)
    stencil.label("%over")
    stencil.tail_to(f"@H.{Hole.COLD.name}", budget=left)
    stencil.label("%fine")
    stencil.tail_to(f"@H.{Hole.CONTINUE.name}", budget=left)
    return stencil.text("st.head")


def _jump() -> str:
    stencil = blank()
    stencil.tail_to(f"@H.{Hole.TAKEN.name}")
    return stencil.text("st.jump")


def _stub(name: str, hole: Hole, common: Hole) -> str:
    stencil = blank()
    stencil.tail_to(f"@H.{common.name}", extra=stencil.hole(hole).text)
    return stencil.text(f"st.{name}")


def _goto() -> str:
    stencil = blank()
    stencil.go_anywhere(stencil.page_address(Hole.TARGET), {})
    return stencil.text("st.goto")


def _float_check(name: str, *, writes: bool, host: bool = False) -> str:
    """mstatus.FS as the instruction needs it, or deoptimise; nothing in a block changes it after that.

    With ``host`` also what host_may asks: rounding to nearest even, and the inexact flag set.
    """
    stencil = blank()
    state = stencil.assign("i64", f"and i64 {stencil.load_field('mstatus').text}, {STATUS_FS}")
    test = f"icmp ne i64 {state.text}, {STATUS_FS}" if writes else f"icmp eq i64 {state.text}, 0"
    stencil.branch(stencil.assign("i1", test), "%over", "%fine", unlikely=True)
    stencil.label("%fine")
    if host:
        inexact = stencil.assign("i64", f"and i64 {stencil.load_field('fflags').text}, {FLAG_NX}")
        right = stencil.assign("i1", f"icmp ne i64 {inexact.text}, 0")
        stencil.branch(right, "%still", "%over")
        stencil.label("%still")
        nearest = stencil.assign("i1", f"icmp eq i64 {stencil.load_field('frm').text}, {RNE}")
        stencil.branch(nearest, "%good", "%over")
        stencil.label("%good")
    stencil.tail_to(f"@H.{Hole.CONTINUE.name}")
    stencil.label("%over")
    stencil.tail("")
    return stencil.text(f"st.{name}")


def _spill(number: int) -> str:
    stencil = blank()
    offset = FIELDS["x"].offset + 8 * PINS[number]
    place = stencil.assign("ptr", f"getelementptr i8, ptr %s, i64 {offset}").text
    stencil.emit(f"store i64 %p{number}, ptr {place}")
    stencil.tail_to(f"@H.{Hole.CONTINUE.name}")
    return stencil.text(f"st.spill{number}")


def _reload(number: int) -> str:
    stencil = blank()
    offset = FIELDS["x"].offset + 8 * PINS[number]
    place = stencil.assign("ptr", f"getelementptr i8, ptr %s, i64 {offset}").text
    value = stencil.assign("i64", f"load i64, ptr {place}").text
    stencil.tail_to(f"@H.{Hole.CONTINUE.name}", **{f"p{number}": value})
    return stencil.text(f"st.reload{number}")


def special_stencils() -> list[str]:
    """The stencils of SPECIAL but the common routines."""
    return [
        _head(),
        _jump(),
        _stub("exit", Hole.PLACE, Hole.EXIT),
        _stub("link", Hole.EDGE, Hole.LINK),
        _goto(),
        _float_check("float_reads", writes=False),
        _float_check("float_writes", writes=True),
        _float_check("float_host", writes=True, host=True),
        *(_spill(number) for number in range(len(PINS))),
        *(_reload(number) for number in range(len(PINS))),
    ]


_SMALL: Final = {Hole.PLACE, Hole.COUNT, Hole.OFFSET, Hole.NEXT, Hole.AMOUNT}


def stencil_module(constants: dict[str, int], common: list[str]) -> str:
    """The IR of all stencils."""
    lines = []
    for hole in Hole:
        if hole in (Hole.CONTINUE, Hole.TAKEN, Hole.COLD):
            lines.append(f"declare preserve_nonecc i64 @H.{hole.name}({DECLARED})")
        elif hole in (Hole.EXIT, Hole.LINK, Hole.MISS):
            lines.append(f"declare preserve_nonecc i64 @H.{hole.name}({DECLARED}, i64)")
        else:
            metadata = "!3" if hole is Hole.EDGE else "!4" if hole in _SMALL else "!2"
            lines.append(f"@H.{hole.name} = external global i8, !absolute_symbol {metadata}")
    texts = [*lines, *special_stencils(), *common]
    for instruction in INSTRUCTIONS.values():
        for form in forms_of(instruction):
            compiler = StencilCompiler(
                instruction.semantics, constants=constants, instruction=instruction, form=form
            )
            texts.append(compiler.compile())
    return "\n\n".join([*texts, _TAIL])


_TAIL: Final = """
declare { i64, i1 } @llvm.usub.with.overflow.i64(i64, i64)
declare i1 @llvm.expect.i1(i1, i1)
declare i64 @llvm.ctlz.i64(i64, i1)
declare i128 @llvm.ctlz.i128(i128, i1)
declare float @llvm.sqrt.f32(float)
declare double @llvm.sqrt.f64(double)
declare float @llvm.fma.f32(float, float, float)
declare double @llvm.fma.f64(double, double, double)
attributes #1 = { nounwind optsize "no-builtins" "frame-pointer"="none" }
!1 = !{!"branch_weights", i32 1, i32 2000}
!2 = !{i64 -2147483648, i64 2147483648}
!3 = !{i64 -1, i64 -1}
!4 = !{i64 0, i64 2147483648}
"""
