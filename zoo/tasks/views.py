"""Tasks that learn from pairs alone: two views of a picture, a sentence and its translation, a picture and its text.

    view-contrast             SimCLR: the other views of the batch are the wrong answers (NT-Xent)
    momentum-contrast         MoCo: a queue of former keys, computed by a momentum encoder
    cross-lingual-contrast    InfoXLM's: MoCo's over the first token's state of some layer, vectors as they are, a sum
    image-text-contrast       CLIP's: each picture and each text of the batch
    image-text-momentum       BriVL's: MoCo's both ways between pictures and texts, see `zoo.tasks.tower_queues`

Inputs of the first three have one more axis, behind the batch's, for the two views: (batch, 2, ...). Without it
there is nothing to compare; then the result has the vectors, and no loss. In a group of processes the losses are
those of the whole batch, see `zoo.tasks.contrast`.

Queues and momentum encoders are made by ``start()`` and change in ``before_step()`` and ``after_step(outputs)``,
between which the passes of an update run. `zoo.training.fit` calls all three. A loop of your own does too:

    model.start()
    for batch in batches:
        model.before_step()
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        model.after_step([output])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError, TaskError, unknown
from zoo.layers.pooler import pool
from zoo.models.base.model import Model
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel, along, with_an_axis
from zoo.tasks.contrast import clip_loss, nt_xent, pair_logits, queue_logits, queue_loss, sigmoid_loss
from zoo.tasks.memory import MomentumTwin, Queue, momentum_schedule, shuffled_keys
from zoo.tasks.processes import row_counts
from zoo.tasks.projection import projection_of

POOLINGS = ("cls", "mean", "max")
VIEWS = 2


def check_temperature(options: Mapping[str, Any]) -> None:
    """Refuse what nothing can be divided by."""
    if not isinstance(options["temperature"], int | float) or not options["temperature"] > 0:
        raise ConfigError(f"temperature must be a number above zero, got {options['temperature']!r}")


def check_queue_size(options: Mapping[str, Any]) -> None:
    """Refuse what is no number of keys."""
    size = options["queue_size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"queue_size={size!r} must be a whole number of at least 1")


def started(model: TaskModel, name: str) -> nn.Module:
    """What trains beside a model, or a TaskError that says how it is made."""
    beside = cast(nn.ModuleDict, model.beside)
    if name not in beside:
        raise TaskError(
            f"{model.task or type(model).__name__} has no queue and no momentum encoder yet; call model.start() first"
        )
    return beside[name]


class Contrastive(TaskModel):
    """Base of the tasks here: `vectors` are computed row by row, `contrast` compares those of all rows.

    That the two are apart lets an update go over more rows than fit into memory with gradients
    (`zoo.training.grad_cache`): ``model(**batch, only_vectors=True)`` gives a result without a
    loss, whose ``scores`` are the vectors by name.
    """

    kept = frozenset({"only_vectors"})
    over_batch: ClassVar[bool] = True  # a row's loss depends on the other rows of the batch

    def vectors(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        """The vectors of a batch by name, one row for each of its pairs, and what the model returned; one entry where
        there are no pairs.
        """
        raise NotImplementedError

    def contrast(self, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The loss of such vectors, and logits where there are some to show."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor, **named: Any) -> TaskOutput:
        """The model's inputs, (batch, 2, ...) where they hold two views -> ``loss``, ``scores``: the
        vectors by name, ``embedding``: the first of them.
        """
        given = self.given(inputs, named)
        only = given.pop("only_vectors", False)
        vectors, encoded = self.vectors(given)
        made: dict[str, Any] = {"embedding": next(iter(vectors.values())), "scores": vectors, "encoded": encoded}
        if only or len(vectors) < VIEWS:
            return TaskOutput(**made)
        loss, logits = self.contrast(vectors)
        return TaskOutput(loss, logits, losses={"contrast": loss}, **made)


class Encoder(nn.Module):
    """What makes a vector of an input: the model, what is read of its result, and a projection."""

    def __init__(self, model: Model, projection: nn.Module, pooling: str, layer: int | None) -> None:
        super().__init__()
        self.model, self.projection = model, projection
        self.pooling, self.layer = pooling, layer

    def forward(self, **given: Any) -> tuple[Tensor, Any]:
        if "picture" in self.model.offers:
            encoded = self.model(**given)
            return self.projection(self.model.offers["picture"].read(encoded)), encoded
        wanted = {} if self.layer is None else {"output_hidden_states": [self.layer]}
        encoded = self.model(**given, **wanted)
        states = self.model.offers["text"].read(encoded) if self.layer is None else encoded.hidden_states[0]
        real = self.model.padding_of("text", given, encoded, pack=False).real
        return self.projection(pool(states, real, self.pooling)), encoded


class ViewContrast(Contrastive):
    """SimCLR: two views of each example, NT-Xent over all views of the batch.

    options: temperature; scale, see `zoo.tasks.contrast.nt_xent`; normalize; the projection: "mlp",
    "batch-norm" (Google's), "matrix" or "none", its size and layers; of a text: pooling ("cls",
    "mean", "max") and layer (None: the last). What serves later is the vector ahead of the
    projection, in ``encoded``.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        cls.check(model, options)
        width = model.widths(model.config)["image" if "picture" in model.offers else "text"]
        form, size, layers = (options[n] for n in ("projection", "projection_size", "projection_layers"))
        return cls(model, {"projection": projection_of(form, width, size, layers)}, options)

    @classmethod
    def check(cls, model: Model, options: Mapping[str, Any]) -> None:
        """Refuse options that make no sense."""
        check_temperature(options)
        if options["pooling"] not in POOLINGS:
            raise unknown("pooling", options["pooling"], POOLINGS)
        layer = options["layer"]
        if layer is not None and not (isinstance(layer, int) and 0 <= layer <= model.config.num_layers):
            raise ConfigError(
                f"layer={layer!r} must be None or lie in 0..{model.config.num_layers}, 0 = what enters the first block"
            )

    @classmethod
    def heads_from(cls, spec: Any, model_class: Any) -> tuple[str, ...]:
        return ("projection",)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: Any, config: Any, model_class: Any
    ) -> dict[str, Any]:
        own = {n.removeprefix("heads.projection."): s for n, s in sizes.items() if n.startswith("heads.projection.")}
        layers = sum(n.startswith("layers.") and n.endswith(".weight") for n in own)
        if layers:
            form = "batch-norm" if any(n.startswith("norms.") for n in own) else "mlp"
            size = own[f"layers.{layers - 1}.weight"][0]
            return {"projection": form, "projection_layers": layers, "projection_size": size}
        return {"projection": "matrix"} if "weight" in own else {}

    @property
    def encoder(self) -> Encoder:
        """The model with its projection, as one module."""
        return Encoder(self.model, self.heads["projection"], self.options["pooling"], self.options["layer"])

    def unit(self, vectors: Tensor) -> Tensor:
        """Of length 1 where the options say so."""
        return F.normalize(vectors, dim=1) if self.options["normalize"] else vectors

    def views(self, given: Mapping[str, Any]) -> int:
        """How many views the rows of a call have: 2, or 1 where there is no axis of them."""
        wide = [name for name in with_an_axis(self.model, given) if not self.model.input_table[name].masks]
        if wide and any(given[name].shape[1] != VIEWS for name in wide):
            raise InputError(
                f"{wide[0]} must be (batch, {VIEWS}, ...), two views of each example, got {tuple(given[wide[0]].shape)}"
            )
        return VIEWS if wide else 1

    def vectors(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        if self.views(given) == 1:
            found, encoded = self.encoder(**given)
            return {"first": self.unit(found)}, encoded
        folded, _ = along(self.model, given, "views", VIEWS)
        found, encoded = self.encoder(**folded)
        first, second = self.unit(found).unflatten(0, (-1, VIEWS)).unbind(1)
        return {"first": first, "second": second}, encoded

    def contrast(self, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        first, second = vectors["first"], vectors["second"]
        options = self.options  # what is of length 1 stays so: plain products
        return nt_xent(first, second, options["temperature"], normalize=False, scale=options["scale"]), None


class MomentumContrast(ViewContrast):
    """MoCo: the first view is the query, the second the key, which a momentum encoder computes; wrong
    answers stand in a queue of the keys of earlier batches.

    options beside `ViewContrast`'s: queue_size, which the batch of all processes divides, or
    queue_wrap; momentum, a number or a schedule (`zoo.tasks.memory.momentum_schedule`);
    reduction, "mean" or "sum". The momentum encoder is updated before an update's passes, with the
    weights as they are then. In eval mode neither is used: keys come from the model itself, and the
    wrong answers are the other keys of the batch.
    """

    over_batch = False
    follows_after: ClassVar[bool] = False  # the momentum encoder is updated behind the optimizer's step

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__(model, heads, options)
        self.beside = nn.ModuleDict()
        self.momentum = momentum_schedule(options["momentum"])

    @classmethod
    def check(cls, model: Model, options: Mapping[str, Any]) -> None:
        super().check(model, options)
        if options["reduction"] not in ("mean", "sum"):
            raise unknown("reduction", options["reduction"], ("mean", "sum"))
        check_queue_size(options)

    def start(self, seed: int = 0) -> None:
        if len(self.beside):
            return
        head = self.heads["projection"]
        width = self.model.widths(self.config)["image" if "picture" in self.model.offers else "text"]
        width = self.options["projection_size"] if hasattr(head, "layers") else width
        queue = Queue(
            self.options["queue_size"],
            width,
            wrap=self.options["queue_wrap"],
            unit=self.options["normalize"],
            generator=torch.Generator().manual_seed(seed),
        )
        self.beside["queue"] = queue.to(self.device)
        self.beside["twin"] = MomentumTwin(self.encoder).train(self.training)

    @property
    def queue(self) -> Queue:
        """The keys of earlier batches."""
        return cast(Queue, started(self, "queue"))

    @property
    def twin(self) -> MomentumTwin:
        """The momentum encoder."""
        return cast(MomentumTwin, started(self, "twin"))

    def before_step(self) -> None:
        self.start()
        if not self.follows_after:
            self.twin.follow(self.encoder, self.momentum)

    def after_step(self, outputs: Sequence[TaskOutput]) -> None:
        if self.follows_after:
            self.twin.follow(self.encoder, self.momentum)
        for output in outputs:
            if "key" in output.scores:
                self.queue.enqueue(output.scores["key"])

    def vectors(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        if self.views(given) == 1 or not self.training:
            found, encoded = super().vectors(given)
            return dict(zip(("query", "key"), found.values(), strict=False)), encoded
        first, second = (self.view(given, number) for number in range(VIEWS))
        query, encoded = self.encoder(**first)
        return {"query": self.unit(query), "key": self.keys(second)}, encoded

    def view(self, given: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The arguments of one of the two views."""
        found = dict(given)
        for name in with_an_axis(self.model, given):
            found[name] = given[name][:, number]
        for name, row in self.model.input_table.items():
            if row.counts and given.get(name) is not None:
                found[name] = list(given[name])[number::VIEWS]
        return found

    @torch.no_grad()
    def keys(self, given: Mapping[str, Any]) -> Tensor:
        """The vectors of the momentum encoder, without gradient; where it has batch norms, computed by
        other processes (`shuffled_keys`).
        """

        def encode(inputs: dict[str, Any]) -> Tensor:
            return self.twin(**inputs)[0]

        normed = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.twin.modules())
        found = shuffled_keys(encode, dict(given)) if normed and self.training else encode(dict(given))
        return self.unit(found)

    def contrast(self, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        query, key = vectors["query"], vectors["key"]
        temperature = self.options["temperature"]
        if not self.training:
            scores = pair_logits(query, key, 1 / temperature)
            loss = scores.share * F.cross_entropy(scores.images, scores.labels, reduction=self.options["reduction"])
            return loss, scores.images
        loss = queue_loss(query, key, self.queue.keys, temperature, reduction=self.options["reduction"])
        with torch.no_grad():
            logits = queue_logits(query, key, self.queue.keys, temperature)
        return loss, logits


class CrossLingualContrast(MomentumContrast):
    """InfoXLM's cross-lingual contrast: the first view a text, the second its translation; vectors as
    they are, the sum over the batch. The momentum encoder is updated behind the optimizer's step.
    """

    follows_after = True

    @torch.no_grad()
    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Fill the queue with the keys of batches, as far as they go, so that no query meets random vectors."""
        self.start()
        count, size = 0, len(self.queue.keys)
        for batch in batches:
            given = {name: value for name, value in batch.items() if name in self.model.arguments}
            keys = self.keys(self.view(given, 1))
            self.queue.enqueue(keys)
            count += sum(row_counts(keys))
            if count >= size:
                break


class ImageTextContrast(Contrastive):
    """CLIP's objective for two towers: row i of the pictures belongs to row i of the texts.

    options: loss, "softmax" (both ways) or "sigmoid" (SigLIP's); smoothing, of the softmax's labels, the
    family's own unless it is given (ALIGN: 0.1).
    """

    @classmethod
    def spec_of(cls, spec: TaskSpec, model_class: Any) -> TaskSpec:
        return replace(spec, options={**spec.options, "smoothing": model_class.smoothing})

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        if options["loss"] not in ("softmax", "sigmoid"):
            raise unknown("contrastive loss", options["loss"], ("softmax", "sigmoid"))
        if not isinstance(options["smoothing"], int | float) or not 0 <= options["smoothing"] < 1:
            raise ConfigError(f"smoothing must be a number in [0, 1), got {options['smoothing']!r}")
        return cls(model, {}, options)

    @classmethod
    def heads_from(cls, spec: Any, model_class: Any) -> tuple[str, ...]:
        return ()

    def vectors(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        encoded = self.model(**given)
        found = {"image": encoded.image_embeds, "text": encoded.text_embeds}
        return {name: vectors for name, vectors in found.items() if vectors is not None}, encoded

    def after_step(self, outputs: Sequence[Any]) -> None:
        """CLIP's limit of the logits' scale."""
        cast(Any, self.model).limit_scale()

    def contrast(self, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        image, text, model = vectors["image"], vectors["text"], cast(Any, self.model)
        if self.options["loss"] == "sigmoid":
            return sigmoid_loss(image, text, model.scale, model.logit_bias), None
        return clip_loss(image, text, model.scale, model.logit_bias, smoothing=self.options["smoothing"]), None
