"""Items a second against lm-eval with transformers on the same weights: python -m benchmarks score_vs_lm_eval

Minimal pairs (a verse of the Bible, and with two words swapped) and choices (half a verse, and four second halves)
by Pythia-14m's blocks in float32, on this CPU; both with all cores in a process of their own, texts cut into tokens by
each. lm-eval has its fastest batch of BATCHES.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import lm_eval
import numpy as np
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks import Worker, answer, questions
from jaxsat import corpus, interop, model, parallel
from jaxsat.corpus import tokenizer as bpe
from jaxsat.evaluate import Items, items_of, score

SHAPE = dict(depth=6, width=128, heads=4, context=256)
N, ROUNDS, BATCHES = 100, 7, (8, 32, 128)


def verses() -> list[list[str]]:
    """Words of as many verses as there are items, of 12 to 40 words."""
    texts = (text.split() for _, text, _ in corpus.parallel("bible_web", "bible_basic"))
    found = [words for words in texts if 12 <= len(words) <= 40]
    return found[:: len(found) // (2 * N)][: 2 * N]


def items() -> Items:
    rng, records, found = np.random.default_rng(0), [], verses()
    for words in found[:N]:
        i = rng.integers(len(words) - 1)
        swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
        if swapped != words:
            records.append({"good": " ".join(words), "bad": " ".join(swapped)})
    for n, words in enumerate(found[N:]):
        options = [" ".join(found[N + (n + k) % N][len(found[N + (n + k) % N]) // 2 :]) for k in range(4)]
        records.append({"context": " ".join(words[: len(words) // 2]), "options": options, "answer": 0})
    return items_of("bible", records)


def work(who: str, folder: str) -> None:
    """Answers a size of batch (ours has its own) by [seconds, log-likelihoods of all options]."""
    asked = items()
    if who == "jaxsat":
        parallel.start()
        source = interop.open(folder)
        tokenizer, params = bpe.load(f"{folder}/tokenizer.json", source.config.vocab_size), source.params()

        def nats(_: str) -> list[float]:
            table = score(source.config, params, tokenizer, asked).table
            return table.loc[table["metric"] == "option_loglikelihood", "value"].tolist()
    else:
        torch.set_num_threads(os.cpu_count())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        fast = transformers.AutoTokenizer.from_pretrained(folder)
        pairs = [(item.context, text) for item in asked.items for text in item.continuations]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]

        of_size = {str(n): HFLM(pretrained=theirs, tokenizer=fast, batch_size=n) for n in BATCHES}
        nats = lambda batch: [value for value, _ in of_size[batch].loglikelihood(requests, disable_tqdm=True)]

    for question in questions():
        start = time.perf_counter()
        found = nats(question)
        answer([time.perf_counter() - start, found])


def bench() -> list[dict]:
    """Interleaved rounds, median seconds an item; ratio = rival / ours. `detail` has the largest difference of the two
    log-likelihoods of a text."""
    return [_bench(vocab_size) for vocab_size in (4096, 50304)]


def _bench(vocab_size: int) -> dict:
    config = model.neox(vocab_size=vocab_size, **SHAPE)
    seconds: dict[str, list[float]] = {"jaxsat": [], "lm-eval": []}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        tokenizer = bpe.train((" ".join(words) for words in verses()), 4096)
        params = jax.device_get(jax.jit(model.init, static_argnums=0)(config, jax.random.key(0)))
        interop.write(config, params, tokenizer.to_str(), folder)
        with (
            Worker("score_vs_lm_eval", "jaxsat", folder, JAX_NUM_CPU_DEVICES="1") as a,
            Worker("score_vs_lm_eval", "lm-eval", folder) as b,
        ):
            _, ours = a.ask()  # compiles
            warm = {batch: b.ask(batch) for batch in BATCHES}
            batch = min(BATCHES, key=lambda batch: warm[batch][0])
            apart = np.abs(np.subtract(ours, warm[batch][1])).max()
            for _ in range(ROUNDS):
                for name, worker in (("jaxsat", a), ("lm-eval", b)):
                    seconds[name].append(worker.ask(batch)[0] / len(items().items))
    median = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "name": "score_vs_lm_eval",
        "ours": median["jaxsat"],
        "rival": median["lm-eval"],
        "ratio": median["lm-eval"] / median["jaxsat"],
        "unit": "s/item",
        "shape": f"V={vocab_size}, L=6, d=128, float32, {N} pairs and {N} choices of 4",
        "target": 2,
        "detail": f"{1 / median['jaxsat']:.0f} against {1 / median['lm-eval']:.0f} items/s (batches of {batch}); "
        f"log-likelihoods differ by {apart:.1g} nats at most; {os.cpu_count()} cores, jax {jax.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, lm-eval {lm_eval.__version__}",
    }


if __name__ == "__main__":
    work(*sys.argv[1:])
