"""JSON of foreign files and servers: whatever is wrong with it is a CheckpointError."""

from __future__ import annotations

import json
from typing import Any

from zoo.errors import CheckpointError
from zoo.formats.limits import MAX_JSON_VALUES, check_json


def parse_json(text: str | bytes, what: str, at_most: int = MAX_JSON_VALUES) -> Any:
    """The value; ``what`` names the text in messages. Refused are also numbers of thousands of digits,
    which Python does not read, values nested too deeply, and more than ``at_most`` of them.
    """
    check_json(text, what, at_most)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{what} is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from error
