"""XNLG: a step of its trainer and greedy writing with a vocabulary mask, as XLM's."""

from __future__ import annotations

from functools import partial

from tests.references import xlm
from tests.references.case import Adapter

ADAPTERS: dict[str, Adapter] = {
    **xlm.ADAPTERS,
    "TransformerModel": partial(xlm.translation, layout="xnlg-original"),
    "EncDecTrainer.mt_step": partial(xlm.translation, layout="xnlg-original"),
}
