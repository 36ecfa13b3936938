"""Adapters of other libraries: the files of ``peft`` and ``adapters``, read and written."""

from zoo.checkpoints.adapters.files import load_adapter, save_adapter

__all__ = ["load_adapter", "save_adapter"]
