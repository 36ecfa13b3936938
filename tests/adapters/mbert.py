"""Multilingual BERT: BERT's layout with other vocabularies."""

from tests.adapters.case import Adapter
from tests.adapters.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.Bert": hugging_face}
