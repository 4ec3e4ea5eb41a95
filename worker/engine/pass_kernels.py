"""A pass of tokens of several answers through all layers of a model, compiled for this processor by Numba: what stands
around the products of `kernels.py`. `compiled_pass.py` is its face."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from numba import carray, types

from worker.engine.kernels import (
    ATTENDED,
    ATTENDED_SHORT,
    BIAS,
    BLOCKS,
    READ_SCORES,
    READ_VALUES,
    READ_VALUES_SHORT,
    ROWS,
    exp,
    floats,
    forget_others,
    jit,
    kept_jit,
    linear,
    long_scores,
    short_scores,
    shortened,
)
from worker.engine.tiles import LANES, LINE, float_of, pointer, seen_at, show_at

# What is told of a model, and of one pass.
LAYERS, WIDTH, HEADS, KEY_HEADS, HEAD_WIDTH, MIDDLE, SLOTS, ROOM, KIND, SHORT_CACHE, TURNS = range(11)
# What is told of rows of one answer that follow each other: where they begin among the rows, how many, the answer's
# slot, the place of the first among the answer's tokens, the number of its adapter or -1, whether it is a prompt.
FIRST, COUNT, SLOT, BEGIN, OWNER, IS_PROMPT = range(6)
FIRST_PART = (0, 3, 4, 6, 7)  # of each product: queries, keys, values; outputs; gate, up; down
PATIENT_LOOKS = 200  # at what another thread has done, before the processor is offered to others

_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@jit
def _normed(row, weights, epsilon, out):
    """Root-mean-square norm."""
    total = np.float32(0.0)
    for i in range(row.size):
        total += row[i] * row[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(row.size) + epsilon)
    for i in range(row.size):
        out[i] = row[i] * factor * weights[i]


@jit
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


@jit
def _turned(head, cosines, sines):
    """Rotary positions; the first half of the sines is negative."""
    half = head.size // 2
    for i in range(half):
        one, other = head[i], head[i + half]
        head[i] = one * cosines[i] + other * sines[i]
        head[i + half] = other * cosines[i + half] + one * sines[i + half]


@jit
def _kept(shape, epsilon, line, place, norms, turns, keys):
    """Turn one row's queries and keys in place, and keep its keys and values; `keys`: where its slot's begin in one
    layer."""
    heads, key_heads, width, room = shape[HEADS], shape[KEY_HEADS], shape[HEAD_WIDTH], shape[ROOM]
    is_short = shape[SHORT_CACHE] != 0
    size = width * (2 if is_short else 4)
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
        for which in range(2):
            given = line[(heads + which * key_heads + head) * width :][:width]
            there = keys + which * beyond + (head * room + place) * size
            if is_short:
                short = carray(pointer(there), (width,), np.uint16)
                for i in range(width):
                    short[i] = shortened(given[i])
            else:
                kept = floats(there, width)
                for i in range(width):
                    kept[i] = given[i]


@jit
def _weighed(scores, count, scaling):
    """Scores to weights that still have to be divided by their sum, which is returned."""
    largest = np.float32(-3e38)
    for i in range(count):
        largest = max(largest, scores[i])
    total = np.float32(0.0)
    for i in range(count):
        scores[i] = exp((scores[i] - largest) * scaling)
        total += scores[i]
    return total


@jit
def _attended(shape, scaling, line, place, keys, scores, out):
    """The attention of an answer's newest token; `line`, `out`: addresses of its queries and of the result."""
    key_heads, width, room = shape[KEY_HEADS], shape[HEAD_WIDTH], shape[ROOM]
    is_short, shared, length = shape[SHORT_CACHE] != 0, shape[HEADS] // shape[KEY_HEADS], place + 1
    size = width * (2 if is_short else 4)
    beyond = shape[SLOTS] * key_heads * room * size
    at = scores.ctypes.data
    for number in range(shape[HEADS]):
        there, query, result = (
            keys + number // shared * room * size,
            line + number * width * 4,
            out + number * width * 4,
        )
        for first in range(0, length, 4):
            if is_short:
                short_scores(query, there + first * size, size, width // LANES, at + first * 4)
            else:
                long_scores(query, there + first * size, size, width // LANES, at + first * 4)
        factor = np.float32(1.0) / _weighed(scores[0], length, scaling)
        if is_short:
            ATTENDED_SHORT(there + beyond, width // LANES, 32, size, at, 0, length, result, 0, at, at, at)
        else:
            ATTENDED(there + beyond, width // LANES, 64, size, at, 0, length, result, 0, at, at, at)
        done = floats(result, width)
        for i in range(width):
            done[i] *= factor


@jit
def _read(shape, scaling, stretch, start, lines, line_bytes, keys, across, scores, out):
    """The attention of a stretch of a prompt from its row `start` on, eight rows at once: each row with its own keys
    and those before, in an order of sums that depends on neither the stretch's beginning nor its end.

    `lines`, `out`: addresses of the stretch's first row, of which up to seven rows more than it has are read and
    written. `across`: room for one head's keys, and `scores` for eight rows' scores.
    """
    heads, key_heads, width, room = shape[HEADS], shape[KEY_HEADS], shape[HEAD_WIDTH], shape[ROOM]
    is_short, shared = shape[SHORT_CACHE] != 0, heads // key_heads
    size = width * (2 if is_short else 4)
    beyond = shape[SLOTS] * key_heads * room * size
    begin, count, at, score_bytes = stretch[BEGIN], stretch[COUNT], scores.ctypes.data, scores.shape[1] * 4
    for head in range(key_heads):
        there = keys + head * room * size
        # Sixteen keys beside each other, as products read weights.
        for key in range(begin + count):
            place = key // LANES * LANES * width + key % LANES
            if is_short:
                short = carray(pointer(there + key * size), (width,), np.uint16)
                for i in range(width):
                    across[place + i * LANES] = float_of(np.uint32(short[i]) << np.uint32(16))
            else:
                long = floats(there + key * size, width)
                for i in range(width):
                    across[place + i * LANES] = long[i]
        for row in range(start, count, ROWS):
            rows = min(ROWS, count - row)
            length = begin + row + rows
            for number in range(head * shared, (head + 1) * shared):
                query, result = lines + row * line_bytes + number * width * 4, out + (row * heads + number) * width * 4
                blocks = (length + 2 * LANES - 1) // (2 * LANES) * 2
                READ_SCORES(
                    across.ctypes.data, blocks, width * LINE, LINE, query, line_bytes, width, at, score_bytes,
                    at, at, at,
                )  # fmt: skip
                for i in range(rows):
                    own = begin + row + i + 1
                    factor = np.float32(1.0) / _weighed(scores[i], own, scaling)
                    for j in range(own):
                        scores[i, j] *= factor
                    for j in range(own, length):
                        scores[i, j] = np.float32(0.0)
                if is_short:
                    READ_VALUES_SHORT(
                        there + beyond, width // LANES, 32, size, at, score_bytes, length, result, heads * width * 4,
                        at, at, at,
                    )  # fmt: skip
                else:
                    READ_VALUES(
                        there + beyond, width // LANES, 64, size, at, score_bytes, length, result, heads * width * 4,
                        at, at, at,
                    )  # fmt: skip


@kept_jit
def forward(
    shape, epsilon, scaling, states, stretches, told, sites, norms, cache, turns, adapters, logits, progress, number,
    since,
):  # fmt: skip
    """The next token's logits of the rows in `told`: each stretch's last, unless another part has the rest of it.

    `states` (rows, width) fp32: the embedded tokens; what comes of them is left there. `stretches` (stretches, 6).
    `sites` (4 · layers + 1, 8): the products. `norms` (4 · layers + 1,): addresses of both norms' weights and of the
    heads' (0: none). `cache`: address of the keys and values, to which this pass's are added. `turns`: address of
    cosines and sines (2, positions, head width), 0: none. `adapters` (adapters, layers, 7, 4). `logits` (told and up to
    seven more, vocabulary and a few more): the result.

    A pass may be made in parts, on threads of their own, in the order of the rows; `number` is this one's. In
    `progress` each says in how many layers its keys and values are known; of those from `since` on this one waits for.
    """
    width, layers, kind, heads, key_heads = shape[WIDTH], shape[LAYERS], shape[KIND], shape[HEADS], shape[KEY_HEADS]
    head_width, middle, rows, is_short = shape[HEAD_WIDTH], shape[MIDDLE], states.shape[0], shape[SHORT_CACHE] != 0
    held, queries, ends = rows + ROWS, heads * head_width, (heads + key_heads) * head_width
    joined = np.zeros((held, sites[0, BLOCKS] * LANES), np.float32)
    added = np.zeros((held, max(sites[1, BLOCKS], sites[3, BLOCKS]) * LANES), np.float32)
    wide = np.zeros((held, sites[2, BLOCKS] * LANES), np.float32)
    normed, seen = np.zeros((held, width), np.float32), np.zeros((held, queries), np.float32)
    gated = np.zeros((held, middle), np.float32)
    longest, has_prompt = 0, False
    owners = np.zeros(rows, np.int64)
    for stretch in stretches:
        longest = max(longest, stretch[BEGIN] + stretch[COUNT])
        has_prompt |= stretch[IS_PROMPT] != 0
        owners[stretch[FIRST] : stretch[FIRST] + stretch[COUNT]] = stretch[OWNER]
    longest = (longest + 2 * LANES - 1) // (2 * LANES) * 2 * LANES
    scores = np.zeros((ROWS if has_prompt else 1, longest), np.float32)
    across = np.zeros(longest * head_width if has_prompt else 0, np.float32)
    slot_bytes = key_heads * shape[ROOM] * head_width * (2 if is_short else 4)
    # One place where products are called and one for adapters: code is compiled anew for each.
    for step in range(4 * layers + 1):
        layer, stage, site = step // 4, step % 4, sites[step]
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
        if stage == 2:
            for row in range(rows):
                line = wide[row]
                for i in range(middle):
                    gated[row, i] = line[i] / (np.float32(1.0) + exp(-line[i])) * line[middle + i]
        elif stage != 0:
            for row in range(rows):
                for i in range(width):
                    states[row, i] += added[row, i]
        else:
            keys = cache + 2 * layer * shape[SLOTS] * slot_bytes
            for stretch in stretches:
                for i in range(stretch[COUNT]):
                    _kept(
                        shape, epsilon, joined[stretch[FIRST] + i], stretch[BEGIN] + i, norms[4 * layer :], turns,
                        keys + stretch[SLOT] * slot_bytes,
                    )  # fmt: skip
            show_at(progress.ctypes.data + 8 * number, layer + 1)
            if layer == layers - 1 and told.size == 0:
                return
            for other in range(since, number):
                looks = 0
                while seen_at(progress.ctypes.data + 8 * other) <= layer:
                    looks += 1
                    if looks > PATIENT_LOOKS:
                        _sched_yield()
            for stretch in stretches:
                first, there = stretch[FIRST], keys + stretch[SLOT] * slot_bytes
                lines, out = joined.ctypes.data + first * joined.shape[1] * 4, seen.ctypes.data + first * queries * 4
                if stretch[IS_PROMPT]:
                    # Of the last layer nobody looks at other rows than the last.
                    start = (stretch[COUNT] - 1) // ROWS * ROWS if layer == layers - 1 else 0
                    _read(shape, scaling[layer], stretch, start, lines, joined.shape[1] * 4, there, across, scores, out)
                else:
                    _attended(shape, scaling[layer], lines, stretch[BEGIN], there, scores, out)
            if layer == layers - 1:
                rows = told.size
                for row in range(rows):
                    states[row], seen[row], owners[row] = states[told[row]], seen[told[row]], owners[told[row]]


def compile_all() -> None:
    """Compile, or read what was compiled before."""
    if folder := linear.stats.cache_path:
        with suppress(OSError):
            forget_others(Path(folder))
    linear.compile("void(int64, int64[::1], int64, int64, int64, int64, int64)")
    forward.compile(
        "void(int64[::1], float32, float32[::1], float32[:, ::1], int64[:, ::1], int64[::1], int64[:, ::1], "
        "int64[::1], int64, int64, int64[:, :, :, ::1], float32[:, ::1], int64[::1], int64, int64)"
    )
