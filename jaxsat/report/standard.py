"""The sections that any sweep's report can show."""

import pandas as pd

from jaxsat.report import figures, tables
from jaxsat.report.page import Figure, Section, Table


def sections(measurements: pd.DataFrame, runs: pd.DataFrame) -> list[Section]:
    """Loss, head and representations of these runs: for an experiment that has no report of its own."""
    return [loss(measurements, runs), head(measurements, runs), representations(measurements, runs)]


def loss(measurements: pd.DataFrame, runs: pd.DataFrame) -> Section:
    curves = tables.joined(measurements, runs, "heldout_loss")
    last = tables.final_losses(measurements, runs)
    return Section(
        "Loss",
        "Held-out loss in nats per token, on the same fixed slice of documents that no run has trained on.",
        [
            Figure(
                "loss_against_tokens",
                "Held-out loss against training tokens; the band is the range over seeds.",
                figures.loss_against_tokens(measurements, runs),
                curves[["run", "size", "rank", "seed", "step", "tokens", "value"]],
            ),
            Figure(
                "rise_above_minimum",
                "Saturation as it would show itself: how far each run stands above its own lowest loss so far.",
                figures.rise_above_minimum(measurements, runs),
            ),
        ],
        [
            Table(
                "final_losses_by_rank", "Loss at the last checkpoint, by width and head rank.", tables.over_seeds(last)
            ),
            Table("final_losses", "Every run at its last checkpoint.", last),
        ],
    )


def head(measurements: pd.DataFrame, runs: pd.DataFrame) -> Section:
    return Section(
        "The output head",
        "Singular entropy is the divergence of the normalised singular values from uniform: 0 is flat, log r is rank "
        "one, and up is worse. Below: loss, singular entropy and anisotropy on one axis of tokens, so that what moves "
        "together can be seen to.",
        [
            Figure(
                "loss_against_rank",
                "Loss against the rank of the output head: trained jointly (solid), and heads retrained on the frozen "
                "backbone of the full-rank model (dashed).",
                figures.loss_against_rank(measurements, runs),
                tables.joined(measurements, runs, "frozen_head_loss")[["run", "size", "index", "value"]],
            ),
            Figure(
                "head_spectra",
                "Singular values of the head over the largest one, along training; paler is earlier.",
                figures.head_spectra(measurements, runs),
            ),
            Figure(
                "degeneration",
                "Loss, singular entropy over log r, and last-layer anisotropy of each width's largest head.",
                figures.degeneration(measurements, runs),
                tables.joined(
                    measurements, runs, "singular_entropy", "anisotropy_before_gain", "anisotropy_after_gain"
                )[["run", "size", "rank", "seed", "metric", "step", "tokens", "value"]],
            ),
        ],
    )


def representations(measurements: pd.DataFrame, runs: pd.DataFrame) -> Section:
    return Section(
        "Anisotropy",
        "Mean cosine between the representations of different positions, exactly, over the first 8192 held-out tokens.",
        [
            Figure(
                "anisotropy_by_layer",
                "Anisotropy at the last checkpoint, from the embedding to after the final norm's gain.",
                figures.anisotropy_by_layer(measurements, runs),
            )
        ],
    )
