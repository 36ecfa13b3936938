"""Which tasks there are, what each reads, and so which fit a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import TaskError, unknown


@dataclass(frozen=True)
class TaskSpec:
    """A task: what it ``reads`` of what a model offers, the ``heads`` it needs of the family's, the
    options it takes with their defaults, and the class that builds it.

    Offers are "text": the states of a text, "pooled": its pooled vector, "entities" and "mentions":
    what it knows beside the text; of an encoder-decoder "target"; of a model of pictures and words
    "words", "regions" and "fused", the pooled vector of both; of two towers "text_vector" and "image_vector", and
    "queued_keys" where they are trained against queues; "pretraining": terms of an objective.
    A family may offer more. One name may stand for several specs, one for each kind of model:
    `spec_for` chooses.
    """

    name: str
    reads: frozenset[str]
    class_path: str
    heads: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""

    @property
    def term(self) -> str:
        """The term that it trains, where it trains one alone."""
        return self.heads[0] if self.heads else self.name.replace("-", "_")

    def missing(self, offers: frozenset[str]) -> list[str]:
        """What a model lacks for this task, in words."""
        return sorted(self.reads - offers) + [f"a {head} head" for head in self.heads if head not in offers]


def _spec(name: str, reads: str, where: str, summary: str, *heads: str, **options: Any) -> TaskSpec:
    return TaskSpec(name, frozenset(reads.split()), f"zoo.tasks.{where}", heads, options, summary)


_PROJECTED = {"projection": "mlp", "projection_size": 128, "projection_layers": 2, "pooling": "cls", "layer": None}
_TOWER_QUEUES = {"temperature": 0.07, "queue_size": 9_600, "queue_wrap": False, "momentum": 0.99}
_REGIONS = {"region_target": "classes", "num_negatives": 128}

SPECS = (
    _spec("masked-lm", "text", "objective:Objective", "the masked words", "masked_lm"),
    _spec("masked-lm", "words", "objective:Objective", "the masked words", "masked_lm"),
    _spec(
        "replaced-token-detection",
        "text",
        "objective:Objective",
        "which tokens are not the original ones",
        "replaced_token",
    ),
    _spec("next-sentence", "pooled", "objective:Objective", "whether B follows A (0 = it does)", "next_sentence"),
    _spec("sentence-order", "pooled", "objective:Objective", "whether A and B were swapped (0 = no)", "sentence_order"),
    _spec(
        "pretraining",
        "pretraining words",
        "objective:Objective",
        "all pre-training objectives of the family together",
        **_REGIONS,
    ),
    _spec("pretraining", "pretraining", "objective:Objective", "all pre-training objectives of the family together"),
    _spec(
        "sequence-classification",
        "pooled",
        "text:SequenceClassification",
        "a label for a text or pair",
        num_labels=2,
        problem_type=None,
        labels=None,
    ),
    _spec(
        "sequence-classification",
        "fused",
        "vision:Classification",
        "a label for a picture and its words",
        num_labels=2,
        problem_type=None,
        labels=None,
        head=None,  # the head's form, None: the family's own; see zoo.tasks.vision
    ),
    _spec(
        "image-classification",
        "picture",
        "vision:ImageClassification",
        "a label for a picture",
        num_labels=1000,
        problem_type=None,
        labels=None,
    ),
    _spec(
        "token-classification",
        "text",
        "text:TokenClassification",
        "a label for each token",
        num_labels=2,
        labels=None,
    ),
    _spec("question-answering", "text", "text:QuestionAnswering", "the span that answers a question"),
    _spec("multiple-choice", "pooled", "text:MultipleChoice", "which of several texts is right"),
    _spec(
        "multiple-choice", "fused", "vision:VisionMultipleChoice", "which of several texts or pictures is right (VCR)"
    ),
    _spec("causal-lm", "text", "causal:CausalLM", "the next word of a text", "language_model"),
    _spec(
        "conditional-generation",
        "target",
        "seq2seq:ConditionalGeneration",
        "the next word of a target text, given a source",
        "language_model",
    ),
    _spec(
        "sentence-embedding",
        "text",
        "sentences:SentenceEmbedding",
        "one vector for a text, for search and similarity",
        pooling="mean",
        layers=[],  # what the pooled vector goes through, see zoo.tasks.sentences
        normalize=True,
    ),
    _spec("masked-region", "regions", "objective:Objective", "the masked regions", "masked_region", **_REGIONS),
    _spec(
        "image-text-matching",
        "fused",
        "objective:Objective",
        "whether the words belong to the picture",
        "image_text_matching",
    ),
    _spec(
        "visual-question-answering",
        "words fused",
        "vision:VisualQuestionAnswering",
        "an answer to a question about a picture, with soft scores",
        num_labels=3129,
        labels=None,
        head=None,
    ),
    _spec(
        "visual-reasoning",
        "fused",
        "vision:VisualReasoning",
        "whether a sentence is true of two pictures (NLVR2)",
        num_labels=2,
        labels=None,
        pairs=None,
        head=None,
    ),
    _spec(
        "visual-entailment",
        "fused",
        "vision:VisualEntailment",
        "whether a picture entails a sentence (SNLI-VE)",
        num_labels=3,
        labels=None,
        head=None,
    ),
    _spec(
        "image-text-retrieval",
        "fused",
        "vision:Retrieval",
        "a score for how well words and picture match, for ranking",
        ranking=None,
        margin=0.2,
    ),
    _spec(
        "grounding",
        "regions",
        "vision:Grounding",
        "the region that an expression means (RefCOCO)",
        head=None,
        ranking="softmax",
        margin=0.2,
    ),
    _spec(
        "region-to-phrase",
        "words regions",
        "vision:RegionToPhrase",
        "the regions that phrases mean",
        "region_to_phrase",
    ),
    _spec(
        "multi-task",
        "words regions fused",
        "multi_task:MultiTask",
        "all heads of a 12-in-1 checkpoint, from one pass",
        "masked_lm",
        "masked_region",
        "image_text_matching",
        num_answers=3129,
        num_gqa_answers=1533,
        only=None,
        head=None,
    ),
    _spec(
        "entity-typing",
        "pooled entities",
        "knowledge:EntityTyping",
        "all the types of a marked mention",
        num_labels=2,
    ),
    _spec(
        "image-text-contrast",
        "text_vector image_vector",
        "views:ImageTextContrast",
        "which of the batch's texts belongs to a picture, and which picture to a text (CLIP)",
        loss="softmax",
        smoothing=0.0,
    ),
    _spec(
        "pretraining",
        "text_vector image_vector queued_keys",
        "tower_queues:ImageTextMomentum",
        "which text belongs to a picture, and which picture to a text, among queues of former ones (BriVL)",
        **_TOWER_QUEUES,
    ),
    _spec(
        "pretraining",
        "text_vector image_vector",
        "views:ImageTextContrast",
        "which of the batch's texts belongs to a picture, and which picture to a text (CLIP)",
        loss="softmax",
        smoothing=0.0,
    ),
    _spec(
        "image-text-momentum",
        "text_vector image_vector",
        "tower_queues:ImageTextMomentum",
        "which text belongs to a picture, and which picture to a text, among queues of former ones (BriVL)",
        **_TOWER_QUEUES,
    ),
    _spec(
        "view-contrast",
        "picture",
        "views:ViewContrast",
        "which two views of the batch show one picture (SimCLR)",
        temperature=0.1,
        scale="mean",
        normalize=True,
        **_PROJECTED,
    ),
    _spec(
        "momentum-contrast",
        "picture",
        "views:MomentumContrast",
        "which view shows the same picture, among a queue of former ones (MoCo)",
        temperature=0.2,
        normalize=True,
        reduction="mean",
        queue_size=65_536,
        queue_wrap=False,
        momentum=0.999,
        **_PROJECTED,
    ),
    _spec(
        "cross-lingual-contrast",
        "text",
        "views:CrossLingualContrast",
        "which text is the translation, among a queue of former ones (InfoXLM)",
        temperature=0.25,
        normalize=False,
        reduction="sum",
        queue_size=131_072,
        queue_wrap=True,
        momentum=0.9999,
        **{**_PROJECTED, "projection": "none"},
    ),
    _spec("entity-linking", "mentions", "objective:Objective", "which entity each candidate span means, if any"),
)
TASKS: dict[str, TaskSpec] = {}
for _one in SPECS:
    TASKS.setdefault(_one.name, _one)  # one spec of each name, the first


def task_spec(name: str) -> TaskSpec:
    """The task of that name; an unknown name is an UnknownNameError with the three closest."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def spec_for(name: str, offers: frozenset[str]) -> TaskSpec:
    """The task of that name as it is for a model with these ``offers``: the spec that lacks least."""
    task_spec(name)
    return min((spec for spec in SPECS if spec.name == name), key=lambda spec: len(spec.missing(offers)))


def offered(offers: Collection[str], heads: Iterable[str], pretraining: Collection[str]) -> frozenset[str]:
    """What a model offers to tasks: what its family says, its heads, and its objective where no task
    of one term is the same.
    """
    alone = len(pretraining) == 1 and any(spec.term in pretraining for spec in SPECS)
    return frozenset({*offers, *heads, *(["pretraining"] if pretraining and not alone else [])})


def fitting(offers: frozenset[str]) -> list[str]:
    """The names of the tasks that fit."""
    return [name for name in TASKS if not spec_for(name, offers).missing(offers)]


def require_fit(task: str, offers: frozenset[str], model: str) -> TaskSpec:
    """The task's spec, or a TaskError that says what the model lacks and which tasks fit it."""
    spec = spec_for(task, offers)
    if lacks := spec.missing(offers):
        raise TaskError(
            f"{task!r} does not fit {model}: it lacks {', '.join(lacks)}; tasks that fit: {', '.join(fitting(offers))}"
        )
    return spec
