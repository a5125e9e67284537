"""The draws of ``generator`` as one loop in machine code: the same integers, the same single roundings, one pass.

Used on the CPU where llvmlite is installed and enough is drawn to pay for compiling (a few hundredths of a second,
once per process). LLVM fuses no multiplication with an addition unless it is told that it may, so the bits are those
of the torch program.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_float, c_int64, c_void_p
from functools import cache
from typing import Any

WORTHWHILE = 1 << 17  # elements of one draw

Fill = Callable[[int, int, int, int, float, int, int], None]


def source(join_1: int, join_2: int, fraction_bits: int, first_segment: int) -> str:
    """LLVM assembly of ``normal`` and ``uniform``.

    Arguments of both: where to write, how many, mixed places, block key, scale, and the table (constants, slopes).
    """
    bits = f"""
  %at = getelementptr i64, ptr %places, i64 %i
  %place = load i64, ptr %at
  %joined = xor i64 %place, %key
  %once = mul i64 %joined, {join_1}
  %high = ashr i64 %once, 32
  %mixed = xor i64 %once, %high
  %twice = mul i64 %mixed, {join_2}
  %top = lshr i64 %twice, 32
  %bits = trunc i64 %top to i32"""
    normal = f"""
  %size = and i32 %bits, {0x7FFFFFFF}
  %whole = sitofp i32 %size to float
  %magnitude = fadd float %whole, 5.0e-01
  %pattern = bitcast float %magnitude to i32
  %exponent = lshr i32 %pattern, {fraction_bits}
  %segment = sub i32 %exponent, {first_segment}
  %wide = sext i32 %segment to i64
  %fraction = and i32 %pattern, {(1 << fraction_bits) - 1}
  %along = sitofp i32 %fraction to float
  %slope.at = getelementptr float, ptr %slopes, i64 %wide
  %slope = load float, ptr %slope.at
  %constant.at = getelementptr float, ptr %constants, i64 %wide
  %constant = load float, ptr %constant.at
  %rise = fmul float %slope, %along
  %value = fadd float %rise, %constant
  %value.bits = bitcast float %value to i32
  %sign = and i32 %bits, {-0x80000000}
  %signed.bits = xor i32 %value.bits, %sign
  %unit = bitcast i32 %signed.bits to float"""
    uniform = """
  %shifted = ashr i32 %bits, 8
  %whole = sitofp i32 %shifted to float
  %half = fadd float %whole, 5.0e-01
  %unit = fmul float %half, 0x3E80000000000000"""
    return "\n".join(_function(name, bits + body) for name, body in (("normal", normal), ("uniform", uniform)))


def _function(name: str, body: str) -> str:
    arguments = "ptr noalias %out, i64 %n, ptr noalias %places, i64 %key, float %scale, ptr noalias %constants, "
    return f"""
define void @{name}({arguments}ptr noalias %slopes) {{
entry:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %loop, label %done
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]{body}
  %scaled = fmul float %unit, %scale
  %to = getelementptr float, ptr %out, i64 %i
  store float %scaled, ptr %to
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}"""


@cache
def compiled(join_1: int, join_2: int, fraction_bits: int, first_segment: int) -> dict[str, Fill] | None:
    """The two functions, None without llvmlite."""
    try:
        import llvmlite.binding as llvm
    except ModuleNotFoundError:
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(source(join_1, join_2, fraction_bits, first_segment))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    kind = CFUNCTYPE(None, c_void_p, c_int64, c_void_p, c_int64, c_float, c_void_p, c_void_p)
    found: dict[str, Any] = {name: kind(engine.get_function_address(name)) for name in ("normal", "uniform")}
    _ENGINES.append(engine)  # the code lives as long as its engine
    return found


_ENGINES: list[Any] = []
