"""LLVM text to callable machine code, and the cache of object files.

The cache is a directory of the user's alone; an entry's name covers the text, LLVM's version and the CPU with its
features, and its content starts with a checksum: an entry that does not match is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
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
    if _keeps_registers(llvm.get_process_triple()):
        llvm.set_option("chainrule", "-optimize-regalloc")  # in quick code too: half of its work is loads otherwise
    return llvm


def _keeps_registers(triple: str) -> bool:
    """Whether quick code is allocated registers as good code is."""
    return triple.startswith("x86_64")


def quick_loses(target: Target) -> float:
    """The share of its time that better code saves: about that much on perceptrons, convolutions and physics."""
    return 0.15 if _keeps_registers(target.triple) else 0.65


def start() -> None:
    """Loads LLVM and reads what keys of the cache depend on, ahead of the first program; nothing without llvmlite."""
    try:
        host()
        version()
    except MissingExtraError:
        return


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


def compiled(text: str, target: Target, quick: bool = False) -> bytes:
    """The object code of LLVM text. ``quick``: made in half of the time, see :func:`quick_loses`."""
    with _LOCK:
        llvm = _started()
        machine = _machine(target, 0 if quick else 3)
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = target.triple, str(machine.target_data)
        module.verify()
        return machine.emit_object(module)


def loaded(code: bytes, target: Target) -> Any:
    """Object code in this process: an engine whose ``get_function_address`` finds functions."""
    with _LOCK:
        llvm = _started()
        empty = llvm.parse_assembly("")
        empty.triple = target.triple
        engine = llvm.create_mcjit_compiler(empty, _machine(target, fresh=True))
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
    return engine


def function(engine: Any, name: str, arguments: int) -> Any:
    """A function of pointer-sized integers; the interpreter lock is released while it runs."""
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    return kind(engine.get_function_address(name))


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


_MACHINES: dict[tuple[Target, int], Any] = {}


def _machine(target: Target, effort: int = 3, fresh: bool = False) -> Any:
    if fresh or (target, effort) not in _MACHINES:
        llvm = _started()
        made = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=effort
        )
        if fresh:
            return made
        _MACHINES[target, effort] = made
    return _MACHINES[target, effort]


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


def read(key: str) -> tuple[dict[str, Any], bytes] | None:
    """(description, object code) of an entry of the cache; None where it is missing or damaged."""
    directory = cache_directory()
    if directory is None:
        return None
    path = directory / f"{key}.o"
    try:
        held = path.lstat()
        if not stat.S_ISREG(held.st_mode) or (hasattr(os, "getuid") and held.st_uid != os.getuid()):
            return None
        data = path.read_bytes()
        check, body = data[:20], data[20:]
        if hashlib.blake2b(body, digest_size=20).digest() != check:
            return None
        length = int.from_bytes(body[:8], "little")
        return json.loads(body[8 : 8 + length]), body[8 + length :]
    except (OSError, ValueError):
        return None


def write(key: str, description: dict[str, Any], code: bytes) -> None:
    """Puts an entry into the cache, atomically: a reader sees the whole of it or nothing."""
    directory = cache_directory()
    if directory is None:
        return
    head = json.dumps(description).encode()
    body = len(head).to_bytes(8, "little") + head + code
    try:
        handle, name = tempfile.mkstemp(dir=directory, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.blake2b(body, digest_size=20).digest() + body)
        os.replace(name, directory / f"{key}.o")
    except OSError:
        return


def forget(key: str) -> None:
    """Takes an entry out of the cache."""
    directory = cache_directory()
    if directory is not None:
        (directory / f"{key}.o").unlink(missing_ok=True)


@cache
def version() -> str:
    """What the emitted code depends on besides the graph: this package's own sources and LLVM."""
    package = Path(__file__).resolve().parents[2]
    state = hashlib.blake2b(digest_size=12)
    for folder in ("backends/native", "ops"):
        for path in sorted((package / folder).glob("*.py")):
            state.update(path.read_bytes())
    return ".".join(map(str, _llvm().llvm_version_info)) + "-" + state.hexdigest()
