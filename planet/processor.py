"""What the processor can do, asked without loading torch: the launcher wants to know, too."""

from __future__ import annotations

from pathlib import Path


def flags() -> frozenset[str]:
    """Return the processor's feature flags (empty where the kernel does not list them)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()


def has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in hardware. Others emulate it: one with AVX2 alone
    (AMD EPYC, Zen 3) multiplies large matrices a hundred times slower than in float32."""
    return bool(flags() & {"avx512_bf16", "amx_bf16"})
