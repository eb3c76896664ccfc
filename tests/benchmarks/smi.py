"""Graph-Cut SMI against a copy of its input (its limit is two reads of it), a batched product and a double loop."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
from timing import medians, show
from torch import Tensor

from verl_dra import graph_cut_smi
from verl_dra.algorithm.groups import Groups
from verl_dra.algorithm.vectors import inverse_norms

SIZES = [(1024, 8, 512), (8192, 16, 512), (8192, 128, 768), (65536, 16, 768)]
LAYOUTS = ("even", "ragged", "ragged, shuffled")


def main() -> None:
    rows = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for n, size, dimension in SIZES:
        for layout in LAYOUTS:
            rows.append(_row(n, size, dimension, layout, device))
    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    show(
        f"Graph-Cut SMI, float32, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}; medians",
        [
            "rows",
            "group",
            "dim",
            "layout",
            "copy ms",
            "ours ms",
            "ours/copy",
            "batched ms",
            "ours/batched",
            "loop ms",
            "memory",
        ],
        rows,
    )


def batched_product(embeddings: Tensor, group: Tensor) -> Tensor:
    """The peer: each group's cosine matrix by one batched product, the same normalisation and finite-check.

    Even groups in order are taken as they lie; others are gathered into rectangles of the largest group.
    """
    vectors, factors = inverse_norms(embeddings, group)
    units = vectors * factors[:, None]
    groups = Groups.of(group)
    largest = int(groups.sizes.max())
    if bool((groups.sizes == largest).all()) and bool((group[1:] >= group[:-1]).all()):
        cosines = units.view(-1, largest, units.shape[1])
        return (cosines @ cosines.transpose(1, 2)).sum(2).flatten() - 1
    position = groups.index()
    rank = torch.empty_like(groups.order).scatter_(
        0, groups.order, torch.arange(len(group), device=group.device) - groups.starts[position[groups.order]]
    )
    padded = units.new_zeros(len(groups), largest, units.shape[1])
    padded[position, rank] = units
    return (padded @ padded.transpose(1, 2)).sum(2)[position, rank] - 1


def double_loop(embeddings: Tensor, group: Tensor) -> list[float]:
    """The formula as it is written."""
    units = torch.nn.functional.normalize(embeddings, dim=1)
    ids = group.tolist()
    return [
        sum(float(units[i] @ units[j]) for j in range(len(ids)) if i != j and ids[i] == ids[j]) for i in range(len(ids))
    ]


def _row(n: int, size: int, dimension: int, layout: str, device: str) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(n, dimension, generator=generator).to(device)
    group = _groups(n, size, layout, generator).to(device)
    copy = torch.empty_like(embeddings)
    torch.testing.assert_close(
        graph_cut_smi(embeddings, group), batched_product(embeddings, group), rtol=1e-4, atol=1e-4
    )
    work: dict[str, Callable[[], object]] = {
        "copy": lambda: copy.copy_(embeddings),
        "ours": lambda: graph_cut_smi(embeddings, group),
        "batched": lambda: batched_product(embeddings, group),
    }
    if device == "cuda":
        work = {name: _synchronised(call) for name, call in work.items()}
    time = medians(work)
    loop = ""
    if n == SIZES[0][0] and layout == "even":
        loop = f"{1e3 * medians({'loop': lambda: double_loop(embeddings, group)}, most=1)['loop']:.0f}"
    extra = _extra_memory(lambda: graph_cut_smi(embeddings, group), device) / embeddings.nbytes
    return [
        str(n),
        str(size),
        str(dimension),
        layout,
        f"{1e3 * time['copy']:.2f}",
        f"{1e3 * time['ours']:.2f}",
        f"{time['ours'] / time['copy']:.2f}",
        f"{1e3 * time['batched']:.2f}",
        f"{time['ours'] / time['batched']:.2f}",
        loop,
        f"{extra:.1%}",
    ]


def _groups(n: int, size: int, layout: str, generator: torch.Generator) -> Tensor:
    if layout == "even":
        return torch.arange(n) // size
    sizes = torch.randint(1, 2 * size, (n,), generator=generator)
    group = torch.repeat_interleave(sizes)[:n]
    return group[torch.randperm(n, generator=generator)] if "shuffled" in layout else group


def _synchronised(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _extra_memory(call: Callable[[], object], device: str) -> int:
    """Peak bytes beyond what is held before the call."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or else memory freed before would be taken again unseen
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _resident_peak()
    call()
    return _resident_peak() - before


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])
