"""Sizes of products that this processor is quick at."""


def rounded(count: int) -> int:
    """`count` rounded up to a multiple of 8, above 128 to one of eight sizes an octave.

    oneDNN builds and keeps a kernel for every new shape of a bf16 product: with every row of another length, that
    took 5 GB and half the speed on a CPU.
    """
    step = max(8, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step
