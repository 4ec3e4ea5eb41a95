"""Pieces of vector code for `kernels.py`, written as LLVM's own instructions: sums that stay in registers.

Each output is summed by one lane of a vector register in the order of the inputs, however many rows there are. So a
row's result is the same to the last bit whatever is computed beside it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic

FP32, BF16, INT8 = 0, 1, 2
SHORT = 3  # weights of 16 bits, one after the other, beside inputs of 32: values of the attention
LANES, LINE = 16, 64  # lanes and bytes of a vector register

_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def _spread(builder: Any, value: Any) -> Any:
    """A scalar in every lane."""
    empty = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_WORDS, [0] * LANES))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    shape = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)


def _widened(builder: Any, halves: Any) -> Any:
    """Sixteen bf16 numbers as fp32."""
    words = builder.shl(builder.zext(halves, _WORDS), ir.Constant(_WORDS, [16] * LANES))
    return builder.bitcast(words, _FLOATS)


def _loaded(builder: Any, kind: int, address: Any) -> Any:
    if kind == SHORT:
        return _widened(builder, _load(builder, address, _HALVES))
    return _load(builder, address, _FLOATS if kind == FP32 else _WORDS)


def _multiplied(builder: Any, kind: int, total: Any, weights: Any, word: Any) -> Any:
    """The sums after one step; `word`: four bytes of the input, in every lane."""
    if kind == INT8:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _WORDS, total, word, weights)
    if kind == BF16:
        pairs = (builder.bitcast(part, _PAIRS) for part in (word, weights))
        return _call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, *pairs)
    return _call(builder, "llvm.fma.v16f32", _FLOATS, builder.bitcast(word, _FLOATS), weights, total)


def tile_of(kind: int, rows: int, blocks: int) -> Any:
    """A product of so many rows and so many blocks of sixteen outputs, whose sums stay in registers."""

    @intrinsic
    def tile(
        context: Any, weights: Any, block_bytes: Any, step_bytes: Any, inputs: Any, row_bytes: Any, steps: Any,
        out: Any, out_bytes: Any, scales: Any, offsets: Any, row_scales: Any,
    ) -> Any:  # fmt: skip
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, block_bytes, step_bytes, inputs, row_bytes, steps, out, out_bytes, scales, offsets, row_scales = (
                arguments
            )

            def at(base: Any, *terms: tuple[Any, int]) -> Any:
                for factor, count in terms:
                    if count:
                        base = builder.add(base, builder.mul(factor, ir.Constant(_LONG, count)))
                return base

            one = ir.Constant(_LONG, 1)
            zero = ir.Constant(_WORDS if kind == INT8 else _FLOATS, None)
            totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(blocks)] for _ in range(rows)]
            with cgutils.for_range(builder, steps, intp=_LONG) as loop:
                line = builder.add(weights, builder.mul(loop.index, step_bytes))
                lines = [_loaded(builder, kind, at(line, (block_bytes, b))) for b in range(blocks)]
                place = at(inputs, (loop.index, 4))
                for row in range(rows):
                    word = _spread(builder, _load(builder, at(place, (row_bytes, row)), _INT))
                    for b in range(blocks):
                        total = builder.load(totals[row][b])
                        builder.store(_multiplied(builder, kind, total, lines[b], word), totals[row][b])
            for row in range(rows):
                for b in range(blocks):
                    total = builder.load(totals[row][b])
                    if kind == INT8:
                        total = builder.sub(total, _load(builder, at(offsets, (one, LINE * b)), _WORDS))
                        total = builder.sitofp(total, _FLOATS)
                        total = builder.fmul(total, _load(builder, at(scales, (one, LINE * b)), _FLOATS))
                        total = builder.fmul(
                            total, _spread(builder, _load(builder, at(row_scales, (one, 4 * row)), _FLOAT))
                        )
                    _store(builder, total, at(out, (out_bytes, row), (one, LINE * b)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), emit

    return tile


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """An address for `carray`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), emit


@intrinsic
def float_of(context: Any, word: Any) -> Any:
    """The fp32 number of 32 bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.uint32), emit


@intrinsic
def bits_of(context: Any, number: Any) -> Any:
    """The 32 bits of an fp32 number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.uint32(types.float32), emit


@intrinsic
def show_at(context: Any, address: Any, number: Any) -> Any:
    """Write a number that another thread waits for, after everything that was written before it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        builder.store_atomic(arguments[1], place, ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def seen_at(context: Any, address: Any) -> Any:
    """Read a number that another thread writes, before anything that is read after it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.load_atomic(place, ordering="acquire", align=8)

    return types.int64(types.int64), emit


def scores_of(kind: int) -> Any:
    """Products of one query (fp32) and four keys that lie one after the other, a number each."""

    @intrinsic
    def scores(context: Any, query: Any, keys: Any, key_bytes: Any, steps: Any, out: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            query, keys, key_bytes, steps, out = arguments
            size = LINE if kind == FP32 else LINE // 2
            zero = ir.Constant(_FLOATS, None)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]
            with cgutils.for_range(builder, steps, intp=_LONG) as loop:
                place = builder.add(query, builder.mul(loop.index, ir.Constant(_LONG, LINE)))
                part = _load(builder, place, _FLOATS)
                key = builder.add(keys, builder.mul(loop.index, ir.Constant(_LONG, size)))
                for total in totals:
                    line = _loaded(builder, kind, key)
                    builder.store(_call(builder, "llvm.fma.v16f32", _FLOATS, part, line, builder.load(total)), total)
                    key = builder.add(key, key_bytes)
            for number, total in enumerate(totals):
                vector = builder.load(total)
                for width in (8, 4, 2, 1):  # always in the same order
                    mask = ir.Constant(_WORDS, [(lane + width) % LANES for lane in range(LANES)])
                    vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, mask))
                value = builder.extract_element(vector, ir.Constant(_INT, 0))
                _store(builder, value, builder.add(out, ir.Constant(_LONG, 4 * number)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), emit

    return scores
