"""GradCache (Gao et al., 2021): a contrastive loss over more rows than fit into memory with gradients.

    1. each chunk is encoded without a graph; its vectors are kept
    2. the loss over the vectors of all chunks, of all processes, and its gradient at each vector
    3. each chunk is encoded once more, with a graph, through which its vectors' gradients go

Gradients are those of one large batch. The second encoding draws the same dropout as the first. It takes about a
third more time. Batch norms see chunks, as they see batches that are accumulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ConfigError, TaskError
from zoo.models.base.model import unwrapped
from zoo.tasks.views import Contrastive


def grad_cache(model: Any, batches: Sequence[Mapping[str, Any]], context: Callable[[], Any] = nullcontext) -> float:
    """Add to the parameters' gradients those of the loss over all batches as one. -> the loss.

    model: of a contrastive task whose loss is over the batch, as it is, in DistributedDataParallel or sharded.
    batches: what ``model(**batch)`` takes. context: around each pass, such as autocast.
    """
    inner = unwrapped(model)
    if not isinstance(inner, Contrastive) or not inner.over_batch:
        raise TaskError(
            f"GradCache is for losses that compare the rows of a batch, such as image-text-contrast; "
            f"{getattr(inner, 'task', '') or type(inner).__name__} has none: accumulating batches changes nothing there"
        )
    moving = [(buffer, buffer.clone()) for buffer in inner.buffers()]
    states, chunks = [], []
    for batch in batches:
        states.append(_generators())
        with torch.no_grad(), context():
            chunks.append(model(**batch, only_vectors=True).scores)
    if any(len(chunk) < 2 for chunk in chunks):
        raise TaskError("a batch has no pairs to compare; give both sides of each")
    for buffer, value in moving:
        buffer.copy_(value)
    leaves = {name: torch.cat([chunk[name] for chunk in chunks]).requires_grad_() for name in chunks[0]}
    with alone(model, True), context():
        loss, _ = inner.contrast(leaves)
    with alone(model, True):
        loss.backward()
    touched = [p for p in inner.parameters() if p.grad is not None]  # a temperature, which no vector depends on
    sizes = [len(next(iter(chunk.values()))) for chunk in chunks]
    gradients = {name: _gradient(leaf).split(sizes) for name, leaf in leaves.items()}
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        _restore(states[number])
        with alone(model, not last):
            with context():
                vectors = model(**batch, only_vectors=True).scores
            parts = [(x * gradients[name][number]).sum() for name, x in vectors.items()]
            if last:  # DistributedDataParallel waits for every parameter
                parts += [0 * p.sum() for p in touched if not hasattr(p, "full_tensor")]
            torch.stack([part.to(parts[0].dtype) for part in parts]).sum().backward()
    return float(loss.detach())


def check_cached(inner: Any, settings: Any) -> None:
    """Refuse settings and models for which GradCache makes no sense."""
    if settings.adversarial is not None:
        raise ConfigError("grad_cache encodes each batch twice and adversarial perturbs it; choose one of them")
    if not isinstance(inner, Contrastive) or not inner.over_batch:
        raise ConfigError(
            f"grad_cache is for losses that compare the rows of a batch, such as image-text-contrast; {inner.task} has "
            "none: accumulate alone changes nothing there"
        )


def alone(model: Any, more: bool) -> Any:
    """A context in which gradients stay in this process, where ``more`` follow in the same update and the model
    (DistributedDataParallel) would average them.
    """
    return model.no_sync() if more and hasattr(model, "no_sync") else nullcontext()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _generators() -> tuple[Tensor, Any]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _restore(states: tuple[Tensor, Any]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])
