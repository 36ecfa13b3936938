"""Bort: BERT's class at a searched shape, in Hugging Face's layout."""

from tests.references.case import Adapter
from tests.references.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.Bert": hugging_face}
