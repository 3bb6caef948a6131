"""What a model says of token rows: pure functions of its parameters."""

from jaxsat.evaluate.scores import check_rows, exact, log_probabilities, token_losses

__all__ = ["check_rows", "exact", "log_probabilities", "token_losses"]
