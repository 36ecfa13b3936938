"""IA3 as ``peft`` computes it."""

from tests.adapters.adapter_libraries import peft_linear
from tests.adapters.case import Adapter

ADAPTERS: dict[str, Adapter] = {"peft.get_peft_model": peft_linear}
