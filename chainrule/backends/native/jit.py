"""LLVM text to callable machine code, and the cache of object files.

The cache is a directory of the user's alone; an entry's name covers the text, LLVM's version and the CPU with its
features, and its content starts with a checksum: an entry that does not match is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from chainrule.errors import MissingExtraError

_LOCK = threading.RLock()


@dataclass(frozen=True)
class Target:
    """What code is made for: ``bytes`` per vector and ``registers`` of that width."""

    triple: str
    cpu: str
    features: str
    bytes: int
    registers: int


def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ModuleNotFoundError as error:
        raise MissingExtraError("the native back end", "llvmlite", "torch") from error
    return llvm


@cache
def _started() -> Any:
    llvm = _llvm()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@cache
def host() -> Target:
    """This machine."""
    llvm = _started()
    features = llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    if triple.startswith(("aarch64", "arm64")):
        width, registers = 16, 32
    elif features.get("avx512vl"):
        width, registers = 32, 32  # 256 bits: as fast as 512 where those are two halves, and less is padded
    elif features.get("avx2") and features.get("fma"):
        width, registers = 32, 16
    else:
        width, registers = 16, 16
    return Target(triple, llvm.get_host_cpu_name(), features.flatten(), width, registers)


@dataclass(eq=False)
class Module:
    """Machine code in this process; ``address(name)`` of its functions. ``cached``: read from the cache."""

    engine: Any
    cached: bool

    def address(self, name: str) -> int:
        """Where a function is."""
        return self.engine.get_function_address(name)


def compile_text(text: str, target: Target | None = None) -> Module:
    """The machine code of LLVM text, from the cache where it is there."""
    target = target or host()
    key = hashlib.blake2b(
        "\0".join(
            [text, ".".join(map(str, _llvm().llvm_version_info)), target.triple, target.cpu, target.features]
        ).encode(),
        digest_size=20,
    ).hexdigest()
    directory = cache_directory()
    data = _read(directory / f"{key}.o") if directory is not None else None
    with _LOCK:
        llvm = _started()
        machine = _machine(target)
        if data is None:
            module = llvm.parse_assembly(text)
            module.triple, module.data_layout = target.triple, str(machine.target_data)
            module.verify()
            data, cached = machine.emit_object(module), False
            if directory is not None:
                _write(directory / f"{key}.o", data)
        else:
            cached = True
        empty = llvm.parse_assembly("")
        empty.triple = target.triple
        engine = llvm.create_mcjit_compiler(empty, _machine(target, fresh=True))
        engine.add_object_file(llvm.ObjectFileRef.from_data(data))
        engine.finalize_object()
    return Module(engine, cached)


def assembly(text: str, triple: str, cpu: str = "", features: str = "") -> str:
    """Assembly of LLVM text for any target: to look at."""
    llvm = _started()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3)
    with _LOCK:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = triple, str(machine.target_data)
        module.verify()
        return machine.emit_assembly(module)


_MACHINES: dict[Target, Any] = {}


def _machine(target: Target, fresh: bool = False) -> Any:
    if fresh or target not in _MACHINES:
        llvm = _started()
        made = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3
        )
        if fresh:
            return made
        _MACHINES[target] = made
    return _MACHINES[target]


# ---- the cache ---------------------------------------------------------------------------------------------
def cache_directory() -> Path | None:
    """Where compiled objects are kept, or None where no directory belongs to the user alone.

    ``CHAINRULE_CACHE`` names another place; empty switches the cache off.
    """
    named = os.environ.get("CHAINRULE_CACHE")
    if named == "":
        return None
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chainrule"
    path = base / "native"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = path.lstat()
    except (OSError, RuntimeError):
        return None
    if hasattr(os, "getuid") and (held.st_uid != os.getuid() or not stat.S_ISDIR(held.st_mode) or held.st_mode & 0o022):
        return None
    return path


def _read(path: Path) -> bytes | None:
    try:
        held = path.lstat()
        if not stat.S_ISREG(held.st_mode) or (hasattr(os, "getuid") and held.st_uid != os.getuid()):
            return None
        data = path.read_bytes()
    except OSError:
        return None
    check, body = data[:20], data[20:]
    return body if hashlib.blake2b(body, digest_size=20).digest() == check else None


def _write(path: Path, body: bytes) -> None:
    """Atomically: a reader sees the whole entry or none."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.blake2b(body, digest_size=20).digest() + body)
        os.replace(name, path)
    except OSError:
        return


def function(module: Module, name: str, arguments: int) -> Any:
    """A function of pointer-sized integers; the interpreter lock is released while it runs."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    return kind(module.address(name))
