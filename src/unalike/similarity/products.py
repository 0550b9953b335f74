"""Exact integer matrix products: Σab for all pairs of images, the same to the last bit however it is run.

Three levels, slowest last: ``torch._int_mm`` (int8 → int32, AMX/VNNI on a CPU, tensor cores on a GPU);
float32 products over blocks so short that every partial sum is below 2²⁴ and hence exact; both add up in
int64. The fast path is proven on worst-case input once per process and device before it is used, because
some processors saturate int8 products in 16 bits, and because ``_int_mm`` is a private function of torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# 131,071 · 128² is the largest multiple of 128² below 2³¹: an int32 accumulator cannot overflow.
INT32_PIXELS = 131_071
# 1,024 · 128² = 2²⁴: every partial sum is an integer that float32 represents.
FLOAT32_PIXELS = 1_024

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def pick_product(device: torch.device) -> Product:
    """Fastest proven product of int8 matrices (m, D) and (n, D) → (m, n) int32 or int64 on ``device``."""
    return int8_product if _int8_is_exact(device.type) else float32_product


def int8_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σab by ``torch._int_mm``, in pieces of at most `INT32_PIXELS` pixels."""
    pixels = a.shape[1]
    if pixels <= INT32_PIXELS:
        return _int_mm(a, b)
    total = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    for begin in range(0, pixels, INT32_PIXELS):
        part = slice(begin, begin + INT32_PIXELS)
        total += _int_mm(a[:, part], b[:, part])
    return total


def _int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One int8 product; CUDA wants more than 16 rows and multiples of 8, which zeros provide."""
    if a.is_cuda:
        rows, columns, pixels = max(-len(a) % 8, 24 - len(a)), -len(b) % 8, -a.shape[1] % 8
        left = torch.nn.functional.pad(a, (0, pixels, 0, max(rows, 0)))
        right = torch.nn.functional.pad(b, (0, pixels, 0, columns))
        product: torch.Tensor = torch._int_mm(left, right.T)
        return product[: len(a), : len(b)]
    if a.shape[1] == 1:  # the product of single columns reads beyond them: a second one of zeros changes nothing
        a, b = (torch.nn.functional.pad(matrix, (0, 1)) for matrix in (a, b))
    result: torch.Tensor = torch._int_mm(a, b.T)
    return result


def float32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Σab by float32 products over blocks of `FLOAT32_PIXELS` pixels; exact, several times slower."""
    total = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # TF32 keeps 10 bits: not exact
    try:
        for begin in range(0, a.shape[1], FLOAT32_PIXELS):
            part = slice(begin, begin + FLOAT32_PIXELS)
            total += (a[:, part].float() @ b[:, part].float().T).to(torch.int64)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return total


@functools.cache
def _int8_is_exact(device_type: str) -> bool:
    """Whether ``_int_mm`` gives the integers NumPy gives on inputs that break saturating hardware."""
    try:
        return all(
            torch.equal(
                int8_product(a.to(device_type), b.to(device_type)).cpu().long(),
                torch.from_numpy(a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T),
            )
            for a, b in _worst_cases()
        )
    except (RuntimeError, AttributeError):
        return False


def _worst_cases() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All −128; alternating extremes; random; widths around the registers' 64 bytes; few and many rows."""
    random = np.random.default_rng(0)
    cases: list[npt.NDArray[Any]] = []
    for rows, pixels in ((33, 64), (33, 4096), (1, 200), (70, 513), (5, 1)):
        alternating = np.where(np.arange(rows * pixels).reshape(rows, pixels) % 2, 127, -128)
        cases += [np.full((rows, pixels), -128), alternating, random.integers(-128, 128, (rows, pixels))]
    tensors = [torch.from_numpy(case.astype(np.int8)) for case in cases]
    return [(a, b) for a in tensors for b in tensors if a.shape[1] == b.shape[1]]
