"""The leading singular values of a matrix of n-grams against SciPy's svds: python -m benchmarks.ngram_spectrum [C V K]

svds (ARPACK) may take hours: it is stopped after LONGEST seconds, and the ratio is then at least that of those.
"""

import json
import multiprocessing
import queue
import sys
import time

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from jaxsat.measure import krylov

CONTEXTS, WORDS, VALUES, ERROR, LONGEST = 100_000, 50_000, 2000, 0.01, 1800


def shares(contexts: int, words: int) -> scipy.sparse.csr_array:
    """As contexts of a text: the more frequent ones have more continuations, which are Zipf's; 4.9 a context, as the
    100,000 most frequent contexts of four tokens have in 7 M tokens of English."""
    rng = np.random.default_rng(0)
    n = np.maximum(1, rng.poisson(4 * (np.arange(1, contexts + 1) / contexts) ** -0.2 * 0.8))
    zipf = 1 / np.arange(1.0, words + 1)
    rows, columns = np.repeat(np.arange(contexts), n), rng.choice(words, n.sum(), p=zipf / zipf.sum())
    counts = scipy.sparse.csr_array(
        scipy.sparse.coo_array((rng.geometric(0.5, len(rows)).astype(float), (rows, columns)), (contexts, words))
    )
    counts.sum_duplicates()
    return scipy.sparse.csr_array(counts.multiply(1 / counts.sum(axis=1)[:, None])).astype(np.float32)


def rival(contexts: int, words: int, k: int, answer: "multiprocessing.Queue") -> None:
    w, began = shares(contexts, words), time.monotonic()
    sigma = scipy.sparse.linalg.svds(w, k, tol=ERROR, return_singular_vectors=False, rng=0)
    answer.put((time.monotonic() - began, np.sort(sigma)[::-1]))


def bench(contexts: int = CONTEXTS, words: int = WORDS, k: int = VALUES) -> list[dict]:
    """One round: of minutes. Compilation counts, as it is done once a matrix."""
    w, began = shares(contexts, words), time.monotonic()
    found = krylov.leading(w, k, ERROR)
    ours = time.monotonic() - began
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=rival, args=(contexts, words, k, answer))
    process.start()
    try:
        theirs, sigma_K = answer.get(timeout=LONGEST)
        differ = f"values differ by {np.abs(found.sigma_K / sigma_K - 1).max():.1e} at most"
    except queue.Empty:
        process.kill()
        theirs, differ = float(LONGEST), f"svds was stopped after {LONGEST} s: the ratio is at least this"
    return [
        {
            "name": "ngram_spectrum_vs_svds",
            "ours": ours,
            "rival": theirs,
            "ratio": theirs / ours,
            "unit": "s",
            "shape": f"{contexts} x {words}, {w.nnz} entries, {k} values, {ERROR:.0%}",
            "target": 5,
            "detail": f"one round, with compilation; {differ}; ours last grew by {found.grown_K.max():.1e}",
        }
    ]


if __name__ == "__main__":
    print(json.dumps(bench(*map(int, sys.argv[1:])), indent=1))
