"""JSON of foreign files and servers: whatever is wrong with it is a CheckpointError."""

from __future__ import annotations

import json
from typing import Any

from zoo.errors import CheckpointError


def parse_json(text: str | bytes, what: str) -> Any:
    """The value; ``what`` names the text in messages. Refused are also numbers of thousands of digits,
    which Python does not read, and values nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise CheckpointError(f"{what} is not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from error
