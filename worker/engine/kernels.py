"""Products and passes of few rows, compiled for this processor by Numba; `compiled.py` is their face.

Everything is told by addresses and sizes. A row's result never depends on the rows beside it (`tiles.py`).
"""

from typing import Any

import numpy as np
from numba import carray, njit

from worker.engine.tiles import (
    BF16,
    FP32,
    INT8,
    LANES,
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
# What is told of a model, and of one pass.
LAYERS, WIDTH, HEADS, KEY_HEADS, HEAD_WIDTH, MIDDLE, SLOTS, ROOM, KIND, SHORT_CACHE, TURNS = range(11)
FIRST_PART = (0, 3, 4, 6, 7)  # of each product: queries, keys, values; outputs; gate, up; down

_compile = njit(nogil=True, fastmath=True, error_model="numpy")


def _compile_kept(function: Any) -> Any:
    """Compiled code that is kept beside this file or, where that cannot be written, in the user's cache."""
    try:
        return njit(nogil=True, fastmath=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # no folder at all can be written
        return _compile(function)


def _product(kind: int, rows: int, blocks: int, least: int = 2) -> Any:
    """A product of so many rows; the number of blocks of outputs is a multiple of `least`."""
    many, few = tile_of(kind, rows, blocks), tile_of(kind, rows, least)

    @_compile
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
_VALUES, _SHORT_VALUES = _product(FP32, 1, 4, 1), _product(SHORT, 1, 4, 1)


@_compile
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


_long_scores, _short_scores = scores_of(FP32), scores_of(SHORT)


@_compile
def floats(address, count):
    return carray(pointer(address), (count,), np.float32)


@_compile
def _shortened(number):
    """An fp32 number as the 16 bits of the nearest bf16 one."""
    bits = bits_of(number)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_compile
def _exp(x):
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


@_compile
def _normed(row, weights, epsilon, out):
    """Root-mean-square norm."""
    total = np.float32(0.0)
    for i in range(row.size):
        total += row[i] * row[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(row.size) + epsilon)
    for i in range(row.size):
        out[i] = row[i] * factor * weights[i]


@_compile_kept
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
                short[i] = _shortened(given[i])
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


@_compile
def _adapted(part, row, out, bias):
    """Add what an adapter says to one row of one layer's outputs. `part`: addresses of A (rank, in) and B^T (rank,
    out) in fp32, the rank, the address of the gains; `bias`: the address of what of `out` a gain leaves alone."""
    if part[0] == 0:
        return
    if part[3]:
        gains = floats(part[3], out.size)
        if bias:
            own = floats(bias, out.size)
            for i in range(out.size):
                out[i] = (out[i] - own[i]) * gains[i] + own[i]
        else:
            for i in range(out.size):
                out[i] *= gains[i]
    for rank in range(part[2]):
        a = floats(part[0] + rank * row.size * 4, row.size)
        total = np.float32(0.0)
        for i in range(row.size):
            total += a[i] * row[i]
        b = floats(part[1] + rank * out.size * 4, out.size)
        for i in range(out.size):
            out[i] += total * b[i]


@_compile
def _turned(head, cosines, sines):
    """Rotary positions; the first half of the sines is negative."""
    half = head.size // 2
    for i in range(half):
        one, other = head[i], head[i + half]
        head[i] = one * cosines[i] + other * sines[i]
        head[i + half] = other * cosines[i + half] + one * sines[i + half]


@_compile
def _attended(is_short, query, keys, values, length, width, scaling, scores, out):
    """One head's query over so many keys and values; `query`, `keys`, `values`, `out`: addresses."""
    size = width * (2 if is_short else 4)
    for place in range(0, length, 4):
        at = scores.ctypes.data + place * 4
        if is_short:
            _short_scores(query, keys + place * size, size, width // LANES, at)
        else:
            _long_scores(query, keys + place * size, size, width // LANES, at)
    largest = np.float32(-3e38)
    for i in range(length):
        largest = max(largest, scores[i])
    total = np.float32(0.0)
    for i in range(length):
        scores[i] = _exp((scores[i] - largest) * scaling)
        total += scores[i]
    at = scores.ctypes.data
    if is_short:
        _SHORT_VALUES(values, width // LANES, 32, size, at, 0, length, out, 0, at, at, at)
    else:
        _VALUES(values, width // LANES, 64, size, at, 0, length, out, 0, at, at, at)
    done = floats(out, width)
    factor = np.float32(1.0) / total
    for i in range(width):
        done[i] *= factor


@_compile
def _looked(shape, epsilon, scaling, line, place, norms, turns, cache, layer, slot, is_short, scores, out):
    """One row's attention in one layer: its queries, keys and values turned, kept in its slot, and looked up."""
    heads, key_heads, width, room = shape[HEADS], shape[KEY_HEADS], shape[HEAD_WIDTH], shape[ROOM]
    size, shared = width * (2 if is_short else 4), heads // key_heads
    for head in range(heads + key_heads):
        one = line[head * width : (head + 1) * width]
        weights = norms[2 if head < heads else 3]
        if weights:
            _normed(one, floats(weights, width), epsilon, one)
        if turns:
            cosines = floats(turns + place * width * 4, width)
            _turned(one, cosines, floats(turns + (shape[TURNS] + place) * width * 4, width))
    beyond = shape[SLOTS] * key_heads * room * size  # from keys to values
    for head in range(key_heads):
        keys = cache + ((2 * layer * shape[SLOTS] + slot) * key_heads + head) * room * size
        for which in range(2):
            given = line[(heads + which * key_heads + head) * width :][:width]
            there = keys + which * beyond + place * size
            if is_short:
                short = carray(pointer(there), (width,), np.uint16)
                for i in range(width):
                    short[i] = _shortened(given[i])
            else:
                kept = floats(there, width)
                for i in range(width):
                    kept[i] = given[i]
        for number in range(head * shared, (head + 1) * shared):
            _attended(
                is_short, line.ctypes.data + number * width * 4, keys, keys + beyond, place + 1, width, scaling,
                scores, out + number * width * 4,
            )  # fmt: skip


@_compile_kept
def decode(shape, epsilon, scaling, states, positions, first, sites, norms, cache, turns, adapters, owners, logits):
    """The next token's logits of rows that each belong to a slot of their own, the first to slot `first`.

    `states` (rows and up to seven more, width) fp32: the embedded tokens; what comes of them is left there. `sites`
    (4 · layers + 1, 8): the products. `norms` (4 · layers + 1,): addresses of both norms' weights and of the heads' (0:
    none). `cache`: address of the keys and values, to which this step's are added. `turns`: address of cosines and
    sines (2, positions, head width), 0: none. `adapters` (adapters, layers, 7, 4), and in `owners` the number of each
    row's own or -1. `logits` (rows and up to seven more, vocabulary and a few more): the result.
    """
    width, layers, kind, heads, key_heads = shape[WIDTH], shape[LAYERS], shape[KIND], shape[HEADS], shape[KEY_HEADS]
    head_width, middle, rows, is_short = shape[HEAD_WIDTH], shape[MIDDLE], positions.size, shape[SHORT_CACHE] != 0
    held, queries, ends = (rows + ROWS - 1) // ROWS * ROWS, heads * head_width, (heads + key_heads) * head_width
    joined = np.zeros((held, sites[0, BLOCKS] * LANES), np.float32)
    added = np.zeros((held, max(sites[1, BLOCKS], sites[3, BLOCKS]) * LANES), np.float32)
    wide = np.zeros((held, sites[2, BLOCKS] * LANES), np.float32)
    normed, seen = np.zeros((held, width), np.float32), np.zeros((held, queries), np.float32)
    gated = np.zeros((held, middle), np.float32)
    scores = np.zeros((positions.max() + 8) // 4 * 4, np.float32)
    # One place where products are called and one for adapters: code is compiled anew for each.
    for number in range(4 * layers + 1):
        layer, stage, site = number // 4, number % 4, sites[number]
        is_last = layer == layers
        if stage == 0 or stage == 2:
            weights = floats(norms[4 * layer + stage // 2], width)
            for row in range(rows):
                _normed(states[row], weights, epsilon, normed[row])
        given = normed if stage == 0 or stage == 2 else seen if stage == 1 else gated
        done = logits if is_last else joined if stage == 0 else wide if stage == 2 else added
        # Of the same types as `compile_all` says, or the products were compiled twice.
        sources, results = np.int64(given.ctypes.data), np.int64(done.ctypes.data)
        linear(kind, site, rows, sources, given.shape[1], results, done.shape[1])
        if is_last:
            return
        for row in range(rows):
            if owners[row] < 0:
                continue
            start = 0
            for part in range(FIRST_PART[stage], FIRST_PART[stage + 1]):
                size = width if stage % 2 else middle if stage == 2 else queries if part == 0 else ends - queries
                bias = site[BIAS] + 4 * start if site[BIAS] else 0
                _adapted(adapters[owners[row], layer, part], given[row], done[row, start : start + size], bias)
                start += size
        for row in range(rows):
            line = done[row]
            if stage == 0:
                _looked(
                    shape, epsilon, scaling[layer], line, positions[row], norms[4 * layer :], turns,
                    cache, layer, first + row, is_short, scores, seen.ctypes.data + row * queries * 4,
                )  # fmt: skip
            elif stage == 2:
                for i in range(middle):
                    gated[row, i] = line[i] / (np.float32(1.0) + _exp(-line[i])) * line[middle + i]
            else:
                for i in range(width):
                    states[row, i] += line[i]


def compile_all() -> None:
    """Compile, or read what was compiled before."""
    linear.compile("void(int64, int64[::1], int64, int64, int64, int64, int64)")
    decode.compile(
        "void(int64[::1], float32, float32[::1], float32[:, ::1], int64[::1], int64, int64[:, ::1], int64[::1], "
        "int64, int64, int64[:, :, :, ::1], int64[::1], float32[:, ::1])"
    )
