"""A function of tensors as one CUDA graph: a single launch in place of thousands.

The update and the decision are made of many small kernels, so on a GPU they take as long as launching them takes. A
graph is recorded once and then replayed on the same memory with new contents.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3

Step = Callable[..., dict[str, Tensor]]


class CudaGraph:
    """`function` on CUDA tensors: its first calls run as they are, then it is recorded and every call is a replay.

    Each call, recorded or not, does the function's work once, side effects (a step of an optimiser) included. The
    function must do the same work each time: no branch on a value, no wait for the device, no random numbers but its
    inputs. Shapes are those of the first call. Results are copies, of a recorded call views of one copy per type.
    """

    def __init__(self, function: Step) -> None:
        self.function = function
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: dict[str, Tensor] = {}
        self._packed: dict[torch.dtype, Tensor] = {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if not self._inputs:
            self._inputs = [x.clone() for x in inputs]
        for memory, given in zip(self._inputs, inputs, strict=True):
            if memory.shape != given.shape or memory.dtype != given.dtype:
                raise ValueError(
                    f"a recorded function takes {memory.dtype} {list(memory.shape)} each time, got {given.dtype} "
                    f"{list(given.shape)}"
                )
            memory.copy_(given, non_blocking=True)
        if self._calls < WARM_UP:
            self._calls += 1
            return self._run_aside()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return unpack({dtype: numbers.clone() for dtype, numbers in self._packed.items()}, self._outputs)

    def _run_aside(self) -> dict[str, Tensor]:
        """Run on another stream, as work that is to be recorded must have run before."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._inputs[0].device)
        here = torch.cuda.current_stream(self._inputs[0].device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            outputs = {name: value.clone() for name, value in self.function(*self._inputs).items()}
        here.wait_stream(self._stream)
        for value in outputs.values():
            value.record_stream(here)
        return outputs

    def _record(self) -> None:
        torch.cuda.synchronize(self._inputs[0].device)
        graph = torch.cuda.CUDAGraph()
        # A graph that nobody uses any more, freed during a recording, would spoil it. Such graphs wait for the
        # collector, since each is part of a cycle (with the object whose method it records).
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            # Other threads may copy memory meanwhile (the next batch).
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self.function(*self._inputs)
                self._packed = pack(self._outputs)
        finally:
            if collecting:
                gc.enable()
        self._graph = graph


def pack(tensors: dict[str, Tensor]) -> dict[torch.dtype, Tensor]:
    """Return all numbers of each type as one vector: one launch copies them, where an update has a dozen terms."""
    dtypes = dict.fromkeys(x.dtype for x in tensors.values())
    return {dtype: torch.cat([x.flatten() for x in tensors.values() if x.dtype is dtype]) for dtype in dtypes}


def unpack(vectors: dict[torch.dtype, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `pack` was given as views of the vectors; `like` has their names, types and shapes."""
    begin = dict.fromkeys(vectors, 0)
    found: dict[str, Tensor] = {}
    for name, x in like.items():
        end = begin[x.dtype] + x.numel()
        found[name] = vectors[x.dtype][begin[x.dtype] : end].view(x.shape)
        begin[x.dtype] = end
    return found
