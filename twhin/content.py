"""The items of a graph as vectors by the content encoder of the sequential encoder, as it is or trained on."""

from typing import Final

import torch
from torch import Tensor, nn

from ubp.training.content import ContentEncoder, Contents, item_vectors

_VECTORS: Final = "vectors"  # buffer of a frozen encoder's vectors


class ItemContent(nn.Module):
    """A content encoder and what it reads of a graph's items.

    Args:
        encoder: gives the vectors; its weights are trained unless it is frozen.
        contents: of the items, in the order of their numbers.
        frozen: leave the encoder as it is: the vectors are then computed once.
    """

    def __init__(self, encoder: ContentEncoder, contents: Contents, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        if frozen:
            encoder.requires_grad_(False)
            self.register_buffer(_VECTORS, torch.from_numpy(item_vectors(encoder, contents)), persistent=False)
            return
        encoder.requires_grad_(True)
        for unread in (encoder.url, encoder.query, encoder.searches):  # weights without gradients stop ddp
            unread.requires_grad_(False)
        encoder.ids.sparse = True
        self._columns = tuple(contents.tensors())
        for name, values in contents.tensors().items():
            self.register_buffer(name, values, persistent=False)

    @property
    def width(self) -> int:
        """Of the vectors."""
        return self.encoder.width

    def forward(self, items: Tensor) -> Tensor:
        """int64 [n] to float [n, width]."""
        if self.frozen:
            return self.get_buffer(_VECTORS)[items]
        vectors: Tensor = self.encoder.items({name: self.get_buffer(name)[items] for name in self._columns})
        return vectors
