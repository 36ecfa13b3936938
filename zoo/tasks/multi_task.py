"""12-in-1 (Lu et al., 2020): one ViLBERT under every head, a task's token in the text, and when
each task trains.

answers, grounding   binary cross entropy summed over answers or regions    retrieval, choice   softmax over the options
two pictures, entailment   binary cross entropy, a mean over the classes too
each task's loss times its learning rate's share
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError, TaskError, unknown
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel
from zoo.tasks.losses import binary_loss, label_tensor, row_loss, soft_answer_loss
from zoo.tasks.vision import SHOWN_BY, VisionTask, region_scores

HEADS = (
    "visual_question_answering",
    "gqa",
    "visual_reasoning",
    "visual_entailment",
    "image_text_retrieval",
    "grounding",
    "token_score",
)
FAMILY_HEADS = ("masked_lm", "masked_region", "image_text_matching")

TASK_IDS = {
    "vqa": 1,
    "genome-qa": 2,
    "visual-dialog": 3,
    "visual7w": 4,
    "vcr-answer": 5,
    "vcr-rationale": 6,
    "retrieval-coco": 7,
    "retrieval-flickr30k": 8,
    "refcoco": 9,
    "refcoco+": 10,
    "refcocog": 11,
    "nlvr2": 12,
    "visual-entailment": 13,
    "guesswhat": 14,
    "gqa": 15,
    "foil": 16,
    "guesswhat-pointing": 17,
}
"""The row of the task table for each data set."""

RELEASED_MIX = (1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 15, 17)
"""The twelve that the released checkpoint was trained on."""


class MultiTask(VisionTask):
    """Every head over one pass: ``scores`` by head, ``prediction_logits`` and ``region_logits``
    besides.

    ``visual_reasoning`` reads rows 2k and 2k + 1 as one sentence's two pictures; with an odd number
    of rows it is left out. The option ``only`` names the heads to build beside the family's; None:
    all.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        only = HEADS if options["only"] is None else tuple(options["only"])
        for name in only:
            if name not in HEADS:
                raise unknown("head of multi-task", name, HEADS)
        labels = {
            "visual_question_answering": options["num_answers"],
            "gqa": options["num_gqa_answers"],
            "visual_reasoning": 2,
        }
        widths = model.widths(model.config)
        heads = {name: model.heads[name](model.config) for name in FAMILY_HEADS if name in model.heads}
        for name in only:
            if name in ("visual_question_answering", "visual_reasoning"):
                heads[name] = cls.own_head(model, name, labels[name], options, 2 if name == "visual_reasoning" else 1)
            elif name == "gqa":
                heads[name] = cls.own_head(model, "visual_question_answering", labels[name], options)
            else:
                reads = {"grounding": "image", "token_score": "text"}.get(name, "pooled")
                heads[name] = nn.Linear(widths[reads], 3 if name == "visual_entailment" else 1)
        return cls(model, heads, {**options, "only": list(only)})

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return (*(name for name in FAMILY_HEADS if name in model_class.heads), *HEADS)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        present = [head for head in HEADS if any(name.startswith(f"heads.{head}.") for name in sizes)]
        found: dict[str, Any] = {"only": present} if present else {}
        answers = "heads.visual_question_answering"
        form = next((form for ending, form in SHOWN_BY.items() if f"{answers}.{ending}" in sizes), None)
        if form is not None:
            found["head"] = form
        for head, option in (("visual_question_answering", "num_answers"), ("gqa", "num_gqa_answers")):
            for ending in ("weight", "output.weight", "output.direction"):
                if f"heads.{head}.{ending}" in sizes:
                    found[option] = sizes[f"heads.{head}.{ending}"][0]
        return found

    def forward(
        self,
        *inputs: Tensor,
        head: str | None = None,
        labels: Tensor | None = None,
        candidates: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """``head``: the one that ``labels`` are for, see `multi_task_loss`; ``candidates`` as
        there.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        pooled = self.dropout(need_pooler(encoded))
        real = self.model.padding_of("regions", given, encoded).real
        scores = {}
        for name, part in self.heads.items():
            if name in FAMILY_HEADS:
                continue
            if name == "visual_reasoning":
                if len(pooled) % 2 == 0:
                    scores[name] = part(rearrange(pooled, "(batch pair) size -> batch (pair size)", pair=2))
            elif name == "grounding":
                scores[name] = region_scores(part, self.dropout(encoded.image.last_hidden_state), real)
            elif name == "token_score":
                scores[name] = part(self.dropout(encoded.text.last_hidden_state)).squeeze(2)
            else:
                scores[name] = part(pooled).squeeze(1) if name == "image_text_retrieval" else part(pooled)
        terms = [term for term in self.model.pretraining if term.head_name in FAMILY_HEADS]
        told = {term.output: self.score(term, given, encoded)[0] for term in terms}
        loss = None
        if labels is not None:
            if head not in scores:
                raise InputError(f"labels need head=, one of {', '.join(scores)}; got {head!r}")
            loss = multi_task_loss(head, scores[head], labels, candidates, real)
        return TaskOutput(
            loss,
            None if head is None else scores.get(head),
            losses={} if loss is None else {str(head): loss},
            encoded=encoded,
            scores=scores,
            **told,
        )


def multi_task_loss(
    head: str, scores: Tensor, labels: Tensor, candidates: Tensor | None = None, real: Tensor | None = None
) -> Tensor:
    """A head's training loss.

    visual_question_answering, gqa: labels (batch, answers) of soft scores. grounding: (batch,
    regions) of soft scores, of which those that are not ``real`` (batch, regions) do not count; with
    ``candidates`` (batch, number), places in the region axis, the scores there are judged
    (pointing). image_text_retrieval: scores (batch · options,), labels (batch,) the right option.
    visual_reasoning, visual_entailment: (batch, classes), one-hot.
    """
    labels = label_tensor(labels)
    if head in ("visual_question_answering", "gqa"):
        return soft_answer_loss(scores, labels)
    if head == "grounding":
        if candidates is not None:
            candidates = label_tensor(candidates, "candidates")
            scores, real = scores.gather(1, candidates), None if real is None else real.gather(1, candidates)
        return soft_answer_loss(scores, labels, real=real)
    if head == "image_text_retrieval":
        return row_loss(scores.unflatten(0, (len(labels), -1)), labels)
    if head in ("visual_reasoning", "visual_entailment"):
        return binary_loss(scores, labels, None)
    raise TaskError(f"no loss is known for the head {head!r}")


def batch_score(head: str, scores: Tensor, labels: Tensor, candidates: Tensor | None = None) -> Tensor:
    """What the training code watches: the mean soft score, or accuracy, of the best-scored answer,
    option or region.
    """
    if head == "image_text_retrieval":
        return (scores.unflatten(0, (len(labels), -1)).argmax(1) == labels).float().mean()
    if head == "grounding" and candidates is not None:
        return (scores.gather(1, candidates).argmax(1) == labels.argmax(1)).float().mean()
    reached = labels.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    return ((reached > 0.5).float() if head == "grounding" else reached).mean()


class StopAndGo:
    """Dynamic stop-and-go: a task whose score has stopped to grow trains only now and then, until
    its score falls again.

    ``step`` takes the score after each of the task's epochs. ``threshold`` is the relative growth
    that counts, ``patience`` how many epochs without it are borne, ``cooldown`` how many epochs
    after a change are not counted, ``continue_threshold`` the relative fall that starts the task
    again. ``trains(iteration)``: whether the task takes part, of a stopped one every ``gap``-th.
    """

    def __init__(
        self,
        mode: str = "max",
        *,
        patience: int = 1,
        threshold: float = 0.001,
        continue_threshold: float = 0.005,
        cooldown: int = 1,
        gap: int = 4,
        threshold_mode: str = "rel",
    ) -> None:
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ConfigError(
                f"mode must be 'min' or 'max' and threshold_mode 'rel' or 'abs', got {mode!r} and {threshold_mode!r}"
            )
        self.mode, self.patience, self.threshold, self.continue_threshold = (
            mode,
            patience,
            threshold,
            continue_threshold,
        )
        self.cooldown, self.gap, self.relative = cooldown, gap, threshold_mode == "rel"
        self.best = -math.inf if mode == "max" else math.inf
        self.stopped = False
        self.bad_epochs = self.cooling = 0

    def step(self, score: float) -> bool:
        """Take an epoch's score -> whether the task is stopped now."""
        if self._grew(score):
            self.best, self.bad_epochs = score, 0
        else:
            self.bad_epochs += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            self.stopped, self.cooling, self.bad_epochs = True, self.cooldown, 0
        elif self.stopped and self._fell(score):
            self.stopped, self.cooling, self.bad_epochs = False, self.cooldown, 0
        return self.stopped

    def trains(self, iteration: int) -> bool:
        """Whether the task takes part in this iteration."""
        return not self.stopped or iteration % self.gap == 0

    def _grew(self, score: float) -> bool:
        if self.mode == "max":
            return score > (self.best * (1 + self.threshold) if self.relative else self.best + self.threshold)
        return score < (self.best * (1 - self.threshold) if self.relative else self.best - self.threshold)

    def _fell(self, score: float) -> bool:
        """In the reference a fall below the best, whatever the mode."""
        return score < (
            self.best * (1 - self.continue_threshold) if self.relative else self.best - self.continue_threshold
        )


def loss_share(learning_rate: float, learning_rates: Mapping[str, float] | list[float]) -> float:
    """By what a task's loss is multiplied, so that one optimizer gives each task its learning rate:
    relative to the smallest.
    """
    rates = learning_rates.values() if isinstance(learning_rates, Mapping) else learning_rates
    return learning_rate / min(rates)
