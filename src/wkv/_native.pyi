"""The native core. Its functions are private to the package; their Python callers document them."""

from typing import Any

def __getattr__(name: str) -> Any: ...
