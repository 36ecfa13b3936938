"""Multilingual BERT: BERT's layout with other vocabularies."""

from tests.references.case import Adapter
from tests.references.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.Bert": hugging_face}
