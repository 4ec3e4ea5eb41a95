"""`python -m worker.server --socket PATH`: the model server as a process."""

import argparse
import ctypes
import logging
import os
import sys
from pathlib import Path

M_ARENA_MAX = -8  # malloc.h


def main() -> None:
    """Serve until told to stop. Waiting threads sleep instead of spinning, because training shares the machine."""
    parser = argparse.ArgumentParser(prog="python -m worker.server", description="The model server of GPT Builder.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on; its folder is made 0700")
    parser.add_argument(
        "--memory-gib", type=float, default=None, help="budget for models (default: a quarter of memory)"
    )
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: all cores)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "int8"), default="fp32", help="number format on a CPU, where it fits"
    )
    parser.add_argument("--compiled", action="store_true", help="compile passes for this processor, for faster answers")
    parser.add_argument("--vllm", default="", help="address of a vLLM server, which answers for what it holds")
    parser.add_argument("--vllm-needed", action="store_true", help="no answer of our own engine while it is away")
    arguments = parser.parse_args()
    _bound_arenas()

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # What was compiled is kept beside the program or, where that may not be written, beside the socket.
    if not os.access(Path(__file__).parent.parent / "engine", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(arguments.socket.parent / "compiled"))
    import torch
    import uvicorn

    from worker.server.api import create_server
    from worker.server.rooms import Rooms
    from worker.server.vllm import Vllm

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    budget = int(arguments.memory_gib * 2**30) if arguments.memory_gib else None
    # The key comes by the environment: other users of the machine can read a command line.
    key, is_needed = os.environ.get("GPT_BUILDER_VLLM_KEY", ""), arguments.vllm_needed
    vllm = Vllm(arguments.vllm, key, is_needed=is_needed) if arguments.vllm else None
    rooms = Rooms(path=arguments.socket.with_name(f"{arguments.socket.name}.rooms"))
    app = create_server(budget, arguments.device, arguments.precision, arguments.compiled, vllm, rooms)
    uvicorn.run(app, uds=str(arguments.socket), log_level="warning", timeout_graceful_shutdown=5)


def _bound_arenas() -> None:
    """Let the C library keep two pools of freed memory instead of eight for each core: an answer's tensors are made on
    one thread and models are loaded on another, and what each pool keeps is never given back."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # the GNU library's
        library.mallopt(M_ARENA_MAX, 2)


if __name__ == "__main__":
    main()
