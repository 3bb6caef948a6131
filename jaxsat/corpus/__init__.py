"""Text in, token rows out."""

from jaxsat.corpus.documents import documents, list_corpora, parallel
from jaxsat.corpus.editions import cache_dir
from jaxsat.corpus.order import batch_at, batches
from jaxsat.corpus.pairs import Pair, encode_pairs
from jaxsat.corpus.rows import Corpus, Progress, at_hand, prepare

__all__ = [
    "Corpus",
    "Pair",
    "Progress",
    "at_hand",
    "batch_at",
    "batches",
    "cache_dir",
    "documents",
    "encode_pairs",
    "list_corpora",
    "parallel",
    "prepare",
]
