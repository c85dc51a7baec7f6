"""What the operators of the restricted language do not say: signed operations, memory, host floating point.

Each name has two faces: a typed placeholder that semantics functions import, and an entry of
``INTRINSICS`` that emits its LLVM IR.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from serai.machine.native.language import FunctionCompiler, Value
from serai.machine.native.layout import State

Emitter = Callable[[FunctionCompiler, ast.Call], Value]
INTRINSICS: dict[str, Emitter] = {}


def _placeholder(name: str, emitter: Emitter) -> Callable[..., int]:
    INTRINSICS[name] = emitter

    def only_compiled(*_: Any) -> int:
        raise NotImplementedError(f"{name} exists in compiled code only")

    return only_compiled


def _signed_compare(predicate: str) -> Emitter:
    return lambda c, n: c.compare(predicate, c.expression(n.args[0]), c.expression(n.args[1]))


def _extend(verb: str, bits: int) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        narrow = c.assign(f"i{bits}", f"trunc i64 {c.i64(n.args[0]).text} to i{bits}")
        return c.assign("i64", f"{verb} i{bits} {narrow.text} to i64")

    return emit


def _binary64(verb: str) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        left, right = c.i64(n.args[0]), c.i64(n.args[1])
        return c.assign("i64", f"{verb} i64 {left.text}, {right.text}")

    return emit


def _binary128(verb: str) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        left = c.as_type(c.expression(n.args[0]), "i128")
        right = c.as_type(c.expression(n.args[1]), "i128")
        return c.assign("i128", f"{verb} i128 {left.text}, {right.text}")

    return emit


def _high64(c: FunctionCompiler, n: ast.Call) -> Value:
    wide = c.assign("i128", f"lshr i128 {c.expression(n.args[0]).text}, 64")
    return c.as_type(wide, "i64")


def _widen_signed(c: FunctionCompiler, n: ast.Call) -> Value:
    return c.assign("i128", f"sext i64 {c.i64(n.args[0]).text} to i128")


def _count(operation: str) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        value = c.expression(n.args[0])
        type_ = "i128" if value.type == "i128" else "i64"
        value = c.as_type(value, type_)
        return c.assign(type_, f"call {type_} @llvm.{operation}.{type_}({type_} {value.text}, i1 false)")

    return emit


def _address(c: FunctionCompiler, node: ast.expr) -> str:
    return c.assign("ptr", f"inttoptr i64 {c.i64(node).text} to ptr").text


def _width(c: FunctionCompiler, node: ast.expr) -> int:
    size = c.constant(node)
    if size not in (1, 2, 4, 8):
        raise c.fail(node, "an access is 1, 2, 4 or 8 bytes wide")
    return size


def _host_load(c: FunctionCompiler, n: ast.Call) -> Value:
    bits = 8 * _width(c, n.args[1])
    value = c.assign(f"i{bits}", f"load i{bits}, ptr {_address(c, n.args[0])}, align 1")
    return c.as_type(value, "i64")


def _host_store(c: FunctionCompiler, n: ast.Call) -> Value:
    bits = 8 * _width(c, n.args[2])
    pointer = _address(c, n.args[0])
    value = c.as_type(c.i64(n.args[1]), f"i{bits}")
    c.emit(f"store i{bits} {value.text}, ptr {pointer}, align 1")
    return Value("i64", "0")


def _atomic_update(operation: str) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        bits = 8 * _width(c, n.args[2])
        pointer = _address(c, n.args[0])
        value = c.as_type(c.i64(n.args[1]), f"i{bits}")
        old = c.assign(
            f"i{bits}",
            f"atomicrmw {operation} ptr {pointer}, i{bits} {value.text} seq_cst, align {bits // 8}",
        )
        return c.as_type(old, "i64")

    return emit


def _compare_exchange(c: FunctionCompiler, n: ast.Call) -> Value:
    bits = 8 * _width(c, n.args[3])
    pointer = _address(c, n.args[0])
    expected = c.as_type(c.i64(n.args[1]), f"i{bits}").text
    desired = c.as_type(c.i64(n.args[2]), f"i{bits}").text
    pair = c.assign(
        f"{{ i{bits}, i1 }}",
        f"cmpxchg ptr {pointer}, i{bits} {expected}, i{bits} {desired} seq_cst seq_cst, align {bits // 8}",
    )
    return c.as_type(c.assign("i1", f"extractvalue {pair.type} {pair.text}, 1"), "i64")


def _fence(c: FunctionCompiler, _: ast.Call) -> Value:
    c.emit("fence seq_cst")
    return Value("i64", "0")


def _cycle_counter(c: FunctionCompiler, _: ast.Call) -> Value:
    return c.assign("i64", "call i64 @llvm.readcyclecounter()")


def _unlikely(c: FunctionCompiler, n: ast.Call) -> Value:
    value = c.as_condition(c.expression(n.args[0]))
    return c.assign("i1", f"call i1 @llvm.expect.i1(i1 {value.text}, i1 false)")


def _call_pointer(c: FunctionCompiler, n: ast.Call) -> Value:
    pointer = _address(c, n.args[0])
    arguments = ", ".join(f"i64 {c.i64(argument).text}" for argument in n.args[1:])
    result = c.assign("i32", f"call i32 {pointer}({arguments})")
    return c.as_type(result, "i64")


def _host_float(bits: int, operation: str, arity: int) -> Emitter:
    """Host arithmetic in the default environment: round to nearest even, no flags read."""
    type_ = {32: "float", 64: "double"}[bits]

    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        operands = []
        for node in n.args:
            raw = c.as_type(c.i64(node), f"i{bits}")
            operands.append(c.assign(type_, f"bitcast i{bits} {raw.text} to {type_}").text)
        assert len(operands) == arity
        if operation.startswith("llvm."):
            arguments = ", ".join(f"{type_} {operand}" for operand in operands)
            result = c.assign(type_, f"call {type_} @{operation}.f{bits}({arguments})")
        else:
            result = c.assign(type_, f"{operation} {type_} {', '.join(operands)}")
        raw = c.assign(f"i{bits}", f"bitcast {type_} {result.text} to i{bits}")
        return c.as_type(raw, "i64")

    return emit


slt = _placeholder("slt", _signed_compare("slt"))
sle = _placeholder("sle", _signed_compare("sle"))
sgt = _placeholder("sgt", _signed_compare("sgt"))
sge = _placeholder("sge", _signed_compare("sge"))
sar = _placeholder("sar", _binary64("ashr"))
sdiv = _placeholder("sdiv", _binary64("sdiv"))
srem = _placeholder("srem", _binary64("srem"))
sext8 = _placeholder("sext8", _extend("sext", 8))
sext16 = _placeholder("sext16", _extend("sext", 16))
sext32 = _placeholder("sext32", _extend("sext", 32))
zext32 = _placeholder("zext32", _extend("zext", 32))
wide = _placeholder("wide", lambda c, n: c.as_type(c.expression(n.args[0]), "i128"))
widen_signed = _placeholder("widen_signed", _widen_signed)
high64 = _placeholder("high64", _high64)
low64 = _placeholder("low64", lambda c, n: c.as_type(c.expression(n.args[0]), "i64"))
mul128 = _placeholder("mul128", _binary128("mul"))
leading_zeros = _placeholder("leading_zeros", _count("ctlz"))
host_load = _placeholder("host_load", _host_load)
host_store = _placeholder("host_store", _host_store)
exchange = _placeholder("exchange", _atomic_update("xchg"))
fetch_add = _placeholder("fetch_add", _atomic_update("add"))
fetch_and = _placeholder("fetch_and", _atomic_update("and"))
fetch_or = _placeholder("fetch_or", _atomic_update("or"))
fetch_xor = _placeholder("fetch_xor", _atomic_update("xor"))
fetch_min = _placeholder("fetch_min", _atomic_update("min"))
fetch_max = _placeholder("fetch_max", _atomic_update("max"))
fetch_umin = _placeholder("fetch_umin", _atomic_update("umin"))
fetch_umax = _placeholder("fetch_umax", _atomic_update("umax"))
compare_exchange = _placeholder("compare_exchange", _compare_exchange)
memory_fence = _placeholder("memory_fence", _fence)
cycle_counter = _placeholder("cycle_counter", _cycle_counter)
unlikely = _placeholder("unlikely", _unlikely)
call_pointer = _placeholder("call_pointer", _call_pointer)
host_add32 = _placeholder("host_add32", _host_float(32, "fadd", 2))
host_sub32 = _placeholder("host_sub32", _host_float(32, "fsub", 2))
host_mul32 = _placeholder("host_mul32", _host_float(32, "fmul", 2))
host_div32 = _placeholder("host_div32", _host_float(32, "fdiv", 2))
host_sqrt32 = _placeholder("host_sqrt32", _host_float(32, "llvm.sqrt", 1))
host_fma32 = _placeholder("host_fma32", _host_float(32, "llvm.fma", 3))
host_add64 = _placeholder("host_add64", _host_float(64, "fadd", 2))
host_sub64 = _placeholder("host_sub64", _host_float(64, "fsub", 2))
host_mul64 = _placeholder("host_mul64", _host_float(64, "fmul", 2))
host_div64 = _placeholder("host_div64", _host_float(64, "fdiv", 2))
host_sqrt64 = _placeholder("host_sqrt64", _host_float(64, "llvm.sqrt", 1))
host_fma64 = _placeholder("host_fma64", _host_float(64, "llvm.fma", 3))


def _bound(name: str) -> Emitter:
    def emit(c: FunctionCompiler, n: ast.Call) -> Value:
        raise c.fail(n, f"{name} belongs in instruction semantics")

    return emit


def state_at(address: int) -> State:
    """Another hart's state block, as the argument of a native function (bound by the compiler itself)."""
    raise NotImplementedError


# Guest memory, as instruction semantics see it: virtual addresses, precise faults. The handler's compiler
# binds them (serai.machine.native.interpreter).
load = _placeholder("load", _bound("load"))
store = _placeholder("store", _bound("store"))
read_pointer = _placeholder("read_pointer", _bound("read_pointer"))
write_pointer = _placeholder("write_pointer", _bound("write_pointer"))
