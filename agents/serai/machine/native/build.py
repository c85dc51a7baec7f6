"""Assemble the IR of the machine, compile it with LLVM, and keep the object in a cache on disk.

A warm start reads the object and imports neither llvmlite nor the generators' sources.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import logging
import os
import platform
import tempfile
from pathlib import Path

from serai.machine.errors import CodeError
from serai.machine.native.loader import LoadedObject, load_object

__all__ = [
    "cache_directory",
    "cache_key",
    "compile_machine",
    "host_constants",
    "import_semantics",
    "load_machine",
    "machine_ir",
    "read_cache",
    "sources",
    "write_cache",
]

EXPORTED = (
    "collect_dirty",
    "csr_read",
    "csr_write",
    "fetch_half",
    "flush_all",
    "flush_code",
    "flush_range",
    "guest_time",
    "host_cycles",
    "start_code",
    "stop_dirty",
    "update_timer",
    "written_by_device",
)
SEMANTICS = ("base", "atomic", "float_", "system", "compressed")
RUNTIME = ("jumps", "pages", "pmp", "memory", "fetch", "traps", "csr", "softfloat")

log = logging.getLogger(__name__)

_TAIL = """
declare i1 @llvm.expect.i1(i1, i1)
declare i64 @llvm.readcyclecounter()
declare i64 @llvm.ctlz.i64(i64, i1)
declare i128 @llvm.ctlz.i128(i128, i1)
declare float @llvm.sqrt.f32(float)
declare double @llvm.sqrt.f64(double)
declare float @llvm.fma.f32(float, float, float)
declare double @llvm.fma.f64(double, double, double)
attributes #0 = { nounwind "no-builtins" "frame-pointer"="none" }
!1 = !{!"branch_weights", i32 1, i32 2000}
"""


def sources() -> list[Path]:
    """Everything that generated code depends on."""
    root = Path(__file__).resolve().parent.parent
    return sorted([*root.glob("native/**/*.py"), *root.glob("isa/**/*.py")])


def _cpu_identity() -> str:
    """What code generation depends on, without LLVM: the features the kernel reports."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def cache_key(paths: list[Path]) -> str:
    """What the code made from these sources for this CPU is called."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(_cpu_identity().encode() + platform.machine().encode())
    digest.update(importlib.metadata.version("llvmlite").encode())
    return digest.hexdigest()[:32]


def cache_directory() -> Path:
    """Where compiled code is kept: $XDG_CACHE_HOME/serai/machine (XDG Base Directory Specification)."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "serai" / "machine"


def import_semantics() -> None:
    """Complete the table of instructions and the runtime."""
    for name in SEMANTICS:
        importlib.import_module(f"serai.machine.isa.{name}")
    for name in RUNTIME:
        importlib.import_module(f"serai.machine.native.runtime.{name}")


def machine_ir(constants: dict[str, int] | None = None) -> str:
    """Return the LLVM IR of the complete machine: handlers, decoder, runtime."""
    import_semantics()
    importlib.import_module("serai.machine.native.translator.copier")
    decoder = importlib.import_module("serai.machine.native.decoder")
    interpreter = importlib.import_module("serai.machine.native.interpreter")
    language = importlib.import_module("serai.machine.native.language")
    stubs = importlib.import_module("serai.machine.native.stubs")
    constants = {**(constants or {}), "ADD_OPERATION": interpreter.operation_number("add")}
    texts, needed = interpreter.interpreter_ir(constants)
    texts += [*stubs.stubs_ir(), decoder.decoder_ir()]
    pending = {*needed, *stubs.RUNTIME_NEEDED, *EXPORTED}
    done = {"decode_word"}
    while pending - done:
        name = min(pending - done)
        done.add(name)
        if name not in language.NATIVE_FUNCTIONS:
            raise CodeError(f"the machine's runtime has no function {name}")
        text, calls = language.compile_function(
            language.NATIVE_FUNCTIONS[name], name=name, constants=constants, exported=name in EXPORTED
        )
        texts.append(text)
        pending |= calls
    return "\n\n".join([*texts, _TAIL])


def host_constants() -> dict[str, int]:
    """What the semantics may know about the host's CPU."""
    from llvmlite import binding as llvm  # noqa: PLC0415 - as below

    return {"HOST_HAS_FMA": int(bool(llvm.get_host_cpu_features().get("fma")))}


def compile_machine(*, baseline: bool = False) -> bytes:
    """Compile the machine for this CPU, or for any x86-64 one; return the ELF object. Takes seconds."""
    from llvmlite import binding as llvm  # noqa: PLC0415 - costs 0.3 s and 46 MB, only on a cold start

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu="x86-64" if baseline else llvm.get_host_cpu_name(),
        features="" if baseline else features.flatten(),
        opt=2,
        reloc="pic",
        codemodel="small",
    )
    module = llvm.parse_assembly(
        machine_ir({"HOST_HAS_FMA": int(not baseline and bool(features.get("fma")))})
    )
    module.triple = llvm.get_default_triple()
    module.data_layout = str(target.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = target.emit_object(module)
    return code


def write_cache(path: Path, code: bytes) -> None:
    """Write atomically, so that processes starting at once see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def read_cache(path: Path) -> bytes | None:
    """Return the object in the cache, None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code = content[32:]
    return code if hashlib.sha256(code).digest() == content[:32] else None


@functools.cache
def load_machine() -> LoadedObject:
    """Load the machine's code into this process, compiling it if the cache has none for this CPU.

    Raises CodeError if that cannot be done on this host.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise CodeError(f"the emulated machine runs on x86-64 hosts, not on {platform.machine()}")
    path = cache_directory() / f"{cache_key(sources())}.o"
    code = read_cache(path)
    if code is None:
        log.info("compiling the machine for this CPU (once)")
        code = compile_machine()
        try:
            write_cache(path, code)
        except OSError as error:
            log.warning("cannot keep the compiled machine in %s: %s", path.parent, error)
    return load_object(code)
