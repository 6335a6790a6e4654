"""The operator behind ``ChunkedCrossEntropy``: loss and gradients over the head, a chunk of tokens at a time.

Shapes: N tokens, C tokens of a chunk, D model width, V logical vocabulary, P padded vocabulary.

    for each chunk:  logits = hidden @ W^T                       [C, P]  compute dtype, one buffer for all chunks
                     nll += logsumexp(logits) - logits[label]            fp32
                     logits := softmax(logits) s - onehot(label) [C, P]  in place
                     d hidden = logits @ W                       [C, D]
                     d W += logits^T @ hidden                    [P, D]  fp32, inside the product on CUDA

s is 1, or with a z-loss of weight w (``losses``) 1 + 2 w logsumexp(logits): its gradient is added to that of the nll,
its value to nothing. With token weights row i of that gradient is multiplied by the weight of token i, no value is.
With a softcap c logits become c tanh(logits / c) (``softcapped``) before all of this, and the gradient is multiplied
by the slope of that, 1 - tanh^2.

Gradients are computed while the logits are at hand, so nothing is computed twice (three matrix products, like the
plain loss; recomputation would need four). It is an operator of its own because torch.compile would otherwise
move the gradients to the backward pass and keep all logits for them. On a GPU the step between the products is one
kernel (``nll_kernel``); on a CPU, inside a compiled model, the elementwise steps are compiled: one pass instead of six.
Measured on two cores (4 x 256 GPT, N 2048, P 50304, bf16, one
thread): matrix products 500 ms, whole operator 700 ms compiled, 1,070 ms eager; the plain loss 2,100 ms.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ALIGNED_ROWS = 64


@torch.library.custom_op("automodel::chunked_nll", mutates_args=())
def chunked_nll(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    chunk_tokens: int,
    ignore_index: int,
    needs_grad: bool,
    fused: bool,
    z_loss_weight: float = 0.0,
    token_weights: Tensor | None = None,
    each: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of nll and the gradients of nll and z-loss; these are empty without ``needs_grad``.

    Args:
        hidden: ``[N, D]`` in the compute dtype.
        weight: ``[P, D]`` in its storage dtype.
        labels: ``[N]`` int64.
        fused: compile the elementwise steps.
        token_weights: fp32 ``[N]``, what the gradient of each token is multiplied by; None: nothing.
        each: also give the nll of each token.
        softcap: c; 0: logits are what they are.

    Returns:
        nll (fp32 scalar), gradient of hidden ``[N, D]`` (compute dtype), gradient of weight ``[P, D]`` (fp32), nll of
        each token ``[N]`` (fp32; empty unless ``each``).
    """
    score = _scoring(hidden.device.type, fused)
    add = _compiled(add_into) if fused else add_into
    with torch.autocast(hidden.device.type, enabled=False):
        head = _compute_copy(weight, hidden.dtype)
        rows = min(chunk_tokens, hidden.shape[0])
        logits = hidden.new_empty(rows, head.shape[0])
        nll = hidden.new_zeros((), dtype=torch.float32)
        nll_each = hidden.new_empty(hidden.shape[0] if each else 0, dtype=torch.float32)

        def scored(number: int, part: Tensor, chunk_labels: Tensor) -> Tensor:
            tokens = slice(number * rows, number * rows + len(part))
            more = (None if token_weights is None else token_weights[tokens], nll_each[tokens] if each else None)
            return score(part, chunk_labels, vocab_size, ignore_index, z_loss_weight, *more, softcap)

        if not needs_grad:
            for number, (chunk, chunk_labels) in enumerate(_chunks(rows, hidden, labels)):
                part = torch.mm(chunk, head.t(), out=logits[: len(chunk)])
                nll += scored(number, part, chunk_labels)
            return nll, hidden.new_empty(0), weight.new_empty(0, dtype=torch.float32), nll_each
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(head, dtype=torch.float32)
        in_product = head.dtype != torch.float32 and _accumulates_in_fp32(head.device, head.dtype)
        product = None if in_product else torch.empty_like(head)
        for number, (chunk, chunk_labels, grad_chunk) in enumerate(_chunks(rows, hidden, labels, grad_hidden)):
            part = torch.mm(chunk, head.t(), out=logits[: len(chunk)])
            nll += scored(number, part, chunk_labels)
            torch.mm(part, head, out=grad_chunk)
            if product is None:
                _add_product(grad_weight, part.t(), chunk)
            else:
                add(grad_weight, torch.mm(part.t(), chunk, out=product))
    return nll, grad_hidden, grad_weight[: weight.shape[0]], nll_each


def _compute_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in the compute dtype; on CUDA with zero rows up to a multiple that its matrix units like.

    Weights of our own models are stored padded. Those of transformers are not: GPT-2's 50,257 rows would take the
    slow path of every product here.
    """
    missing = -weight.shape[0] % _ALIGNED_ROWS
    if weight.device.type != "cuda" or missing == 0:
        return weight.to(dtype)
    head = weight.new_zeros(weight.shape[0] + missing, weight.shape[1], dtype=dtype)
    head[: weight.shape[0]] = weight
    return head


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (fp32) += left @ right, rounded nowhere in between; CUDA only."""
    torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)


@functools.cache
def _accumulates_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of ``dtype`` can be added to an fp32 matrix in one kernel here, found out by trying."""
    if device.type != "cuda":
        return False
    left = torch.ones(16, 16, device=device, dtype=dtype)
    total = torch.full((16, 16), 0.5, device=device)
    try:
        _add_product(total, left, left)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((total == 16.5).all())


def _chunks(rows: int, *tensors: Tensor) -> Any:
    """The given tensors in step, ``rows`` of the first dimension at a time; views, not copies."""
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def nll_and_gradient(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    ignore_index: int,
    z_loss_weight: float = 0.0,
    token_weights: Tensor | None = None,
    nll_each: Tensor | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Sum of nll of ``logits [C, P]``, which become the gradient, z-loss included; 0 in ignored rows.

    The gradient's rows are multiplied by ``token_weights [C]``; ``nll_each [C]`` receives the nll of each token. With
    ``softcap`` it is the nll of the capped logits.
    """
    if torch.compiler.is_compiling():
        return _nll_and_gradient_traced(
            logits, labels, vocab_size, ignore_index, z_loss_weight, token_weights, nll_each, softcap
        )
    scores = logits.float()  # logits itself where that is fp32 already
    slope = _cap(scores, softcap) if softcap else None
    scores[:, vocab_size:] = float("-inf")
    counted = (labels != ignore_index).unsqueeze(1)
    target = labels.unsqueeze(1).where(counted, 0)
    highest = scores.amax(1, keepdim=True)
    picked = scores.gather(1, target)
    probs = torch.softmax(scores, 1, out=scores)
    # logsumexp = highest - log(its probability), which is at least 1 / P and cannot underflow.
    logsumexp = highest - probs.amax(1, keepdim=True).log()
    if z_loss_weight:
        probs.mul_(1 + 2 * z_loss_weight * logsumexp)
    probs.scatter_add_(1, target, torch.full_like(picked, -1.0))
    probs.mul_(counted if token_weights is None else counted * token_weights[:, None])
    logits.copy_(probs if slope is None else probs.mul_(slope))
    nll = (logsumexp - picked).where(counted, 0.0)
    if nll_each is not None:
        nll_each.copy_(nll.squeeze(1))
    return nll.sum()


def _cap(scores: Tensor, softcap: float) -> Tensor:
    """Cap ``scores`` (fp32), in place; the slope of that at each."""
    slope = scores.div_(softcap).tanh_().square().neg_().add_(1)
    scores.mul_(softcap)
    return slope


def _nll_and_gradient_traced(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    ignore_index: int,
    z_loss_weight: float,
    token_weights: Tensor | None,
    nll_each: Tensor | None,
    softcap: float,
) -> Tensor:
    """The same, in operations that a compiler fuses into one pass over each row."""
    columns = torch.arange(logits.shape[1], device=logits.device)
    wide = logits.float()
    tanh = torch.tanh(wide / softcap) if softcap else None
    wide = wide if tanh is None else softcap * tanh
    scores = torch.where(columns < vocab_size, wide, float("-inf"))
    counted = (labels != ignore_index).unsqueeze(1)
    target = labels.unsqueeze(1).where(counted, 0)
    logsumexp = torch.logsumexp(scores, 1, keepdim=True)
    picked = wide.gather(1, target)
    probs = (scores - logsumexp).exp()
    if z_loss_weight:
        probs = probs * (1 + 2 * z_loss_weight * logsumexp)
    grad = probs - (columns == target).float()
    if token_weights is not None:
        grad = grad * token_weights[:, None]
    if tanh is not None:
        grad = grad * (1 - tanh.square())
    logits.copy_(grad.where(counted, 0.0))
    nll = (logsumexp - picked).where(counted, 0.0)
    if nll_each is not None:
        nll_each.copy_(nll.squeeze(1))
    return nll.sum()


def add_into(total: Tensor, part: Tensor) -> None:
    """total += part; in one pass where compiled, although the dtypes differ."""
    total.add_(part)


@functools.cache
def _scoring(device_type: str, fused: bool) -> Callable[..., Tensor]:
    """What turns logits into nll and gradient: a kernel of our own on a GPU, else torch's operations."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from automodel_cli.train import nll_kernel

        return nll_kernel.nll_and_gradient
    return _compiled(nll_and_gradient) if fused else nll_and_gradient


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


@chunked_nll.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    chunk_tokens: int,
    ignore_index: int,
    needs_grad: bool,
    fused: bool,
    z_loss_weight: float = 0.0,
    token_weights: Tensor | None = None,
    each: bool = False,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nll = hidden.new_empty((), dtype=torch.float32)
    nll_each = hidden.new_empty(hidden.shape[0] if each else 0, dtype=torch.float32)
    if not needs_grad:
        return nll, hidden.new_empty(0), weight.new_empty(0, dtype=torch.float32), nll_each
    return nll, torch.empty_like(hidden), torch.empty_like(weight, dtype=torch.float32), nll_each


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, grad_hidden, grad_weight, _ = output
    ctx.save_for_backward(grad_hidden, grad_weight)
    ctx.weight_dtype = inputs[1].dtype
    ctx.set_materialize_grads(False)


def _scale_gradients(ctx: Any, grad_nll: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight = ctx.saved_tensors
    scaled_hidden = (grad_hidden * grad_nll).to(grad_hidden.dtype)
    scaled_weight = (grad_weight * grad_nll).to(ctx.weight_dtype)
    return scaled_hidden, scaled_weight, *[None] * 10


chunked_nll.register_autograd(_scale_gradients, setup_context=_keep_gradients)
