"""Why do small language models stop improving? Saturation and the softmax bottleneck.

Godey, de la Clergerie and Sagot (2024), arXiv:2404.07647: small models saturate late in training, the spectrum of
their output head degenerates as they do, and a head of low rank costs loss whatever the backbone.

    jaxsat reproduce saturation                          laptop: 46 runs of width 8 to 64; 9 to 18 minutes on 2 cores
    jaxsat reproduce saturation --scale workstation      width 64 to 512, at most 4 epochs (not measured yet)
    jaxsat reproduce saturation --scale pod              the Pythia shapes on C4 (not measured yet)

Expect at the laptop scale: loss falls with every doubling of the head's rank; without weight decay the spectrum
degenerates while the loss still falls; heads on the synthetic language follow the square of the tail. Our small models
do not saturate there, and the report says what it takes; those of the paper do, in published evaluations.
"""

import dataclasses
from functools import partial

from jaxsat import measure
from jaxsat.claims import Claim, above, below, between, downstream, published
from jaxsat.claims.papers import ARTZI, GODEY, KULKARNI, MUON_SPECTRA, YANG
from jaxsat.corpus import synthetic
from jaxsat.experiments import _saturation as by
from jaxsat.experiments._saturation_sweeps import sweeps
from jaxsat.laws import HOFFMANN, Law
from jaxsat.measure import Computed, Measure, control
from jaxsat.report import Chart, Section, Table, standard
from jaxsat.train import drawn_from

CONTROL_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
NGRAMS = [measure.ngrams([text], vocab_size=size, contexts=by.CONTEXTS)
          for text in ("bible_web", "docs") for size in (4096, 8192)]  # fmt: skip
OPTIONAL = ["cause", "remedies", "optimizer", "known_rank", "spam", "saturating", "spectra", *(c.name for c in NGRAMS)]


TRUE_RANK = 8
KNOWN, SPAM = synthetic.KnownRank(TRUE_RANK), synthetic.Spam()
TASKS = {"known_rank": drawn_from(KNOWN), "spam": drawn_from(SPAM)}


def measures(scale: str) -> list[Measure]:
    """The standard ones; heads of every rank on frozen backbones, the two widest and all twice the knee; the gradient's
    way through the head; and what belongs to parts that are optional."""
    asked = {sweep.name: sweep.runs for sweep in sweeps(scale)}
    full = [run for run in asked["main"] if run.model.rank == run.model.width and run.seed == 0]
    least = min(2 * by.PAPER_KNEE, sorted(run.model.width for run in full)[-2])
    of_text, of_task = lambda run: not run.task, lambda name: lambda run: run.task == name
    last = partial(dataclasses.replace, at="last")
    return [
        measure.loss(runs=of_text),
        measure.head(),
        measure.anisotropy(runs=of_text),
        measure.frozen_heads(runs=lambda run: run in full and run.model.width >= least),
        last(measure.gradient_share(runs=lambda run: run in full or bool(run.imported.name))),
        measure.spectrum("up", runs=lambda run: run in asked.get("optimizer", ())),
        measure.all_spectra(runs=lambda run: run in full or bool(run.imported.name)),
        measure.excess_loss(KNOWN, runs=of_task("known_rank")),
        measure.excess_loss(SPAM, runs=of_task("spam")),
        measure.symbols_seen(runs=of_task("spam")),
    ]


def computed(scale: str) -> list[Computed]:
    """Languages softmax(W phi) with a W of rank 16 and a chosen spectrum: the theorem's premises hold exactly."""
    heads = lambda power: control(synthetic.world(512, 16, power, logit_sd=1.5, seed=0), CONTROL_RANKS)
    return [
        *published.lambada(),
        *(Computed(name, partial(heads, power)) for name, power in by.LANGUAGES.items()),
        *NGRAMS,
    ]


# Seeds and budgets of a width share its misfit, which three widths cannot tell: that of the laptop's ladder is 0.95 %.
_rung = partial(Law, groups="model.width", misfit=0.01, held_out="N")
LAWS = {
    "L(N, D), total parameters": _rung(by.ends),
    "L(N, D), non-embedding": _rung(partial(by.ends, params="params.nonembedding")),
    "A and alpha of the larger models": Law(
        lambda r: by.ends(r).query(f"N >= {by.PAPER_SMALL}"), hold=HOFFMANN, misfit=by.MISFIT
    ),
}


SMALL, LATE = "small models (below 4e8 parameters)", "the last tenth of the tokens against the least earlier level"
_main, _probe = dict(of=("main",)), dict(of=("probe",), kind="follow-up")
_gradient = dict(of=("main", "gradient_share"), kind="follow-up")
_cause, _heads = dict(of=("cause",), kind="follow-up"), dict(of=("remedies",), kind="follow-up")
CLAIMS = [
    Claim("saturation", f"Late in training the loss of {SMALL} goes up: more than 0.5 of them saturate, by the rule of "
          "`jaxsat detect`, where the smallest sees 21,000 tokens a parameter or more and at most 4 epochs.",
          GODEY, "models up to 410M", "secondary", partial(by.saturating, small=True), above(0.5), by.length_needs,
          **_main),
    Claim("larger_do_not", "Larger models do not: by the same rule fewer than 0.5 of them saturate.",
          GODEY, "models above 410M", "secondary", partial(by.saturating, small=False), below(0.5),
          by.saturation_needs, **_main),
    Claim("published_rise", f"Of the Pythia suite, {SMALL} end with a worse perplexity on LAMBADA than their best, and "
          "larger ones do not or by less. The perplexities are those that EleutherAI has published; none is ours.",
          GODEY, "160m: 24.6, then 32.9", "secondary", partial(published.lambada_rise, small=by.PAPER_SMALL), above(0),
          of=tuple(c.name for c in published.lambada())),
    Claim("gap_final", f"The final checkpoints of {SMALL} are worse than a law fitted to the larger ones, with E, B "
          "and beta of Hoffmann et al.; at the paper's scale by 8 %, give or take 5.",
          GODEY, "8 % worse on average", "secondary", partial(by.gap, at="final"), above(0), by.law_needs,
          between(3, 13), **_main),
    Claim("gap_best", "So are their best checkpoints; at the paper's scale by 4 %, give or take 4.",
          GODEY, "about 4 % worse", "secondary", partial(by.gap, at="best"), above(0), by.law_needs, between(0, 8),
          **_main),
    Claim("downstream", f"The final checkpoints of {SMALL} can do less than their best: their accuracy on items is "
          "lower by more than 0 points.", GODEY, "160m, LAMBADA: 40.3, then 38.0 %", "secondary", by.downstream_loss,
          above(0), by.length_needs, **_main),
    Claim("spectral_saturation", "The head's singular values degenerate as small models saturate: over all sizes the "
          f"rises of singular entropy and loss ({LATE}) have a rank correlation above 0, size not controlled.",
          GODEY, "", "secondary", partial(by.with_saturation, metric="singular_entropy"), above(0),
          by.saturation_needs, **_main),
    Claim("late_anisotropy", "Last-layer anisotropy (after the final gain) rises as saturation sets in: over all sizes "
          f"its rise and that of the loss ({LATE}) have a rank correlation above 0, size not controlled.",
          GODEY, "", "secondary", partial(by.with_saturation, metric="anisotropy_after_gain"), above(0),
          by.saturation_needs, **_main),
    Claim("rank_costs", "A head of low rank costs loss, whatever the width of the backbone: more than 0.01 nats for "
          "each halving of its rank.", GODEY, "below rank 1000", "secondary", by.rank_costs, below(-0.01),
          by.rank_needs, **_main),
    Claim("common_knee", "On frozen backbones the loss is worse below a rank that does not depend on their width: the "
          "rank within 1 % of the full head, at half the width or below, grows with a power of the width between -0.5 "
          "and 0.5, where the second half of the heads' training gave at most 1 %.",
          GODEY, "about 1000", "secondary", by.common_knee, between(-0.5, 0.5), by.knee_needs,
          of=("main", "frozen_heads")),
    Claim("ngram_rank", "What follows what in a text is of high rank: the matrix of its 16,000 most frequent contexts "
          "of four tokens is approximated to 5 % at a rank above 1000 only (log10 above 3).",
          GODEY, "10,000 to 15,000", "secondary", by.ngram_rank, above(3), of=tuple(c.name for c in NGRAMS)),
    Claim("degeneration_alone", "A head's spectrum can degenerate without a rise of the loss: without weight decay "
          f"singular entropy rises by more than 0.1 nats ({LATE}) where the loss rises by less than 0.5 %.",
          KULKARNI, "", "secondary", by.degeneration_alone, above(0.1), by.probe_needs, **_probe),
    Claim("weight_decay", "Weight decay drives the effective rank of the head: without it the spectrum ends more "
          "degenerate by more than 0.1 nats of singular entropy, at equal rate and seed. (The sign is ours.)",
          KULKARNI, "", "secondary", by.weight_decay, above(0.1), by.probe_needs, **_probe),
    Claim("rank_with_loss", "Over models of several settings, those whose head has a lower effective rank have the "
          "higher loss: a rank correlation below 0.",
          KULKARNI, "-0.699", "secondary", by.rank_with_loss, below(0), **_cause),
    Claim("company_not_cause", "Their settings (weight decay, batch size, learning rate) explain that: at equal ones "
          "the correlation is smaller in size by more than 0.",
          KULKARNI, "-0.699, then -0.130", "secondary", by.rank_explained, above(0), **_cause),
    Claim("mixture_at_equal_parameters", "With as many parameters a mixture of softmaxes has a lower loss than a "
          "linear head of low rank, by more than 0 nats.", YANG, "", "recalled",
          partial(by.head_against_linear, kind="mixture", equal="params.total"), above(0), **_heads),
    Claim("mixture_at_equal_flops", "So it has with as many training FLOPs.", YANG, "", "recalled",
          partial(by.head_against_linear, kind="mixture", equal="flops"), above(0), **_heads),
    Claim("nonlinear_at_equal_parameters", "A gelu in the bottleneck of a head of low rank, which costs no parameter, "
          "lowers the loss by more than 0 nats. (Ours.)", YANG, "", "derived",
          partial(by.head_against_linear, kind="nonlinear", equal="params.total"), above(0), **_heads),
    Claim("optimizer_rank", "The rank of feed-forward matrices grows faster with the width under Muon than under "
          "AdamW: the difference of the exponents is above 0.",
          MUON_SPECTRA, "0.29 and 0.80", "secondary", by.rank_exponent, above(0), kind="follow-up",
          of=("optimizer",)),
    Claim("gradient_lost", "Most of the gradient by the logits is lost at the head: more than 0.95 of its norm is "
          "orthogonal to what the layers below can move.",
          ARTZI, "95 to 99 %", "secondary", by.gradient_lost, above(0.95), **_gradient),
    Claim("gradient_beyond_random", "And more than a random subspace of that rank loses: the difference is above 0.",
          ARTZI, "GPT-2: 0.9943, random 0.9923", "derived", by.gradient_beyond_random, above(0), **_gradient),
    Claim("spam", "A vocabulary to be learnt by heart is the harder the larger it is, 0.9 of it seen: the excess loss "
          "grows by more than 0 nats a token for a doubling of the symbols.",
          ARTZI, "unlearnable above 100 k symbols", "secondary", by.spam, above(0), kind="follow-up", of=("spam",)),
    Claim("known_rank", "Transformers on a language of rank 8 recover it: the rank of head within 5 % of the widest "
          "one's excess loss is 8, give or take a factor of 2 (log2 of the ratio: 0, give or take 1).",
          GODEY, "the rank itself", "derived", partial(by.known_rank, true=TRUE_RANK), between(-1, 1), kind="check",
          of=("known_rank",)),
    Claim("gap_follows_tail", "The loss gap of a rank-limited head falls with the square of the tail of the ideal "
          "head's spectrum: a log-log slope of 2, give or take 0.15, over tails above 1e-3 of the largest and gaps "
          "above 1e-4 nats.",
          GODEY, "slope 2; 1 at least", "derived", by.gap_follows_tail, between(1.85, 2.15), kind="check",
          of=tuple(by.LANGUAGES)),
    Claim("gap_below_bound", "The gap of the truncated head stays below 2 R sigma_(r+1), with R the largest feature "
          "norm: log10 of their ratio is below 0.",
          GODEY, "at every rank", "derived", by.gap_below_bound, below(0), kind="check", of=tuple(by.LANGUAGES)),
]  # fmt: skip
SECTIONS = [
    standard.loss("main"),
    standard.lambada(),
    standard.scaling(LAWS),
    Section(
        "Downstream, best against final",
        Table("downstream", "Accuracy in per cent at the checkpoint of the least held-out loss and at the last, and "
              "what was lost, with its interval over the items.", lambda r: downstream.table(r, by.small(r))),
        text="Items that `jaxsat evaluate DIR --items FILE... --every` has scored; also of imported models.",
    ),
    standard.head("main"),
    Section(
        "What moves the spectrum",
        Chart(["singular_entropy", "heldout_loss"], colour="train.weight_decay", dash="train.learning_rate",
              part="probe", name="weight_decay_probe", caption="By weight decay and learning rate."),
        text="The smallest width with a full head, trained five times longer, with and without weight decay.",
    ),
    Section(
        "Heads on frozen backbones",
        Table("knees", "The rank within 1 % of the full head, where the loss is flat from half the width.", by.knees),
    ),
    standard.representations("main"),
    Section(
        "Anisotropy against width",
        Chart(["anisotropy_before_gain", "anisotropy_after_gain"], x="model.width", dash="metric", part="main",
              transform=standard.largest_rank, name="anisotropy_by_width",
              caption="Of the last layer at the end of training, by the width of the model; heads of largest rank."),
        text="In the paper last-layer anisotropy is pronounced in models narrower than about 1000 (a summary's words).",
    ),
    Section(
        "A language whose answer is known",
        Chart([("head_gap_truncated", "head_gap_trained")], x="head_tail", colour="series", dash="metric", log="xy",
              slope=2, name="synthetic_control", where=f"series in {list(by.LANGUAGES)}",
              caption="Loss above the language's entropy against the tail of the spectrum that a head leaves."),
        text="Next-token distributions softmax(W phi) with a W of rank 16 and chosen spectrum: the only place where "
        "the premises of the theorem hold exactly.",
    ),
    Section(
        "N-grams",
        Chart("ngram_w_error", x="index", colour="contexts", panel="series", log="x", at="every", name="ngram_w_error",
              transform=lambda rows: rows.assign(contexts=rows["step"]), x_label="rank", y_label="W-error",
              caption="The part of the norm that the best matrix of a rank misses."),
        text="Of the most frequent contexts of four tokens the shares of what follows; the rank grows with them.",
    ),
    Section(
        "The gradient's way through the head",
        Chart([("gradient_norm_lost", "gradient_norm_lost.random")], x="model.width", dash="metric", part="main",
              name="gradient_lost", caption="The part of the norm that a head loses, and a random subspace does."),
        text="Of the loss's gradient by the logits what is orthogonal to the output matrix. At equal rank a random "
        "subspace loses nearly as much: compare the two, not one with 0.",
    ),
    Section(
        "Drawn languages",
        Chart("excess_loss", x="rank", part="known_rank", name="known_rank", log="xy",
              caption="Loss above the language's entropy by the rank of the head; the language has rank 8."),
        Chart("excess_loss", colour="model.vocab_size", part="spam", name="spam", log="xy",
              caption="Loss above its entropy on a vocabulary to be learnt by heart, by its size."),
    ),
    Section(
        "Cause or company",
        Chart("heldout_loss", x="effective_rank", colour="train.batch_size", dash="train.weight_decay", part="cause",
              name="effective_rank_and_loss", at="last",
              caption="Loss against the effective rank of the head at the end of training, a point a run."),
        text="Models that differ in nothing but weight decay, batch size, learning rate and seed, at equal tokens.",
    ),
    Section(
        "Other heads",
        Table("other_heads", "Loss at the end of training, its mean and range over seeds.", by.other_heads),
        text="A linear head of a quarter of the width, a gelu in its bottleneck, and mixtures of two softmaxes with as "
        "many parameters or as many training FLOPs.",
    ),
    Section(
        "Optimizers",
        Chart("up.effective_rank", x="model.width", colour="train.optimizer", panel="layer", log="xy", part="optimizer",
              name="rank_by_optimizer", caption="Effective rank of the first feed-forward matrix, at the end."),
    ),
    Section(
        "Every other matrix",
        Chart([tuple(f"{matrix}.singular_entropy" for matrix in measure.MATRICES if matrix != "gate")], colour="metric",
              panel="size", dash="layer", part="main", name="spectra_of_all_matrices",
              caption="Singular entropy of every matrix along training, by layer; up is more degenerate."),
    ),
]  # fmt: skip
