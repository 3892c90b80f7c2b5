"""Compiles the kernels for GPUs that need not be there; prints what came out as JSON. Run without TRITON_INTERPRET."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dar.kernels import backward, forward, pull
from dar.kernels.table import num_stages, num_warps, row_parts

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
FLOATS = {"scale", "eps", "count"}
OF_THE_SOURCES_TYPE = {
    "mixture", "mixtures", "start_mixtures", "d_mixture", "d_sources", "start", "d_targets",
}  # fmt: skip
TABLES = {"table", "targets", "d_mixtures"}
QUERIES = {"query", "queries"}
SINGLES = {
    "largest", "totals", "start_largest", "start_totals", "logits", "lse", "delta", "coefficients",
    "d_logits", "d_query",
}  # fmt: skip
ALIGNED = {"source_b", "source_t", "query_p", "query_b", "query_t", "query_slot", "dim"}


def type_of(name: str, kernel: triton.JITFunction, dtype: str) -> str:
    if name in TABLES or (kernel is pull._pull and name == "logits"):
        return "*i64"
    if name == "queries" and kernel is pull._pull:
        return f"*{dtype}"
    if name in SINGLES or name in QUERIES:  # queries are parameters, float32 whatever the sources are
        return "*fp32"
    if name in OF_THE_SOURCES_TYPE:
        return f"*{dtype}"
    return "fp32" if name in FLOATS else "i32"


def compiled(
    kernel: triton.JITFunction, dtype: str, dim: int, capability: int, held: int, **constants: object
) -> dict[str, int]:
    """Registers, bytes of stack, and 16-byte loads and stores of a kernel for one shape and chip."""
    head, tail = row_parts(dim)
    constants |= {"DTYPE": getattr(tl, {"bf16": "bfloat16", "fp32": "float32"}[dtype])}
    constants |= {"HEAD": head, "TAIL": tail, "ALIGNED": True, "STAGES": num_stages({"bf16": 2, "fp32": 4}[dtype])}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else type_of(name, kernel, dtype)
        if signature[name].startswith("*") or name in ALIGNED:
            attributes[(i,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=attributes)
    binary = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps(held, head + tail)}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    ptx = binary.asm["ptx"]
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage.stdout)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", usage.stdout)[0]),
        "wide_loads": len(re.findall(r"ld\.global[.\w:]*\.v4", ptx)),
        "wide_pipelined_loads": len(re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, 0x10,", ptx)),
        "wide_stores": len(re.findall(r"st\.global[.\w:]*\.v4", ptx)),
    }


VARIANTS = {  # name: kernel, rows held, constants
    "one pass": (forward._forward, 3, {"P": 1, "START": False, "FINISH": True}),
    "first phase": (forward._forward, 9, {"P": 4, "START": False, "FINISH": False}),
    "second phase": (forward._forward, 3, {"P": 1, "START": True, "FINISH": True}),
    "backward": (backward._backward, 5, {"TOKENS": 8, "HAS_D_LOGITS": False}),
    "pull": (pull._pull, 4, {"K": 1, "WIDTH": 4, "PER_CALL": 1, "START": True}),
    "pull of two": (pull._pull, 6, {"K": 2, "WIDTH": 4, "PER_CALL": 4, "START": False}),
}


def main() -> None:
    results = {
        f"{name} sm_{capability} {dtype} {dim}": compiled(kernel, dtype, dim, capability, held, **constants)
        for name, (kernel, held, constants) in VARIANTS.items()
        for capability in (80, 90)
        for dtype in ("bf16", "fp32")
        for dim in (1152, 1024)
    }
    json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
