"""AraBERT (aub-mind/arabert): the cleaning of text. The encoder is BERT's."""

from __future__ import annotations

from typing import Any

from tests.references.case import Adapter, Case
from zoo.tokenization.arabic import ArabicCleaner

STEPS = {
    "remove_html_markup": "remove_markup",
    "replace_urls_emails_mentions": "replace_addresses",
    "strip_tashkeel": "strip_vowels",
    "strip_tatweel": "strip_stretch",
    "insert_white_spaces": "insert_blanks",
    "remove_non_digit_repetition": "limit_repetition",
    "keep_emojis": "keep_emojis",
    "replace_slash_with_dash": "slash_to_dash",
    "map_hindi_numbers_to_arabic": "western_digits",
}


def preprocess(case: Case) -> dict[str, Any]:
    items = []
    for item in case.info["items"]:
        given = item["input"]
        cleaner = ArabicCleaner.of(
            given["model_name"], **{STEPS[name]: value for name, value in given["options"].items()}
        )
        items.append({"text": cleaner(given["text"])})
    return {"items": items}


ADAPTERS: dict[str, Adapter] = {"ArabertPreprocessor.preprocess": preprocess}
