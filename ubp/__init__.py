"""Universal behavioral profiles: one vector per client, learned from a shop's event log.

`ubp.api` says what can be called as ``ubp.NAME``; it is imported when it is first asked for.
"""

from typing import Any


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the library offers)
    from importlib import import_module

    api = import_module("ubp.api")
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module 'ubp' has no attribute {name!r}; it has {', '.join(api.__all__)}")
