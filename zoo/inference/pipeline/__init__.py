"""From texts to labels, entities, answers, words, vectors and other texts, and from pictures to vectors,
labels and captions: a class for each task, see `zoo.inference.pipeline.base`.
"""

from __future__ import annotations

from zoo.inference.pipeline.answers import QuestionAnsweringPipeline
from zoo.inference.pipeline.base import Pipeline, RowPipeline
from zoo.inference.pipeline.captions import CaptionPipeline
from zoo.inference.pipeline.classification import MultipleChoicePipeline, SequenceClassificationPipeline
from zoo.inference.pipeline.embeddings import SentenceEmbeddingPipeline
from zoo.inference.pipeline.pictures import ImageEmbeddingPipeline, ZeroShotImageClassificationPipeline
from zoo.inference.pipeline.tags import TokenClassificationPipeline
from zoo.inference.pipeline.words import FillMaskPipeline
from zoo.inference.pipeline.writing import ContinuingPipeline, WritingPipeline

PIPELINES: dict[str, type[Pipeline]] = {
    pipeline.task: pipeline
    for pipeline in (
        SequenceClassificationPipeline,
        TokenClassificationPipeline,
        QuestionAnsweringPipeline,
        MultipleChoicePipeline,
        FillMaskPipeline,
        SentenceEmbeddingPipeline,
        WritingPipeline,
        ContinuingPipeline,
    )
}
PICTURE_PIPELINES: dict[str, type[RowPipeline]] = {
    pipeline.task: pipeline
    for pipeline in (ImageEmbeddingPipeline, ZeroShotImageClassificationPipeline, CaptionPipeline)
}
"""Those whose rows are pictures."""
