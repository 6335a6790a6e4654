"""Which kernel computes scaled dot-product attention: the names, how to ask for one, and which is fastest here.

PyTorch has four on CUDA (``cudnn``, ``flash`` = FlashAttention-2, ``efficient``, ``math``); ``fa3`` and ``fa4`` take
the place of its flash kernel where their package is installed. All compute the same function, with other last bits, so
the choice is stored with a run. cuDNN's was PyTorch's default for one release and was withdrawn because some shapes
had no plan (pytorch PR 138587): hence a probe on the run's own shapes, forward and backward, and a fallback in order.

Shapes: B rows, T tokens, H heads, K head dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from automodel_cli.errors import ConfigError

_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_PACKAGED = {"fa3": "FA3", "fa4": "FA4"}  # our name -> the name in torch.nn.attention's registry
KERNELS = (*_BACKENDS, *_PACKAGED)

_PROBE_TOKENS = 65_536  # enough to fill a GPU; with fewer, launching is what would be timed
_WARM_UP, _TIMED, _IN_A_ROW = 2, 6, 3
_WORTH = 0.97  # a kernel other than flash must be this much faster


@contextlib.contextmanager
def kernel_preferred(name: str) -> Iterator[None]:
    """Inside, attention runs the kernel ``name`` where it can, else the others; ``torch.compile`` follows it."""
    first = _BACKENDS["flash" if name in _PACKAGED else name]
    order = [first, *(backend for backend in _BACKENDS.values() if backend is not first)]
    with sdpa_kernel(order, set_priority=True):
        yield


class AttendWith:
    """An ``attend`` (see ``layers``) that prefers one kernel."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
        with kernel_preferred(self.kernel):
            return F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
            )


def activate(kernel: str) -> None:
    """Make ``kernel`` callable in this process: fa3 and fa4 replace PyTorch's flash kernel, others bring it back.

    Raises:
        ConfigError: its package is not installed here.
    """
    from torch.nn import attention

    if getattr(attention, "current_flash_attention_impl", lambda: None)() is not None:
        attention.restore_flash_attention_impl()
    if kernel not in _PACKAGED:
        return
    try:
        attention.activate_flash_attention_impl(_PACKAGED[kernel])
    except (AttributeError, ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"attention kernel {kernel} is not available: {error}",
            "install its package (flash_attn_interface for fa3), or let the run choose",
        ) from error


def is_here(kernel: str, device: torch.device) -> bool:
    """Whether this device and what is installed have ``kernel``: a run may go on where it did not begin."""
    if device.type != "cuda":
        return False
    try:
        activate(kernel)
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class Probed:
    """The fastest kernel and what every kernel took, forward and backward, in ms; None where it failed."""

    kernel: str
    times_ms: Mapping[str, float | None]

    @property
    def reason(self) -> str:
        """``cudnn 1.21 ms, flash 1.63 ms, ...``: fastest first."""
        timed = sorted((time, name) for name, time in self.times_ms.items() if time is not None)
        return "one layer, forward and backward: " + ", ".join(f"{name} {time:.2f} ms" for time, name in timed)


def probe(
    device: torch.device, *, rows: int, heads: int, tokens: int, head_width: int, dtype: torch.dtype
) -> Probed | None:
    """Time causal attention in each kernel that is here; None where none of the fused ones works.

    ``math`` is not timed: it would need T x T memory, and nothing is left when even that is the fastest.
    """
    rows = max(1, min(rows, _PROBE_TOKENS // tokens))
    queries = _like_a_layers(device, rows, heads, tokens, head_width, dtype)
    times: dict[str, float | None] = {}
    for name in ("cudnn", "flash", "efficient"):
        times[name] = _time_ms(name, *queries)
    for name in _PACKAGED:
        with contextlib.suppress(ConfigError):
            activate(name)
            times[name] = _time_ms(name, *queries)
    timed = {name: time for name, time in times.items() if time is not None}
    if not timed:
        return None
    best = min(timed, key=timed.__getitem__)
    if "flash" in timed and timed[best] > _WORTH * timed["flash"]:
        best = "flash"
    activate(best)
    return Probed(best, times)


def _like_a_layers(
    device: torch.device, rows: int, heads: int, tokens: int, head_width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, H, T, K]`` as a layer with one projection for the three hands them over."""
    fused = torch.randn(
        (rows, tokens, 3, heads, head_width), device=device, dtype=dtype, requires_grad=True
    )  # a kernel that wants other strides would pay for a copy here too
    queries, keys, values = fused.permute(2, 0, 3, 1, 4).unbind(0)
    return queries, keys, values


def _time_ms(kernel: str, queries: Tensor, keys: Tensor, values: Tensor) -> float | None:
    """Time of forward and backward in this kernel alone, the shortest seen; None where it has none for these shapes.

    The shortest, because whatever else the device does can only add to it.
    """
    backend = _BACKENDS["flash" if kernel in _PACKAGED else kernel]
    times = []
    try:
        with sdpa_kernel([backend]):
            for _ in range(_WARM_UP + _TIMED):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                for _ in range(_IN_A_ROW):
                    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
                    torch.autograd.grad(mixed, (queries, keys, values), mixed)
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / _IN_A_ROW)
    except RuntimeError:  # "no available kernel", or cuDNN has no plan
        return None
    return min(times[_WARM_UP:])
