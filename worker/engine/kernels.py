"""Products of rows and weights, compiled for this processor by Numba; `compiled.py` is their face.

Everything is told by addresses and sizes. A row's result never depends on the rows beside it (`tiles.py`).
"""

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


_FP32 = [_product(FP32, rows, blocks) for rows, blocks in ((1, 8), (2, 8), (4, 4), (8, 2))]
_BF16 = [_product(BF16, rows, blocks) for rows, blocks in ((1, 8), (2, 8), (4, 4), (8, 2))]
_INT8 = [_product(INT8, rows, blocks) for rows, blocks in ((1, 8), (2, 8), (4, 4), (8, 2))]
_FP32_1, _FP32_2, _FP32_4, _FP32_8 = _FP32
_BF16_1, _BF16_2, _BF16_4, _BF16_8 = _BF16
_INT8_1, _INT8_2, _INT8_4, _INT8_8 = _INT8
# Of the attention: one token's, and eight tokens' of a prompt.
ATTENDED, ATTENDED_SHORT = _product(FP32, 1, 4, 1), _product(SHORT, 1, 4, 1)
READ_SCORES = _product(FP32, 8, 2)
READ_VALUES, READ_VALUES_SHORT = _product(FP32, 8, 2, 1), _product(SHORT, 8, 2, 1)


@jit
def _times(kind, rows, w, n, bb, inputs, rb, steps, out, ob, scales, offsets, rs):
    """One, two, four or eight rows."""
    if kind == 0:
        if rows == 1:
            _FP32_1(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 2:
            _FP32_2(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 4:
            _FP32_4(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        else:
            _FP32_8(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
    elif kind == 1:
        if rows == 1:
            _BF16_1(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 2:
            _BF16_2(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        elif rows == 4:
            _BF16_4(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
        else:
            _BF16_8(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
    elif rows == 1:
        _INT8_1(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
    elif rows == 2:
        _INT8_2(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
    elif rows == 4:
        _INT8_4(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)
    else:
        _INT8_8(w, n, bb, 64, inputs, rb, steps, out, ob, scales, offsets, rs)


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
