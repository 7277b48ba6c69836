"""Corpus → tokens → batches. Nothing here needs torch: a block is NumPy until it is a batch."""

from .binidx import Binidx, BinidxWriter
from .blocks import IGNORED, Blocks
from .corpus import read_documents, tokenize
from .ingest import Ingest, ingest
from .mask import loss_mask
from .packing import PackedDocuments
from .sources import read_records
from .templates import TEMPLATES, Segment, Template, encode_example, template, templates

__all__ = [
    "IGNORED",
    "TEMPLATES",
    "Binidx",
    "BinidxWriter",
    "Blocks",
    "Ingest",
    "PackedDocuments",
    "Segment",
    "Template",
    "encode_example",
    "ingest",
    "loss_mask",
    "read_documents",
    "read_records",
    "template",
    "templates",
    "tokenize",
]
