"""Bort: BERT's class at a searched shape, in Hugging Face's layout."""

from tests.adapters.case import Adapter
from tests.adapters.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.Bert": hugging_face}
