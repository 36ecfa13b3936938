"""What lies beside a model's weights: its tokenizer, how it wants its pictures, how it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zoo.data.images.images import Images
from zoo.errors import InputError
from zoo.tokenization import Tokenizer


class Companions:
    """A model's ``tokenizer`` and ``images``, each read when it is first asked for; None for a model
    without files of its own, until it is set.
    """

    find_tokenizer: Callable[[], Tokenizer] | None = None  # by where the weights came from
    find_images: Callable[[], Images | None] | None = None
    _tokenizer: Tokenizer | None = None
    find_search: Callable[[], Any] | None = None  # how its authors wrote with it
    _images: Images | None = None
    _search: Any = None

    @property
    def search(self) -> Any:
        """The settings of `zoo.generate` that lie with the weights, a `zoo.Search`."""
        if self._search is None and self.find_search is not None:
            self._search = self.find_search()
        return self._search

    @search.setter
    def search(self, search: Any) -> None:
        self._search = search

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies with the weights."""
        if self._tokenizer is None and self.find_tokenizer is not None:
            self._tokenizer = self.find_tokenizer()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer, or an InputError that says how to give one."""
        if (found := self.tokenizer) is None:
            raise InputError(
                "this model was not loaded from a place with a tokenizer; set model.tokenizer = zoo.tokenizer(NAME)"
            )
        return found

    @property
    def images(self) -> Images | None:
        """How the model wants its pictures, as the variant or the files beside the weights say."""
        if self._images is None and self.find_images is not None:
            self._images = self.find_images()
        return self._images

    @images.setter
    def images(self, images: Images) -> None:
        self._images = images

    def need_images(self) -> Images:
        """The same, or an InputError that says how to give it."""
        if (found := self.images) is None:
            raise InputError(
                "nothing says how this model wants its pictures; set model.images = zoo.images(NAME), or "
                "zoo.data.images.images.Images(...)"
            )
        return found
