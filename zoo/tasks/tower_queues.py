"""Two towers that learn from queues: BriVL's contrast of pictures and texts by momentum.

    image-text-momentum    a picture's own text against a queue of former texts, and the other way around

Keys are computed by a momentum encoder of both towers, see `zoo.tasks.views` for when it and the queues change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.base.model import Model
from zoo.models.base.outputs import TaskOutput
from zoo.tasks.base import TaskModel
from zoo.tasks.contrast import pair_logits, queue_loss
from zoo.tasks.memory import MomentumTwin, Queue, momentum_schedule, shuffled_keys
from zoo.tasks.views import Contrastive, check_queue_size, check_temperature, started

SIDES = ("image", "text")


class ImageTextMomentum(Contrastive):
    """Row i of the pictures belongs to row i of the texts; the wrong answers are keys of earlier batches.

        loss = -log softmax(image · [text key, text queue] / τ) - log softmax(text · [image key, image queue] / τ)

    each the mean over the batch, at the first place, the own key's. options: temperature; queue_size, which the
    batch of all processes divides, or queue_wrap; momentum, a number or a schedule. In eval mode the wrong answers
    are the batch's.
    """

    over_batch: ClassVar[bool] = False

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__(model, heads, options)
        self.beside = nn.ModuleDict()
        self.momentum = momentum_schedule(options["momentum"])

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        check_temperature(options)
        check_queue_size(options)
        return cls(model, {}, options)

    @classmethod
    def heads_from(cls, spec: Any, model_class: Any) -> tuple[str, ...]:
        return ()

    def start(self, seed: int = 0) -> None:
        if len(self.beside):
            return
        generator = torch.Generator().manual_seed(seed)
        width = cast(Any, self.model).embedding_size
        for side in SIDES:
            made = Queue(self.options["queue_size"], width, wrap=self.options["queue_wrap"], generator=generator)
            self.beside[f"{side}_queue"] = made.to(self.device)
        self.beside["twin"] = MomentumTwin(self.model).train(self.training)

    def queue(self, side: str) -> Queue:
        """The keys of earlier batches, of the "image" or "text" tower."""
        return cast(Queue, started(self, f"{side}_queue"))

    @property
    def twin(self) -> MomentumTwin:
        """The momentum encoder of both towers."""
        return cast(MomentumTwin, started(self, "twin"))

    def before_step(self) -> None:
        self.start()
        self.twin.follow(self.model, self.momentum)

    def after_step(self, outputs: Sequence[TaskOutput]) -> None:
        for output in outputs:
            for side in SIDES:
                if f"{side}_key" in output.scores:
                    self.queue(side).enqueue(output.scores[f"{side}_key"])

    def vectors(self, given: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
        encoded = self.model(**given)
        found = {side: getattr(encoded, f"{side}_embeds") for side in SIDES}
        found = {side: vectors for side, vectors in found.items() if vectors is not None}
        if self.training and len(found) == len(SIDES):
            found |= self.keys(given)
        return found, encoded

    @torch.no_grad()
    def keys(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """The vectors of the momentum encoder; where it has batch norms, computed by other processes."""

        def encode(inputs: dict[str, Any]) -> Tensor:
            towers = self.twin(**inputs)
            return torch.stack([towers[f"{side}_embeds"] for side in SIDES], 1)  # (batch, 2, size)

        image, text = shuffled_keys(encode, dict(given)).unbind(1)
        return {"image_key": image, "text_key": text}

    def contrast(self, vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        image, text, temperature = vectors["image"], vectors["text"], self.options["temperature"]
        if "text_key" not in vectors:
            scores = pair_logits(image, text, 1 / temperature)
            both = F.cross_entropy(scores.images, scores.labels) + F.cross_entropy(scores.texts, scores.labels)
            return scores.share * both, scores.images
        to_text = queue_loss(image, vectors["text_key"], self.queue("text").keys, temperature)  # eq: queues
        to_image = queue_loss(text, vectors["image_key"], self.queue("image").keys, temperature)  # eq: queues
        return to_text + to_image, None  # eq: queues
