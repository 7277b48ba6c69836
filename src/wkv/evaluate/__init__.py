"""How well a model predicts text that it has not seen."""

from .heldout import HeldOut, blockwise, carried, loss_by_position

__all__ = ["HeldOut", "blockwise", "carried", "loss_by_position"]
