"""What every capture of a CUDA graph does first, and the capture of a call whose result is not needed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ssamba.utils.terminal import one_line

WARM_UPS = 2
"""Calls before a capture."""


def warm_up(run: Callable[[], object], calls: int = WARM_UPS) -> None:
    """Call ``run`` on another stream, as often as ``calls`` says, and have the present stream wait for it.

    Lazy set-up (handles, compiled kernels) must not fall into the capture that follows.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(calls):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def captured(run: Callable[[], object], warm_ups: int = WARM_UPS) -> Callable[[], None]:
    """``run`` as a CUDA graph: what is returned replays it."""
    warm_up(run, warm_ups)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay


def compiler_problem(device: torch.device) -> str | None:
    """Why ``torch.compile`` does not work for ``device`` (no C++ compiler, no Triton), in one line; None if it does."""
    try:
        torch.compile(torch.sin, dynamic=False)(torch.zeros(8, dtype=torch.float32, device=device))
    except Exception as error:  # no common class: no compiler, no Triton, an unknown Python
        return one_line(str(error))[:200]
    return None
