"""Text in, token rows out."""

from jaxsat.corpus.documents import documents, list_corpora, parallel
from jaxsat.corpus.editions import cache_dir
from jaxsat.corpus.rows import Corpus, Progress, at_hand, batch_at, batches, prepare

__all__ = [
    "Corpus",
    "Progress",
    "at_hand",
    "batch_at",
    "batches",
    "cache_dir",
    "documents",
    "list_corpora",
    "parallel",
    "prepare",
]
