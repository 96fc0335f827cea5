"""Workers of Ray Train that run one command together: the first prepares what all read, then the others begin.

Lightning starts the processes of further devices when the first one has come to train; Ray starts all at once. What is
made once and kept (the sequence store, say) the first one makes alone. Each worker calls one of these, once.
"""

from typing import Any

_begun = False  # in this process


def let_others_begin() -> None:
    """Of the first worker, when it is about to train: what the others read is there. No more than once."""
    global _begun
    if not _begun and _is_first():
        _begun = True
        _from_first(data=True)


def let_others_end() -> bool:
    """Of the first worker, when its command has ended: the others have nothing to do where it did not train.

    Returns:
        Whether they had begun.
    """
    if not _begun:
        _from_first(data=False)
    return _begun


def may_begin() -> bool:
    """Of another worker: wait for the first one; whether there is something to train."""
    return bool(_from_first(data=None))


def _is_first() -> bool:
    from ray.train import get_context

    return bool(get_context().get_world_rank() == 0)


def _from_first(data: bool | None) -> Any:  # noqa: ANN401 (Ray's)
    from ray.train.collective import broadcast_from_rank_zero

    return broadcast_from_rank_zero(data)
