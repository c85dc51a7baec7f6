"""The threaded interpreter: a handler per instruction, generated from the table of semantics.

Every handler has the signature (state, ip, budget, delta, tlb), the calling convention ``preserve_none`` and
ends in a ``musttail`` call of the handler in the next decoded slot. ``pc = (ip >> 3) + delta``; ``budget``
counts the steps left in the slice; ``tlb`` is the data TLB of the current mode. A slot is 16 bytes:
{handler, imm32, rd, rs1, rs2, rs3}; the handler is its distance from the one that decodes, so that memory
that was never touched consists of slots to be decoded. Translated code is just another handler in a slot.

An instruction that touches memory has two handlers: the fast one probes the TLB and, on a miss, tail-calls
the slow one, which does the same semantics through the runtime and may trap or leave.
"""

# ruff: noqa: N802 - do_Return translates ast.Return
from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from serai.machine.isa.table import COMPRESSED, INSTRUCTIONS, Effect, Float, Instruction
from serai.machine.native.language import FunctionCompiler, Value, function_ast
from serai.machine.native.layout import (
    EXEC_MASK,
    FIELDS,
    LEAVE_AFTER,
    LEAVE_BEFORE,
    OK,
    PAGE,
    PAGE_BITS,
    REDIRECT,
    REFRESH,
    SLOT,
    TLB_MASK,
    TLB_WRITE,
    TRAPPED,
)
from serai.machine.native.runtime.memory import READ, WRITE
from serai.machine.native.runtime.traps import STATUS_FS

__all__ = ["ARGUMENTS", "SIGNATURE", "HandlerCompiler", "handler_name", "interpreter_ir", "operation_number"]

SIGNATURE: Final = "(ptr %s, ptr %ip, i64 %budget, i64 %delta, ptr %tlb)"
ARGUMENTS: Final = "ptr %s, ptr {ip}, i64 {budget}, i64 {delta}, ptr {tlb}"
MEMORY = {"load", "store", "read_pointer", "write_pointer"}


def handler_name(name: str, length: int, *, near: bool = False, slow: bool = False) -> str:
    """The symbol of a handler: mnemonic, instruction length, and variant."""
    return f"h.{name}.{length}{'.near' if near else ''}{'.slow' if slow else ''}"


@functools.cache
def operation_number(name: str) -> int:
    """The number of an instruction, which its handlers have in front of them; 0 if it is none."""
    return sorted(INSTRUCTIONS).index(name) + 1 if name in INSTRUCTIONS else 0


def is_direct(instruction: Instruction) -> bool:
    """Whether the target is a constant distance from pc, so that a near variant exists."""
    return instruction.effect is Effect.BRANCH or instruction.format == "J"


@dataclass
class HandlerCompiler(FunctionCompiler):
    """Compiles the semantics of one instruction into one handler."""

    instruction: Instruction = field(kw_only=True)
    length: int = 4
    near: bool = False
    slow: bool = False

    # -- pieces ----------------------------------------------------------------------------------------

    def field_pointer(self, name: str) -> str:
        """The address of a field of the state block."""
        return self.assign("ptr", f"getelementptr i8, ptr %s, i64 {FIELDS[name].offset}").text

    def load_field(self, name: str) -> Value:
        """Read a field of the state block."""
        return self.assign("i64", f"load i64, ptr {self.field_pointer(name)}")

    def store_field(self, name: str, value: str) -> None:
        """Write a field of the state block."""
        self.emit(f"store i64 {value}, ptr {self.field_pointer(name)}")

    def slot_byte(self, position: int) -> Value:
        """A register number of the slot."""
        pointer = self.assign("ptr", f"getelementptr i8, ptr %ip, i64 {position}")
        return self.as_type(self.assign("i8", f"load i8, ptr {pointer.text}"), "i64")

    def register_pointer(self, bank: str, number: Value) -> str:
        """The address of a register."""
        base = self.field_pointer(bank)
        return self.assign("ptr", f"getelementptr i64, ptr {base}, i64 {number.text}").text

    def register(self, bank: str, position: int) -> Value:
        """Read the register that the slot names at a byte position."""
        return self.assign("i64", f"load i64, ptr {self.register_pointer(bank, self.slot_byte(position))}")

    def immediate(self) -> Value:
        """The immediate of the slot, sign-extended."""
        pointer = self.assign("ptr", "getelementptr i8, ptr %ip, i64 8")
        narrow = self.assign("i32", f"load i32, ptr {pointer.text}")
        return self.assign("i64", f"sext i32 {narrow.text} to i64")

    def pc_of(self, ip: str) -> Value:
        """The virtual address that belongs to a slot."""
        number = self.assign("i64", f"ptrtoint ptr {ip} to i64")
        shifted = self.assign("i64", f"lshr i64 {number.text}, 3")
        return self.assign("i64", f"add i64 {shifted.text}, %delta")

    def tail(
        self,
        callee: str,
        *,
        ip: str = "%ip",
        budget: str = "%budget",
        delta: str = "%delta",
        tlb: str = "%tlb",
    ) -> None:
        """Leave the handler for another function of the same signature."""
        arguments = ARGUMENTS.format(ip=ip, budget=budget, delta=delta, tlb=tlb)
        result = self.fresh("r")
        self.emit(f"{result} = musttail call preserve_nonecc i64 {callee}({arguments})")
        self.emit(f"ret i64 {result}")
        self.terminated = True

    def dispatch(self, ip: str, budget: str = "%budget", delta: str = "%delta", tlb: str = "%tlb") -> None:
        """Go on with the handler of the slot at ``ip``."""
        distance = self.assign("i64", f"load i64, ptr {ip}").text
        base = self.assign("ptr", f"load ptr, ptr {self.field_pointer('decode_handler')}").text
        handler = self.assign("ptr", f"getelementptr i8, ptr {base}, i64 {distance}")
        self.tail(handler.text, ip=ip, budget=budget, delta=delta, tlb=tlb)

    def retire(self) -> Value:
        """The budget after this instruction."""
        return self.assign("i64", "sub i64 %budget, 1")

    def next_ip(self) -> str:
        """The slot of the next instruction."""
        return self.assign("ptr", f"getelementptr i8, ptr %ip, i64 {self.length // 2 * SLOT}").text

    def go_on(self, ip: str) -> None:
        """Retire this instruction and go on at a slot of the same page."""
        budget = self.retire()
        self.check_budget(budget, lambda: self.tail("@slice_end", ip=ip, budget="0"))
        self.dispatch(ip, budget.text)

    def check_budget(self, budget: Value, at_end: object) -> None:
        """At the end of the slice do something else than going on."""
        end, more = self.fresh("end"), self.fresh("more")
        done = self.assign("i1", f"icmp eq i64 {budget.text}, 0")
        self.branch(done, end, more, unlikely=True)
        self.label(end)
        assert callable(at_end)
        at_end()
        self.label(more)

    def go_to(self, target: Value) -> None:
        """Retire this instruction and go on at another virtual address."""
        budget = self.retire()

        def at_end() -> None:
            self.store_field("pc", target.text)
            self.tail("@resume", budget="0")

        self.check_budget(budget, at_end)
        self.find_page(target, budget)

    def find_page(self, target: Value, budget: Value) -> None:
        """Look the target up in the exec TLB and dispatch."""
        entries = self.assign("ptr", f"load ptr, ptr {self.field_pointer('exec_set')}").text
        scaled = self.assign("i64", f"lshr i64 {target.text}, {PAGE_BITS - 4}").text
        index = self.assign("i64", f"and i64 {scaled}, {EXEC_MASK << 4}").text
        entry = self.assign("ptr", f"getelementptr i8, ptr {entries}, i64 {index}").text
        tag = self.assign("i64", f"load i64, ptr {entry}").text
        page = self.assign("i64", f"and i64 {target.text}, {-PAGE}").text
        hit = self.assign("i1", f"icmp eq i64 {tag}, {page}")
        found, missing = self.fresh("found"), self.fresh("missing")
        self.branch(hit, found, missing)
        self.label(missing)
        self.store_field("pc", target.text)
        self.tail("@resume", budget=budget.text)
        self.label(found)
        base_pointer = self.assign("ptr", f"getelementptr i8, ptr {entry}, i64 8").text
        base = self.assign("i64", f"load i64, ptr {base_pointer}").text
        offset = self.assign("i64", f"and i64 {target.text}, {PAGE - 1}").text
        scaled_offset = self.assign("i64", f"shl i64 {offset}, 3").text
        ip_number = self.assign("i64", f"add i64 {base}, {scaled_offset}").text
        ip = self.assign("ptr", f"inttoptr i64 {ip_number} to ptr").text
        shifted = self.assign("i64", f"lshr i64 {ip_number}, 3").text
        delta = self.assign("i64", f"sub i64 {target.text}, {shifted}").text
        self.dispatch(ip, budget.text, delta)

    # -- guest memory ----------------------------------------------------------------------------------

    def special_call(self, name: str, node: ast.Call) -> Value | None:
        """Bind the accesses to guest memory."""
        if name not in MEMORY:
            return None
        address = self.i64(node.args[0])
        size = self.constant(node.args[-1])
        assert size in (1, 2, 4, 8)
        writes = name in ("store", "write_pointer")
        if self.slow:
            return self.slow_access(name, address, size, node)
        host = self.probe(address, size, writes=writes)
        if name == "load":
            return self.as_type(
                self.assign(f"i{8 * size}", f"load atomic i{8 * size}, ptr {host} unordered, align {size}"),
                "i64",
            )
        if name == "store":
            value = self.as_type(self.i64(node.args[1]), f"i{8 * size}")
            self.emit(f"store atomic i{8 * size} {value.text}, ptr {host} unordered, align {size}")
            return Value("i64", "0")
        return self.assign("i64", f"ptrtoint ptr {host} to i64")

    def probe(self, address: Value, size: int, *, writes: bool) -> str:
        """Find the host address through the TLB; a miss or a misaligned address goes to the slow handler."""
        scaled = self.assign("i64", f"lshr i64 {address.text}, {PAGE_BITS - 4}").text
        index = self.assign("i64", f"and i64 {scaled}, {TLB_MASK << 4}").text
        entry = self.assign("ptr", f"getelementptr i8, ptr %tlb, i64 {index}").text
        if writes:
            entry = self.assign("ptr", f"getelementptr i8, ptr {entry}, i64 {TLB_WRITE}").text
        tag = self.assign("i64", f"load i64, ptr {entry}").text
        masked = self.assign("i64", f"and i64 {address.text}, {-PAGE | (size - 1)}").text
        hit = self.assign("i1", f"icmp eq i64 {tag}, {masked}")
        found, missing = self.fresh("hit"), self.fresh("miss")
        self.branch(hit, found, missing)
        self.label(missing)
        self.tail("@" + handler_name(self.instruction.name, self.length, slow=True))
        self.label(found)
        addend_pointer = self.assign("ptr", f"getelementptr i8, ptr {entry}, i64 8").text
        addend = self.assign("i64", f"load i64, ptr {addend_pointer}").text
        host = self.assign("i64", f"add i64 {address.text}, {addend}").text
        return self.assign("ptr", f"inttoptr i64 {host} to ptr").text

    def slow_access(self, name: str, address: Value, size: int, node: ast.Call) -> Value:
        """Do the access through the runtime; leave the handler on a trap or an exit."""
        if name == "store":
            value = self.i64(node.args[1])
            call = f"call i64 @store_slow(ptr %s, i64 {address.text}, i64 {value.text}, i64 {size})"
        elif name == "load":
            call = f"call i64 @load_slow(ptr %s, i64 {address.text}, i64 {size})"
        else:
            access = WRITE if name == "write_pointer" else READ
            call = f"call i64 @pointer_slow(ptr %s, i64 {address.text}, i64 {size}, i64 {access})"
        status = self.assign("i64", call)
        self.on_status(status)
        return self.load_field("result")

    def on_status(self, status: Value) -> None:
        """Go on in this handler if the status is OK, else do what it says."""
        fine = self.fresh("fine")
        cases = {TRAPPED: "trapped", LEAVE_BEFORE: "before", LEAVE_AFTER: "after"}
        if self.instruction.effect is Effect.SYSTEM:
            cases |= {REDIRECT: "redirect", REFRESH: "refresh"}
        labels = {code: self.fresh(name) for code, name in cases.items()}
        targets = " ".join(f"i64 {code}, label {label}" for code, label in labels.items())
        dead = self.fresh("dead")
        self.emit(f"switch i64 {status.text}, label {dead} [ i64 {OK}, label {fine} {targets} ]")
        self.terminated = True
        self.label(labels[TRAPPED])
        self.tail("@raise")
        self.label(labels[LEAVE_BEFORE])
        self.tail("@leave")
        self.label(labels[LEAVE_AFTER])
        self.tail("@leave", ip=self.next_ip(), budget=self.retire().text)
        if REDIRECT in labels:
            self.label(labels[REDIRECT])
            self.tail("@resume", budget=self.retire().text)
            self.label(labels[REFRESH])
            self.store_field("pc", self.pc_of(self.next_ip()).text)
            self.tail("@resume", budget=self.retire().text)
        self.label(dead)
        self.emit("unreachable")
        self.terminated = True
        self.label(fine)

    # -- one handler -----------------------------------------------------------------------------------

    def rounding_mode(self) -> Value:
        """The rounding mode: the instruction's, or frm; a reserved one is illegal (Unprivileged ISA 21.2)."""
        static = self.immediate()
        dynamic = self.assign("i1", f"icmp eq i64 {static.text}, 7")
        frm = self.load_field("frm")
        mode = self.assign("i64", f"select i1 {dynamic.text}, i64 {frm.text}, i64 {static.text}")
        reserved = self.assign("i1", f"icmp ugt i64 {mode.text}, 4")
        bad, good = self.fresh("bad"), self.fresh("good")
        self.branch(reserved, bad, good, unlikely=True)
        self.label(bad)
        self.tail("@h.illegal")
        self.label(good)
        return mode

    def operand(self, name: str) -> Value:
        """Fetch an operand by the name of the semantics function's parameter."""
        match name:
            case "rs1" | "rs2":
                return self.register("x", 13 if name == "rs1" else 14)
            case "frs1" | "frs2" | "frs3":
                return self.register("f", {"frs1": 13, "frs2": 14, "frs3": 15}[name])
            case "rd_number" | "rs1_number":
                return self.slot_byte(12 if name == "rd_number" else 13)
            case "imm":
                return self.immediate()
            case "pc":
                return self.pc_of("%ip")
            case "rm":
                return self.rounding_mode()
        raise ValueError(f"{self.instruction.name}: no operand {name}")

    def check_float(self) -> None:
        """Off: illegal instruction; not dirty although this instruction writes: mark it, then go on."""
        if self.instruction.float is Float.NO:
            return
        status = self.load_field("mstatus")
        state = self.assign("i64", f"and i64 {status.text}, {STATUS_FS}")
        if self.instruction.float is Float.WRITES:
            other = self.assign("i1", f"icmp ne i64 {state.text}, {STATUS_FS}")
        else:
            other = self.assign("i1", f"icmp eq i64 {state.text}, 0")
        cold, usable = self.fresh("cold"), self.fresh("usable")
        self.branch(other, cold, usable, unlikely=True)
        self.label(cold)
        self.tail("@enable_float")
        self.label(usable)

    def do_Return(self, node: ast.Return) -> None:
        """Keep the value and finish."""
        if node.value is not None:
            value = self.expression(node.value)
            type_ = "i1" if self.instruction.effect is Effect.BRANCH else "i64"
            value = self.as_condition(value) if type_ == "i1" else self.as_type(value, type_)
            self.emit(f"store {type_} {value.text}, ptr %value")
        self.emit("br label %finish")
        self.terminated = True

    def finish(self) -> None:
        """Write back and go on, as the effect says."""
        effect = self.instruction.effect
        type_ = "i1" if effect is Effect.BRANCH else "i64"
        self.entry.append(f"  %value = alloca {type_}")
        self.label("%finish")
        if effect is Effect.NONE:
            self.go_on(self.next_ip())
            return
        value = self.assign(type_, f"load {type_}, ptr %value")
        if effect is Effect.BRANCH:
            taken, straight = self.fresh("taken"), self.fresh("straight")
            self.branch(value, taken, straight)
            self.label(taken)
            self.jump_direct(None)
            self.label(straight)
            self.go_on(self.next_ip())
        elif effect is Effect.JUMP:
            link = self.pc_of(self.next_ip())
            self.emit(f"store i64 {link.text}, ptr {self.register_pointer('x', self.slot_byte(12))}")
            self.jump_direct(value)
        elif effect is Effect.SYSTEM:
            self.on_status(value)
            self.go_on(self.next_ip())
        else:
            bank = "f" if effect is Effect.FLOAT else "x"
            self.emit(f"store i64 {value.text}, ptr {self.register_pointer(bank, self.slot_byte(12))}")
            self.go_on(self.next_ip())

    def jump_direct(self, target: Value | None) -> None:
        """Jump: within the page by moving ip, else through the exec TLB."""
        if self.near:
            scaled = self.assign("i64", f"shl i64 {self.immediate().text}, 3").text
            self.go_on(self.assign("ptr", f"getelementptr i8, ptr %ip, i64 {scaled}").text)
            return
        if target is None:
            target = self.assign("i64", f"add i64 {self.pc_of('%ip').text}, {self.immediate().text}")
        self.go_to(target)

    def compile(self) -> str:
        """Return the IR of the handler."""
        tree = function_ast(self.instruction.semantics)
        if self.instruction.effect is Effect.SYSTEM:
            self.store_field("pc", self.pc_of("%ip").text)
            self.store_field("slice_budget", "%budget")
            limit = self.load_field("step_limit")
            self.store_field("steps", self.assign("i64", f"sub i64 {limit.text}, %budget").text)
        self.check_float()
        for argument in tree.args.args:
            if argument.arg != "s":
                value = self.operand(argument.arg)
                self.declare(argument.arg, "i64")
                self.emit(f"store i64 {value.text}, ptr %v.{argument.arg}")
        self.block(tree.body)
        self.finish()
        name = handler_name(self.instruction.name, self.length, near=self.near, slow=self.slow)
        return self.function_text(name)

    def function_text(self, name: str) -> str:
        """The function as IR."""
        numbers = [operation_number(self.instruction.name), self.length, 0, 0]  # the translator's
        prefix = f"[4 x i32] [{', '.join(f'i32 {number}' for number in numbers)}]"
        head = f"define internal preserve_nonecc i64 @{name}{SIGNATURE} #0 prefix {prefix} {{"
        return "\n".join([head, "entry:", *self.entry, *self.lines, "}"])


def uses_memory(instruction: Instruction) -> bool:
    """Whether the semantics access guest memory through the TLB."""
    calls = (node for node in ast.walk(function_ast(instruction.semantics)) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id in MEMORY for call in calls)


def handlers() -> Iterator[HandlerCompiler]:
    """Every handler that the table needs, not compiled yet."""
    short = {encoding.target for encoding in COMPRESSED.values()}
    for instruction in INSTRUCTIONS.values():
        for length in (4, 2) if instruction.name in short else (4,):
            for near in (False, True) if is_direct(instruction) else (False,):
                for slow in (False, True) if uses_memory(instruction) else (False,):
                    yield HandlerCompiler(
                        instruction.semantics,
                        instruction=instruction,
                        length=length,
                        near=near,
                        slow=slow,
                    )


def interpreter_ir(constants: dict[str, int]) -> tuple[list[str], set[str]]:
    """Return the IR of all handlers and the names of the runtime functions they call."""
    texts, needed = [], {"load_slow", "store_slow", "pointer_slow"}
    for handler in handlers():
        handler.constants = constants
        texts.append(handler.compile())
        needed |= handler.externals
    return texts, needed
