"""Restricted Python compiled to LLVM IR text: the one language of instruction semantics and of the runtime.

A function of this language is ordinary, type-checkable Python that is never executed: its source is parsed
and translated. Values are 64-bit unsigned integers (``int``) or 128-bit ones (annotated ``u128``);
arithmetic wraps. Statements: assignment, ``if``, ``while``, ``break``, ``continue``, ``return``, calls.
``s`` names the hart's state block: ``s.field`` and ``s.array[i]`` read and write it. Comparisons are
unsigned; signed ones and everything the operators do not cover are the intrinsics of
``serai.machine.native.intrinsics``. A global integer is a constant, another native function is called.
"""

# ruff: noqa: D102, N802 - on_X and do_X translate the node class X of ast
from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from serai.machine.native.layout import FIELDS

__all__ = ["FunctionCompiler", "LanguageError", "Value", "compile_function", "function_ast", "native", "u128"]

u128: TypeAlias = int  # the annotation that makes a local variable 128 bits wide
M64 = (1 << 64) - 1

NativeFunction = Callable[..., Any]
F = TypeVar("F", bound=NativeFunction)
NATIVE_FUNCTIONS: dict[str, NativeFunction] = {}


def native(function: F) -> F:
    """Register ``function`` as part of the native runtime (internal linkage, C calling convention)."""
    other = NATIVE_FUNCTIONS.setdefault(function.__name__, function)
    if other.__code__.co_filename != function.__code__.co_filename:
        raise ValueError(f"two native functions are called {function.__name__}")
    return function


class LanguageError(Exception):
    """The source uses something that the restricted language does not have."""


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value or constant: its LLVM type and its text."""

    type: str
    text: str


@functools.cache
def function_ast(function: Callable[..., Any]) -> ast.FunctionDef:
    """Parse the source of ``function``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise LanguageError(f"{function!r} is not a plain function")
    return tree


BINARY = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.BitAnd: "and",
    ast.BitOr: "or",
    ast.BitXor: "xor",
    ast.LShift: "shl",
    ast.RShift: "lshr",
    ast.FloorDiv: "udiv",
    ast.Mod: "urem",
}
COMPARE = {ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "ult", ast.LtE: "ule", ast.Gt: "ugt", ast.GtE: "uge"}


@dataclass
class FunctionCompiler:
    """Translates one function; subclasses bind names, returns and some calls differently."""

    function: Callable[..., Any]
    constants: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    entry: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    loops: list[tuple[str, str]] = field(default_factory=list)
    counter: int = 0
    terminated: bool = False
    externals: set[str] = field(default_factory=set)

    # -- text ------------------------------------------------------------------------------------------

    def fresh(self, prefix: str = "t") -> str:
        """Return a new local name."""
        self.counter += 1
        return f"%{prefix}{self.counter}"

    def emit(self, line: str) -> None:
        """Append an instruction to the current block."""
        self.lines.append("  " + line)

    def assign(self, type_: str, expression: str) -> Value:
        """Append ``%new = expression`` and return the value."""
        name = self.fresh()
        self.emit(f"{name} = {expression}")
        return Value(type_, name)

    def label(self, name: str) -> None:
        """Start the block ``name`` (given with its %)."""
        if not self.terminated:
            self.emit(f"br label {name}")
        self.lines.append(f"{name[1:]}:")
        self.terminated = False

    def branch(self, condition: Value, then: str, otherwise: str, *, unlikely: bool = False) -> None:
        """Branch on an i1; ``unlikely`` marks the first target as cold."""
        hint = ", !prof !1" if unlikely else ""
        self.emit(f"br i1 {condition.text}, label {then}, label {otherwise}{hint}")
        self.terminated = True

    def fail(self, node: ast.AST, why: str) -> LanguageError:
        line = getattr(node, "lineno", 0)
        return LanguageError(f"{self.function.__module__}.{self.function.__name__}, line {line}: {why}")

    # -- conversions -----------------------------------------------------------------------------------

    def as_type(self, value: Value, type_: str) -> Value:
        """Widen or narrow an integer value (zero extension, truncation)."""
        if value.type == type_:
            return value
        order = ["i1", "i8", "i16", "i32", "i64", "i128"]
        if not value.text.startswith("%"):
            number = {"true": 1, "false": 0}.get(value.text)
            number = int(value.text) if number is None else number
            return Value(type_, str(number))
        verb = "zext" if order.index(value.type) < order.index(type_) else "trunc"
        return self.assign(type_, f"{verb} {value.type} {value.text} to {type_}")

    def as_condition(self, value: Value) -> Value:
        if value.type == "i1":
            return value
        return self.assign("i1", f"icmp ne {value.type} {value.text}, 0")

    def i64(self, node: ast.expr) -> Value:
        """Evaluate ``node`` as a 64-bit integer."""
        return self.as_type(self.expression(node), "i64")

    # -- expressions -----------------------------------------------------------------------------------

    def constant(self, node: ast.expr) -> int | None:  # noqa: PLR0911
        """The value of a constant expression, None if it is not one."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return int(node.value)
        if isinstance(node, ast.Name) and node.id not in self.variables:
            found = self.constants.get(node.id, self.function.__globals__.get(node.id))
            return int(found) if isinstance(found, int) else None
        if isinstance(node, ast.UnaryOp):
            inner = self.constant(node.operand)
            if inner is None:
                return None
            return {ast.USub: -inner, ast.Invert: ~inner, ast.Not: int(not inner)}.get(type(node.op))
        if isinstance(node, ast.BinOp):
            left, right = self.constant(node.left), self.constant(node.right)
            if left is None or right is None:
                return None
            operations: dict[type, Callable[[int, int], int]] = {
                ast.Add: lambda a, b: a + b,
                ast.Sub: lambda a, b: a - b,
                ast.Mult: lambda a, b: a * b,
                ast.LShift: lambda a, b: a << b,
                ast.RShift: lambda a, b: a >> b,
                ast.BitOr: lambda a, b: a | b,
                ast.BitAnd: lambda a, b: a & b,
                ast.BitXor: lambda a, b: a ^ b,
            }
            operation = operations.get(type(node.op))
            return operation(left, right) if operation else None
        return None

    def expression(self, node: ast.expr) -> Value:
        """Evaluate an expression."""
        constant = self.constant(node)
        if constant is not None:
            wide = not -(1 << 63) <= constant <= M64
            return Value("i128" if wide else "i64", str(constant if wide else signed64(constant)))
        method = getattr(self, f"on_{type(node).__name__}", None)
        if method is None:
            raise self.fail(node, f"no {type(node).__name__} in the language")
        value: Value = method(node)
        return value

    def on_Name(self, node: ast.Name) -> Value:
        type_ = self.variables.get(node.id)
        if type_ is None:
            return self.unbound(node)
        return self.assign(type_, f"load {type_}, ptr %v.{node.id}")

    def unbound(self, node: ast.Name) -> Value:
        """A name that is neither a variable nor a constant; subclasses bind operands here."""
        raise self.fail(node, f"unknown name {node.id}")

    def state_pointer(self, node: ast.Attribute | ast.Subscript) -> tuple[str, str]:
        """The address and type of ``s.field`` or ``s.array[i]``."""
        attribute = node.value if isinstance(node, ast.Subscript) else node
        if not (
            isinstance(attribute, ast.Attribute)
            and isinstance(attribute.value, ast.Name)
            and attribute.value.id == "s"
            and attribute.attr in FIELDS
        ):
            raise self.fail(node, "only fields of the state block s have attributes")
        place = FIELDS[attribute.attr]
        pointer = self.assign("ptr", f"getelementptr i8, ptr %s, i64 {place.offset}").text
        if isinstance(node, ast.Subscript):
            index = self.i64(node.slice)
            pointer = self.assign("ptr", f"getelementptr i64, ptr {pointer}, i64 {index.text}").text
        elif place.count != 1:
            return pointer, "ptr"
        return pointer, "i64"

    def on_Attribute(self, node: ast.Attribute) -> Value:
        pointer, type_ = self.state_pointer(node)
        if type_ == "ptr":  # the address of an array
            return self.assign("i64", f"ptrtoint ptr {pointer} to i64")
        return self.assign("i64", f"load i64, ptr {pointer}")

    def on_Subscript(self, node: ast.Subscript) -> Value:
        pointer, _ = self.state_pointer(node)
        return self.assign("i64", f"load i64, ptr {pointer}")

    def binary(self, operator: ast.operator, left: Value, right: Value, node: ast.AST) -> Value:
        verb = BINARY.get(type(operator))
        if verb is None:
            raise self.fail(node, f"no operator {type(operator).__name__}")
        type_ = "i128" if "i128" in (left.type, right.type) else "i64"
        left, right = self.as_type(left, type_), self.as_type(right, type_)
        return self.assign(type_, f"{verb} {type_} {left.text}, {right.text}")

    def on_BinOp(self, node: ast.BinOp) -> Value:
        return self.binary(node.op, self.expression(node.left), self.expression(node.right), node)

    def on_UnaryOp(self, node: ast.UnaryOp) -> Value:
        value = self.expression(node.operand)
        if isinstance(node.op, ast.Not):
            value = self.as_condition(value)
            return self.assign("i1", f"xor i1 {value.text}, true")
        value = self.as_type(value, "i128" if value.type == "i128" else "i64")
        if isinstance(node.op, ast.USub):
            return self.assign(value.type, f"sub {value.type} 0, {value.text}")
        return self.assign(value.type, f"xor {value.type} {value.text}, -1")

    def on_Compare(self, node: ast.Compare) -> Value:
        operands = [node.left, *node.comparators]
        parts = [self.pair(*pair) for pair in zip(operands[:-1], node.ops, operands[1:], strict=True)]
        return functools.reduce(lambda a, b: self.assign("i1", f"and i1 {a.text}, {b.text}"), parts)

    def pair(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Value:
        """One comparison; ``in`` compares with each member."""
        if isinstance(operator, ast.In) and isinstance(right, ast.Tuple | ast.Set):
            equal = [self.pair(left, ast.Eq(), member) for member in right.elts]
            return functools.reduce(lambda a, b: self.assign("i1", f"or i1 {a.text}, {b.text}"), equal)
        if isinstance(operator, ast.NotIn):
            found = self.pair(left, ast.In(), right)
            return self.assign("i1", f"xor i1 {found.text}, true")
        return self.compare(COMPARE[type(operator)], self.expression(left), self.expression(right))

    def compare(self, predicate: str, left: Value, right: Value) -> Value:
        """Compare two integers with an LLVM predicate."""
        type_ = "i128" if "i128" in (left.type, right.type) else "i64"
        left, right = self.as_type(left, type_), self.as_type(right, type_)
        return self.assign("i1", f"icmp {predicate} {type_} {left.text}, {right.text}")

    def on_BoolOp(self, node: ast.BoolOp) -> Value:
        result, done = self.slot("i1"), self.fresh("done")
        for position, part in enumerate(node.values):
            value = self.as_condition(self.expression(part))
            self.emit(f"store i1 {value.text}, ptr {result}")
            if position + 1 < len(node.values):
                more = self.fresh("more")
                targets = (more, done) if isinstance(node.op, ast.And) else (done, more)
                self.branch(value, *targets)
                self.label(more)
        self.label(done)
        return self.assign("i1", f"load i1, ptr {result}")

    def on_IfExp(self, node: ast.IfExp) -> Value:
        then, otherwise, done = self.fresh("then"), self.fresh("else"), self.fresh("done")
        self.branch(self.as_condition(self.expression(node.test)), then, otherwise)
        self.label(then)
        left = self.expression(node.body)
        type_ = "i128" if left.type == "i128" else "i64"
        result = self.slot(type_)
        self.emit(f"store {type_} {self.as_type(left, type_).text}, ptr {result}")
        self.emit(f"br label {done}")
        self.terminated = True
        self.label(otherwise)
        right = self.as_type(self.expression(node.orelse), type_)
        self.emit(f"store {type_} {right.text}, ptr {result}")
        self.label(done)
        return self.assign(type_, f"load {type_}, ptr {result}")

    def slot(self, type_: str) -> str:
        """Return a stack slot; LLVM's sroa turns it back into values."""
        name = self.fresh("slot")
        self.entry.append(f"  {name} = alloca {type_}")
        return name

    def on_Call(self, node: ast.Call) -> Value:
        from serai.machine.native.intrinsics import INTRINSICS  # noqa: PLC0415 - mutual

        if not isinstance(node.func, ast.Name) or node.keywords:
            raise self.fail(node, "only plain calls of named functions")
        name = node.func.id
        special = self.special_call(name, node)
        if special is not None:
            return special
        if name in INTRINSICS:
            return INTRINSICS[name](self, node)
        arguments = []
        for argument in node.args:
            if isinstance(argument, ast.Name) and argument.id == "s":
                arguments.append("ptr %s")
            elif isinstance(argument, ast.Call) and getattr(argument.func, "id", "") == "state_at":
                address = self.i64(argument.args[0])
                arguments.append(f"ptr {self.assign('ptr', f'inttoptr i64 {address.text} to ptr').text}")
            else:
                arguments.append(f"i64 {self.i64(argument).text}")
        callee = self.constants_name(name)
        self.externals.add(callee)
        return self.assign("i64", f"call i64 @{callee}({', '.join(arguments)})")

    def constants_name(self, name: str) -> str:
        """The symbol that a called function stands for; checked when the module is linked together."""
        return name

    def special_call(self, name: str, node: ast.Call) -> Value | None:
        """Give subclasses their own meaning of a call."""
        return None

    # -- statements ------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> None:
        """Translate statements in order; nothing after a return is translated."""
        for statement in body:
            if self.terminated:
                return
            method = getattr(self, f"do_{type(statement).__name__}", None)
            if method is None:
                raise self.fail(statement, f"no {type(statement).__name__} in the language")
            method(statement)

    def declare(self, name: str, type_: str) -> None:
        if name not in self.variables:
            self.variables[name] = type_
            self.entry.append(f"  %v.{name} = alloca {type_}")

    def store_to(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.declare(target.id, "i128" if value.type == "i128" else "i64")
            type_ = self.variables[target.id]
            self.emit(f"store {type_} {self.as_type(value, type_).text}, ptr %v.{target.id}")
        elif isinstance(target, ast.Attribute | ast.Subscript):
            value = self.as_type(value, "i64")
            pointer, _ = self.state_pointer(target)
            self.emit(f"store i64 {value.text}, ptr {pointer}")
        else:
            raise self.fail(target, "cannot assign to this")

    def do_Assign(self, node: ast.Assign) -> None:
        value = self.expression(node.value)
        for target in node.targets:
            self.store_to(target, value)

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        assert isinstance(node.target, ast.Name) and isinstance(node.annotation, ast.Name)
        self.declare(node.target.id, "i128" if node.annotation.id == "u128" else "i64")
        if node.value is not None:
            self.store_to(node.target, self.expression(node.value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        load = node.target
        current = self.expression(load)
        self.store_to(node.target, self.binary(node.op, current, self.expression(node.value), node))

    def do_If(self, node: ast.If) -> None:
        constant = self.constant(node.test)
        if constant is not None:
            self.block(node.body if constant else node.orelse)
            return
        then, otherwise, done = self.fresh("then"), self.fresh("else"), self.fresh("done")
        self.branch(self.as_condition(self.expression(node.test)), then, otherwise)
        self.label(then)
        self.block(node.body)
        ended = self.terminated
        if not ended:
            self.emit(f"br label {done}")
            self.terminated = True
        self.label(otherwise)
        self.block(node.orelse)
        if self.terminated and ended:
            return
        self.label(done)

    def do_While(self, node: ast.While) -> None:
        head, body, done = self.fresh("head"), self.fresh("body"), self.fresh("done")
        self.label(head)
        if self.constant(node.test):
            self.emit(f"br label {body}")
            self.terminated = True
        else:
            self.branch(self.as_condition(self.expression(node.test)), body, done)
        self.loops.append((head, done))
        self.label(body)
        self.block(node.body)
        if not self.terminated:
            self.emit(f"br label {head}")
            self.terminated = True
        self.loops.pop()
        self.label(done)

    def do_Break(self, node: ast.Break) -> None:
        self.emit(f"br label {self.loops[-1][1]}")
        self.terminated = True

    def do_Continue(self, node: ast.Continue) -> None:
        self.emit(f"br label {self.loops[-1][0]}")
        self.terminated = True

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.expression(node.value)

    def do_Return(self, node: ast.Return) -> None:
        value = self.i64(node.value) if node.value is not None else Value("i64", "0")
        self.emit(f"ret i64 {value.text}")
        self.terminated = True


def signed64(value: int) -> int:
    """Write a 64-bit constant as LLVM's signed decimal."""
    value &= M64
    return value - (1 << 64) if value >> 63 else value


def compile_function(
    function: Callable[..., Any],
    *,
    name: str,
    constants: dict[str, int],
    exported: bool = False,
    cold: bool = False,
) -> tuple[str, set[str]]:
    """Translate ``function`` to IR text; also return the names of the functions it calls."""
    compiler = FunctionCompiler(function, constants)
    tree = function_ast(function)
    parameters = []
    for argument in tree.args.args:
        if argument.arg == "s":
            parameters.append("ptr %s")
            continue
        parameters.append(f"i64 %a.{argument.arg}")
        compiler.declare(argument.arg, "i64")
        compiler.entry.append(f"  store i64 %a.{argument.arg}, ptr %v.{argument.arg}")
    compiler.block(tree.body)
    if not compiler.terminated:
        compiler.emit("ret i64 0")
    linkage = "" if exported else "internal "
    attributes = " noinline" if cold else ""
    head = f"define {linkage}i64 @{name}({', '.join(parameters)}){attributes} #0 {{"
    return "\n".join([head, "entry:", *compiler.entry, *compiler.lines, "}"]), compiler.externals
