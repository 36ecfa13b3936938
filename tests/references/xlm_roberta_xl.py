"""XLM-R XL: Hugging Face's classes."""

from __future__ import annotations

from tests.references.case import Adapter
from tests.references.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.XLMRobertaXL": hugging_face}
