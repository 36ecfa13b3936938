"""Which language a token is in: a table of vectors, asked for by number or by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import InputError, unknown
from zoo.layers.embeddings import check_ids, same_shape

Languages = Tensor | str | int | Sequence[str | int]


class LanguageEmbedding(nn.Embedding):
    """A vector for each language; ``names`` in the order of their ids, empty where only ids are known. ``std``: of its first values, where
    it differs from other tables'.
    """

    def __init__(self, num_languages: int, size: int, names: Sequence[str] = (), std: float | None = None) -> None:
        super().__init__(num_languages, size)
        self.names, self.std = tuple(names), std

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """A normal cut at two deviations, like every table's."""
        width = std if self.std is None else self.std
        nn.init.trunc_normal_(self.weight, 0, width, -2 * width, 2 * width, generator=generator)

    def forward(self, language_ids: Languages | None, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """``language_ids``: (batch, length) int, or a name or id, or one for each text; tokens (batch, length, size) -> like tokens.

        Raises InputError where none is given, UnknownNameError for a name that is not among ``names``.
        """
        return super().forward(self.ids(language_ids, tokens))

    def ids(self, language_ids: Languages | None, tokens: Tensor) -> Tensor:
        """Ids (batch, length) from whatever form they were given in."""
        batch, length = tokens.shape[:2]
        if language_ids is None:
            raise InputError(
                "this model tells languages apart: pass language_ids, (batch, length) int, or a language for all texts or one for each. "
                f"It knows {self.known}"
            )
        if isinstance(language_ids, Tensor):
            same_shape(language_ids, tokens, "language_ids")
            check_ids(language_ids, self.num_embeddings, "language_ids")
            return language_ids
        each = [language_ids] if isinstance(language_ids, (str, int)) else list(language_ids)
        if len(each) not in (1, batch):
            raise InputError(f"language_ids must be one language, or one for each of the {batch} texts, got {len(each)}")
        rows = torch.tensor([self.number(one) for one in each], device=tokens.device)
        return rows[:, None].expand(batch, length)

    def number(self, language: str | int) -> int:
        """The id of a language."""
        if isinstance(language, str):
            if language not in self.names:
                hint = f"(this model knows {self.known})"
                raise unknown("language", language, self.names, hint)
            return self.names.index(language)
        if not 0 <= language < self.num_embeddings:
            raise InputError(f"language_ids must lie in 0..{self.num_embeddings - 1}, got {language}; this model knows {self.known}")
        return language

    @property
    def known(self) -> str:
        """The languages, for messages."""
        if not self.names:
            return f"{self.num_embeddings} languages by their ids 0..{self.num_embeddings - 1}"
        return ", ".join(f"{number} {name}" for number, name in enumerate(self.names))


def ignore_languages(language_ids: object) -> None:
    """Say, where languages were given, that a model without a language embedding does not look at them."""
    if language_ids is not None and not torch.compiler.is_compiling():
        warnings.warn("this model has no language embedding; language_ids are ignored", UserWarning, stacklevel=4)
