"""The shapes in the signatures of `zoo.layers` and `zoo.models`, checked at each call while the suite runs.

`tests/conftest.py` installs the check before zoo is imported. It steps aside under compile and export, which would
trace it; where the library refuses the arguments in its own words, so that users' errors stay ours; in sub-processes;
and everywhere with ``JAXTYPING_DISABLE=1``, as for whoever measures time.

jaxtyping has a hook of its own. This one leaves functions without shapes as they are, looks at arguments once rather
than twice, and knows the two exceptions.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, get_args

import jaxtyping
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

SHAPES = {**vars(jaxtyping), "Tensor": torch.Tensor}  # for results that inherit fields and import none of it
ROOMS = ("zoo.layers", "zoo.models")
RESULT = inspect.Parameter("result", inspect.Parameter.POSITIONAL_OR_KEYWORD)


def install() -> None:
    """Check whatever is imported from the rooms from here on."""
    if jaxtyping.config.jaxtyping_disable:
        return
    assert not any(name.startswith(ROOMS) for name in sys.modules), "zoo was imported before the check of shapes"
    sys.meta_path.insert(0, Finder())


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(ROOMS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        watch(module)


def watch(module: ModuleType) -> None:
    """Put the check around each function and method that a module defines."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            setattr(module, name, checked(value))
        elif inspect.isclass(value):
            for attribute, part in list(vars(value).items()):
                watch_part(value, attribute, part)


def watch_part(owner: type, name: str, part: Any) -> None:
    if inspect.isfunction(part):
        made: Any = checked(part)
    elif isinstance(part, (classmethod, staticmethod)):
        made = type(part)(checked(part.__func__))
    elif isinstance(part, property) and part.fget is not None:
        made = property(checked(part.fget), part.fset, part.fdel, part.__doc__)
    else:
        return
    setattr(owner, name, made)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its shapes checked, arguments before it runs and the result after; mypy sees to other types."""
    shaped = {name: hint for name, hint in hints_of(function) if has_shape(hint)}
    if not shaped:
        return function
    result = shaped.pop("return", None)
    arguments = check_of(inspect.signature(function).parameters.values(), shaped)
    returned = None if result is None else check_of([RESULT], {RESULT.name: result})

    @functools.wraps(function)
    def with_shapes(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with jaxtyping.jaxtyped("context"):  # an axis has one size in all that a call is given and gives
            try:
                arguments(*args, **kwargs)
            except BeartypeCallHintViolation:
                function(*args, **kwargs)  # a user's mistake meets the library's own error
                raise
            out = function(*args, **kwargs)
            if returned is not None:
                returned(out)
        return out

    return with_shapes


def hints_of(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Each annotation as an object; names that only a type checker knows are left out, but never a shape."""
    for name, hint in function.__annotations__.items():
        try:
            yield name, eval(hint, SHAPES, function.__globals__) if isinstance(hint, str) else hint
        except NameError:
            if "[Tensor, " in hint:
                raise


def check_of(parameters: Iterable[inspect.Parameter], hints: dict[str, Any]) -> Callable[..., None]:
    """A function with these parameters that does nothing but be checked by beartype; all may be left out."""
    written, stars = [], {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not any(one.startswith("*") for one in written):
            written.append("*")
        hint = f": hints['{parameter.name}']" if parameter.name in hints else ""
        star = stars.get(parameter.kind)
        written.append(f"{star}{parameter.name}{hint}" if star else f"{parameter.name}{hint} = None")
    scope: dict[str, Any] = {"hints": hints}
    exec(f"def check({', '.join(written)}): pass", scope)
    return beartype(scope["check"])


def has_shape(hint: Any) -> bool:
    """Whether an annotation holds a shape, alone or inside a union or a container."""
    inside = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return inside or any(has_shape(part) for part in get_args(hint))
