"""IA3 as ``peft`` computes it."""

from tests.references.adapter_libraries import peft_linear
from tests.references.case import Adapter

ADAPTERS: dict[str, Adapter] = {"peft.get_peft_model": peft_linear}
