"""XLM-R XL: Hugging Face's classes."""

from __future__ import annotations

from tests.adapters.case import Adapter
from tests.adapters.text_models import hugging_face

ADAPTERS: dict[str, Adapter] = {"transformers.XLMRobertaXL": hugging_face}
