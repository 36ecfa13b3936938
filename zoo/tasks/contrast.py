"""Contrastive losses, of vectors whose pairs should be closer than all others.

    InfoNCE    -log( exp(q·k⁺/T) / (exp(q·k⁺/T) + Σ exp(q·k⁻/T)) )        van den Oord et al., 2018

    clip_loss       negatives are the batch's other pictures and texts, both ways (CLIP, ALIGN)
    sigmoid_loss    each picture with each text is a question of its own (SigLIP)
    nt_xent         negatives are the other views of the batch's other pictures (SimCLR)
    queue_loss      negatives stand in a queue of former keys (MoCo, BriVL, InfoXLM)
    ranked_loss     hinge and circle losses over the batch's pairs, both ways (`zoo.tasks.ranking`)

In a group of processes each takes the vectors of its own rows, gathers those of the others, and
scores its rows against all. **The mean over the processes of what they return is the loss of the
whole batch**, whatever number of rows each has, and so are gradients that are averaged as
DistributedDataParallel and FSDP2 average them: what the others' losses say of this process's rows
flows back through the gathering.

Vectors are taken as they come: `clip_loss` and `sigmoid_loss` expect unit rows, `nt_xent` and
`queue_loss` make them where ``normalize`` says so. Products are scored in float32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import InputError, unknown
from zoo.tasks.losses import widened
from zoo.tasks.processes import gather_rows, rank, row_counts, world
from zoo.tasks.ranking import RANKING_LOSSES, ranking_loss

Reduction = Literal["mean", "sum"]
Directions = Literal["mean", "both", "sum"]


@dataclass(frozen=True)
class PairLogits:
    """How the pictures and texts of this process score against those of all: ``images`` (pictures, all
    texts), ``texts`` (texts, all pictures), ``labels`` (rows,) the column of each row's partner, ``share``
    what the mean over these rows weighs beside those of the other processes, 1 where all have as many.
    """

    images: Tensor
    texts: Tensor
    labels: Tensor
    share: float


def pair_logits(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    local: bool = True,
    gradients: bool = True,
) -> PairLogits:
    """``scale · image · textᵀ + bias`` over the pairs of all processes; image and text (pairs, size), row i of
    one belongs to row i of the other.

    local: the rows of this process alone, against the columns of all; False: the rows of all, which each
    process computes again, for the same gradients. gradients: through what was gathered. Without them (False)
    only this process's rows have a gradient, which is another one; open_clip trains so by default.
    """
    same_rows(image, text, "image", "text")
    counts = row_counts(image)
    start, total = sum(counts[: rank()]), sum(counts)
    images, texts = (_gathered(x, counts, gradients, not local) for x in (image, text))
    if local:
        labels = torch.arange(start, start + len(image), device=image.device)
        found = _scored(image, texts, scale, bias), _scored(text, images, scale, bias)
        return PairLogits(*found, labels, len(image) * world() / total)
    logits = _scored(images, texts, scale, bias)
    return PairLogits(logits, logits.T, torch.arange(total, device=image.device), 1.0)


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    smoothing: float = 0.0,
    local: bool = True,
    gradients: bool = True,
) -> Tensor:
    """InfoNCE from pictures to texts and from texts to pictures, the mean of both.

    image, text (pairs, size) of unit length, scale = 1 / T, the exponential of CLIP's ``logit_scale``. smoothing: the
    share of each label that is spread over all columns (ALIGN: 0.1). local, gradients: see `pair_logits`.
    """
    logits = pair_logits(image, text, scale, bias, local=local, gradients=gradients)
    return logits.share * matched_loss(logits.images, logits.texts, logits.labels, smoothing)


def matched_loss(
    rows: Tensor, columns: Tensor | None = None, labels: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """The mean of two cross-entropies over scores: rows (pictures, texts) and columns (texts, pictures), the
    transposed by default; labels: the column of each row's partner, by default on the diagonal.
    """
    columns = rows.T if columns is None else columns
    if labels is None:
        if rows.shape[0] != rows.shape[1]:
            raise InputError(
                f"scores of pairs must be square, a picture and its text in one place, got {tuple(rows.shape)}"
            )
        labels = torch.arange(len(rows), device=rows.device)
    both = [F.cross_entropy(widened(x), labels, label_smoothing=smoothing) for x in (rows, columns)]  # eq: matched
    return (both[0] + both[1]) / 2  # eq: matched


def sigmoid_loss(
    image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float | None = None, *, gradients: bool = True
) -> Tensor:
    """``-Σ log sigmoid(±(scale · image · textᵀ + bias)) / pictures``, plus where the two belong together.

    SigLIP (Zhai et al., 2023): the sum over the texts, the mean over the pictures. A picture's texts are those of all
    processes.
    """
    logits = pair_logits(image, text, scale, bias, gradients=gradients)
    columns = torch.arange(logits.images.shape[1], device=image.device)
    sign = torch.where(columns == logits.labels[:, None], 1.0, -1.0)
    total = -F.logsigmoid(sign.to(logits.images.dtype) * logits.images).sum()  # eq: sigmoid
    return logits.share * total / len(image)  # eq: sigmoid


def ranked_loss(
    image: Tensor, text: Tensor, kind: str = "hardest", margin: float = 0.2, scale: Tensor | float = 1.0
) -> Tensor:
    """A loss of `zoo.tasks.ranking` (hinge, hardest, circle, ...) over the scores of each picture with all texts, and
    of each text with all pictures; the mean of both.
    """
    if kind not in RANKING_LOSSES:
        raise unknown("ranking loss", kind, RANKING_LOSSES)
    logits = pair_logits(image, text, scale)
    both = [ranking_loss(kind, x, logits.labels, margin) for x in (logits.images, logits.texts)]
    return logits.share * (both[0] + both[1]) / 2


def nt_xent_logits(first: Tensor, second: Tensor, temperature: float, *, normalize: bool = True) -> Tensor:
    """The similarity of each view with every other, by the temperature: (2 n, 2 N), the first views before the
    second, -inf for a view with itself. Columns are those of all processes, N of them in each half.
    """
    return _views(first, second, temperature, normalize)[0]


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float = 0.1,
    *,
    normalize: bool = True,
    scale: Directions = "mean",
) -> Tensor:
    """NT-Xent over two views (n, size) of the same pictures: cross-entropy of each view over all others of
    the batch, its partner the right one.

    scale: "mean" over the 2n views (SimCLR's paper, lightly, sthalles); "both": the sum of the two directions, each
    the mean over n, twice as much (Google's code); "sum" over the views. normalize: cosines (Google's
    ``hidden_norm``); False: plain products.
    """
    if scale not in ("mean", "both", "sum"):
        raise unknown("scale of NT-Xent", scale, ("mean", "both", "sum"))
    logits, labels, total = _views(first, second, temperature, normalize)
    summed = F.cross_entropy(logits, labels, reduction="sum")  # eq: nt-xent
    return summed * world() / {"mean": 2 * total, "both": total, "sum": 1}[scale]  # eq: nt-xent


def queue_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float, *, normalize: bool = False) -> Tensor:
    """(n, 1 + K): each query with its own key, then with what stands in the queue, by the temperature.

    query, key (n, size), queue (K, size): a row for each former key. MoCo's files hold it transposed.
    """
    same_rows(query, key, "query", "key")
    if queue.dim() != 2 or queue.shape[1] != query.shape[1]:
        raise InputError(f"queue must be (keys, {query.shape[1]}), got {tuple(queue.shape)}")
    if normalize:
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    query, key, queue = widened(query), widened(key), widened(queue)
    own = (query * key).sum(1, keepdim=True)  # eq: queue
    return torch.cat([own, query @ queue.to(query.dtype).T], 1) / temperature  # eq: queue


def queue_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    """InfoNCE of queries against a queue: the own key is the right one, nothing else of the batch counts.

    MoCo and BriVL hand over unit vectors and take the mean, InfoXLM takes vectors as they are and the ``sum``.
    The queue is as it was before these keys enter it.
    """
    logits = queue_logits(query, key, queue, temperature, normalize=normalize)
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    summed = F.cross_entropy(logits, labels, reduction="sum")  # eq: queue-loss
    if reduction == "sum":
        return summed * world()
    return summed * world() / sum(row_counts(query))  # eq: queue-loss


def noise_contrast(own: Tensor, noise: Tensor, count: int, *, epsilon: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Noise-contrastive estimation (Gutmann & Hyvärinen, 2010) with uniform noise over ``count`` samples: the terms of
    the right sample and of the noise, ``-mean log h(own)`` and ``-mean Σ log(1 - h(noise))``.

    own (n, 1) and noise (n, K): ``exp(score / T) / Z``, not logits. ``h(p) = p / (p + K / count)``; epsilon is added to
    the denominators, as the code of instance discrimination and CPD does.
    """
    flat = noise.shape[1] / count  # eq: noise
    right = (own / (own + flat + epsilon)).log()  # eq: noise
    wrong = (flat / (noise + flat + epsilon)).log()  # eq: noise
    return -right.mean(), -wrong.sum(1).mean()


def same_rows(one: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Refuse two sets of vectors whose rows can't be pairs."""
    if one.dim() != 2 or one.shape != other.shape or not len(one):
        raise InputError(
            f"{name} and {other_name} must both be (pairs, size), a row of one for each of the other, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )


def _gathered(rows: Tensor, counts: list[int], gradients: bool, own: bool) -> Tensor:
    """The rows of all processes; without ``gradients`` through the gathering this process's have one only where its
    ``own`` are put in their place.
    """
    if gradients or world() == 1:
        return gather_rows(rows, counts)
    parts = list(gather_rows(rows.detach(), counts).split(counts))
    if own:
        parts[rank()] = rows
    return torch.cat(parts)


def _scored(rows: Tensor, columns: Tensor, scale: Tensor | float, bias: Tensor | float | None) -> Tensor:
    logits = scale * widened(rows @ columns.T)
    return logits if bias is None else logits + bias


def _views(first: Tensor, second: Tensor, temperature: float, normalize: bool) -> tuple[Tensor, Tensor, int]:
    """`nt_xent_logits`, the column of each view's partner, and the number of pictures of all processes."""
    same_rows(first, second, "first", "second")
    if not temperature > 0:
        raise InputError(f"temperature must be above zero, got {temperature}")
    counts = row_counts(first)
    start, total, n = sum(counts[: rank()]), sum(counts), len(first)
    if normalize:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    views = torch.cat([first, second])  # (2 n, size)
    everyone = torch.cat([gather_rows(first, counts), gather_rows(second, counts)])  # (2 N, size)
    own = torch.arange(start, start + n, device=first.device)
    selves, partners = torch.cat([own, own + total]), torch.cat([own + total, own])
    logits = widened(views @ everyone.T) / temperature  # eq: nt-xent
    itself = torch.arange(2 * total, device=first.device) == selves[:, None]
    return logits.masked_fill(itself, -torch.inf), partners, total  # eq: nt-xent
