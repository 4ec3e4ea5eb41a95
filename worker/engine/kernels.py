"""Products of rows and weights, compiled for this processor by Numba; `compiled.py` is their face.

Everything is told by addresses and sizes. A row's result never depends on the rows beside it (`tiles.py`).
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit

from worker.engine.tiles import (
    BF16,
    FP32,
    INT8,
    LINE,
    SHORT,
    bits_of,
    float_of,
    pointer,
    scores_of,
    tile_of,
)

SOURCES = ("tiles", "kernels", "pass_kernels")
ROWS = 8  # rows that share what is read of the weights

# What is told of a product.
WEIGHTS, BLOCKS, STEPS, SCALES, OFFSETS, BIAS, INPUTS, OUTPUTS = range(8)

jit = njit(nogil=True, fastmath=True, error_model="numpy")


def kept_jit(function: Any) -> Any:
    """Compiled code that is kept beside this file or, where that cannot be written, in the user's cache."""
    try:
        return njit(nogil=True, fastmath=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder at all can be written
        return jit(function)


def forget_others(folder: Path) -> None:
    """Delete what is kept in a folder and was compiled from other sources than those that lie here now: Numba looks at
    the file of a function, not at those of the functions that it calls."""
    sources = (Path(__file__).with_name(f"{name}.py") for name in SOURCES)
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = folder / "kernels.sha256"
    if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
        return
    for path in folder.glob("*kernels.*.nb[ci]"):
        path.unlink()
    stamp.write_text(digest, encoding="ascii")


def _product(kind: int, rows: int, blocks: int, least: int = 2) -> Any:
    """A product of so many rows; the number of blocks of outputs is a multiple of `least`."""
    many, few = tile_of(kind, rows, blocks), tile_of(kind, rows, least)

    @jit
    def product(
        weights: int, count: int, block_bytes: int, step_bytes: int, inputs: int, row_bytes: int, steps: int,
        out: int, out_bytes: int, scales: int, offsets: int, row_scales: int,
    ) -> None:  # fmt: skip
        block = 0
        while block + blocks <= count:
            many(
                weights + block * block_bytes, block_bytes, step_bytes, inputs, row_bytes, steps, out + block * 64,
                out_bytes, scales + block * 64, offsets + block * 64, row_scales,
            )  # fmt: skip
            block += blocks
        while block < count:
            few(
                weights + block * block_bytes, block_bytes, step_bytes, inputs, row_bytes, steps, out + block * 64,
                out_bytes, scales + block * 64, offsets + block * 64, row_scales,
            )  # fmt: skip
            block += least

    return product


# Of the attention: one token's, and eight tokens' of a prompt.
ATTENDED, ATTENDED_SHORT = _product(FP32, 1, 4, 1), _product(SHORT, 1, 4, 1)
READ_SCORES = _product(FP32, 8, 2)
READ_VALUES, READ_VALUES_SHORT = _product(FP32, 8, 2, 1), _product(SHORT, 8, 2, 1)


def _product_of_rows(kind: int) -> Any:
    """A product of one, two, four or eight rows."""
    one, two, four, eight = (_product(kind, rows, blocks) for rows, blocks in ((1, 8), (2, 8), (4, 4), (8, 2)))

    @jit
    def product(rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs):
        if rows == 1:
            one(w, n, bb, LINE, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 2:
            two(w, n, bb, LINE, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 4:
            four(w, n, bb, LINE, inputs, rb, steps, out, ob, scales, offsets, rs)
        else:
            eight(w, n, bb, LINE, inputs, rb, steps, out, ob, scales, offsets, rs)

    return product


_fp32_product, _bf16_product, _int8_product = (_product_of_rows(kind) for kind in (FP32, BF16, INT8))


@jit
def _times(kind, rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs):
    """One, two, four or eight rows by weights of one number format."""
    if kind == FP32:
        _fp32_product(rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs)
    elif kind == BF16:
        _bf16_product(rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs)
    else:
        _int8_product(rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs)


long_scores, short_scores = scores_of(FP32), scores_of(SHORT)


@jit
def floats(address, count):
    return carray(pointer(address), (count,), np.float32)


@jit
def shortened(number):
    """An fp32 number as the 16 bits of the nearest bf16 one."""
    bits = bits_of(number)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@jit
def exp(x):
    """e to the x, to about seven digits (Cephes' polynomial), without a call that keeps loops from being vectors."""
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1.0)
    return y * float_of(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@kept_jit
def linear(kind, site, rows, inputs, row_floats, out, out_floats):
    """(rows, inputs) by a product's site to (rows, outputs), with its bias. `inputs` and `out` are addresses of fp32
    numbers, and rows lie so many numbers apart. Up to seven rows beyond the last are read and written."""
    width, steps, blocks = site[INPUTS], site[STEPS], site[BLOCKS]
    groups = (rows + ROWS - 1) // ROWS
    lines, row_bytes = inputs, row_floats * 4
    row_scales = np.ones(groups * ROWS, np.float32)
    prepared = np.zeros((groups * ROWS if kind != FP32 else 1, steps * 4), np.uint8)
    if kind == INT8:
        lines, row_bytes = prepared.ctypes.data, steps * 4
        for row in range(rows):
            given = floats(inputs + row * row_floats * 4, width)
            largest = np.float32(1e-12)
            for i in range(width):
                largest = max(largest, abs(given[i]))
            factor = np.float32(127.0) / largest
            line = prepared[row]
            for i in range(width):
                line[i] = np.uint8(np.int32(given[i] * factor + np.float32(128.5)))
            row_scales[row] = largest / np.float32(127.0)
    elif kind == BF16:
        lines, row_bytes = prepared.ctypes.data, steps * 4
        for row in range(rows):
            given = floats(inputs + row * row_floats * 4, width)
            short = prepared[row].view(np.uint16)
            for i in range(width):
                short[i] = shortened(given[i])
    block_bytes = steps * LINE
    # Few blocks of weights at once, for all rows: they stay in the nearest cache.
    each = blocks if groups == 1 else 2
    for block in range(0, blocks, each):
        weights = site[WEIGHTS] + block * block_bytes
        for first in range(0, rows, ROWS):
            count = min(rows - first, ROWS)
            count = 8 if count > 4 else 4 if count > 2 else count
            _times(
                kind, count, weights, each, block_bytes, lines + first * row_bytes, row_bytes, steps,
                out + first * out_floats * 4 + block * LINE, out_floats * 4, site[SCALES] + block * LINE,
                site[OFFSETS] + block * LINE, row_scales.ctypes.data + first * 4,
            )  # fmt: skip
    if site[BIAS]:
        bias = floats(site[BIAS], site[OUTPUTS])
        for row in range(rows):
            done = floats(out + row * out_floats * 4, site[OUTPUTS])
            for i in range(bias.size):
                done[i] += bias[i]
