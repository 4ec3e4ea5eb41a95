"""Why a training ends early: each reason with the exit code of the contract and a sentence for people."""

import errno

from app.contracts import events

# What torch's allocators, the C++ library and oneDNN say when memory runs out.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create a memory")


class EngineError(Exception):
    """Ends the run. `exit_code` is one of the contract's; the message says what is wrong and what to do."""

    exit_code = 1


class BadData(EngineError):
    """The rows, the recipe or the base model cannot be used."""

    exit_code = events.EXIT_BAD_DATA


class DeviceFault(EngineError):
    """The accelerator stopped answering."""

    exit_code = events.EXIT_DEVICE_FAULT


class Diverged(EngineError):
    """Loss or gradients stayed infinite or undefined."""

    exit_code = events.EXIT_DIVERGED


class DiskFull(EngineError):
    """A file could not be written for want of space."""

    exit_code = events.EXIT_DISK_FULL


class NeedsLess(EngineError):
    """One of several processes lacks memory: all must begin again with less."""

    exit_code = events.EXIT_NEEDS_LESS


class OutOfMemory(EngineError):
    """The smallest micro-batch does not fit."""

    exit_code = events.EXIT_OUT_OF_MEMORY


def is_disk_full(error: BaseException) -> bool:
    """True for every way a full disk shows: OSError, and safetensors' own error, known by its text only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error).lower()
    return "os error 28" in text or "no space left" in text or "os error 122" in text


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's, CUDA's and the CPU allocator's word for it."""
    import torch  # rows are read by processes that do without it

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def is_device_fault(error: BaseException) -> bool:
    """True for CUDA errors after which the context is lost; a bad token id on CPU raises IndexError instead."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "cuda error" in text and "out of memory" not in text
