"""`torch.compile` for the parts of a network that it serves."""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from lit_detect.errors import InputError

__all__ = ["compile_parts"]


def compile_parts(network: nn.Module) -> None:
    """Compile the parts of a network that it names in `compiled`, a dict from a part to whether its inputs vary in size; once.

    The rest works on what differs from batch to batch, such as targets and proposals.

    Raises:
        InputError: the network names none.
    """
    parts: dict[str, bool | None] = getattr(network, "compiled", {})
    if not parts:
        raise InputError(f"Expected a network with parts to compile but {type(network).__name__} has no `compiled`.")
    for name, dynamic in parts.items():
        part = attrgetter(name)(network)
        # layers of the backbone's that serve as the box head are no module
        if isinstance(part, nn.Module) and part._compiled_call_impl is None:
            part.compile(fullgraph=True, dynamic=dynamic)
