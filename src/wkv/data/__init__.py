"""Corpus → tokens → batches. Nothing here needs torch: a block is NumPy until it is a batch."""

from .binidx import Binidx, BinidxWriter
from .blocks import IGNORED, Blocks
from .corpus import read_documents, tokenize

__all__ = ["IGNORED", "Binidx", "BinidxWriter", "Blocks", "read_documents", "tokenize"]
