"""What a model says of texts, and what it writes: pure functions of its parameters."""

from jaxsat.evaluate.generation import generate, generate_tokens
from jaxsat.evaluate.items import Item, Items, items_of, read_items
from jaxsat.evaluate.likelihood import LogLikelihoods, log_likelihoods
from jaxsat.evaluate.scores import check_rows, exact, log_probabilities, token_losses
from jaxsat.evaluate.scoring import Scores, score

__all__ = [
    "Item",
    "Items",
    "LogLikelihoods",
    "Scores",
    "check_rows",
    "exact",
    "generate",
    "generate_tokens",
    "items_of",
    "log_likelihoods",
    "log_probabilities",
    "read_items",
    "score",
    "token_losses",
]
