"""A whole training step against transformers' GPTNeoX in torch on this CPU: python -m benchmarks train_step

Forward, loss, backward, clip at 1.0 and AdamW, in float32, from the same weights on the same batches. Both take every
core, each in a process of its own as its users run it: ours with JAX_NUM_CPU_DEVICES=1, for one model on all cores;
torch's side is what a user of transformers would write, with its fused AdamW.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
import transformers

from benchmarks import Worker, answer, questions
from jaxsat import parallel
from jaxsat.config import Run, TrainConfig
from jaxsat.model import neox
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer, train_step

SHAPE = dict(depth=6, width=128, heads=4, context=128)  # Pythia-14m's blocks
ROUNDS, STEPS = 15, 2
TARGETS = {4096: 1.0, 50304: 1.2}  # by the vocabulary
TRAIN = TrainConfig(batch_size=8, learning_rate=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.1)

Step = Callable[[np.ndarray], float]


def ours(run: Run) -> tuple[Step, dict]:
    """(a step that trains on rows_BxT1 and gives their loss, the initial parameters)."""
    pack = Pack((run,))
    program, hyper, mesh = Program.of(pack), hypers(pack.runs), parallel.make_mesh(pack)
    state = initializer(program, mesh)(hyper)
    params = jax.tree.map(lambda a_K: np.array(a_K[0]), state["params"])

    def step(rows_BxT1: np.ndarray) -> float:
        nonlocal state
        state, metrics = train_step(program, mesh, state, hyper, rows_BxT1[None])
        return float(metrics["loss"][0])

    return step, params


def theirs(run: Run, params: dict) -> Step:
    m, t = run.model, run.train
    config = transformers.GPTNeoXConfig(
        hidden_size=m.width,
        num_hidden_layers=m.depth,
        num_attention_heads=m.heads,
        intermediate_size=4 * m.width,
        vocab_size=m.vocab_size,
        max_position_embeddings=m.context,
        rope_parameters={"rope_type": "default", "rope_theta": m.rotary_base, "partial_rotary_factor": 0.25},
        use_cache=False,
    )
    model = transformers.GPTNeoXForCausalLM(config).train()
    model.load_state_dict({name: torch.tensor(w) for name, w in neox_state(m.heads, params).items()})
    decayed, others = [], []
    for name, p in model.named_parameters():
        (others if "norm" in name or name.endswith("bias") else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": t.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, t.learning_rate, (t.beta1, t.beta2), t.eps, fused=True)

    def step(rows_BxT1: np.ndarray) -> float:
        rows = torch.from_numpy(rows_BxT1)
        logits_BxTxV = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits_BxTxV.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip_norm)
        optimizer.step()
        return loss.item()

    return step


def neox_state(n_heads: int, params: dict) -> dict[str, np.ndarray]:
    """Our parameters by the names of GPTNeoXForCausalLM, whose fused projection has q, k and v of each head in turn."""
    blocks = params["blocks"]
    state = {"gpt_neox.embed_in.weight": params["embedding"], "lm_head.weight": params["head"]["kernel"].T}
    state |= {
        f"gpt_neox.final_layer_norm.{n}": params["final_norm"][w] for n, w in (("weight", "scale"), ("bias",) * 2)
    }
    modules = {
        "attention.dense": blocks["attention"]["out"],
        "mlp.dense_h_to_4h": blocks["feed_forward"]["up"],
        "mlp.dense_4h_to_h": blocks["feed_forward"]["down"],
        "input_layernorm": blocks["norm1"],
        "post_attention_layernorm": blocks["norm2"],
    }
    qkv = [blocks["attention"][name] for name in ("query", "key", "value")]
    for i in range(len(qkv[0]["bias"])):
        layer = f"gpt_neox.layers.{i}."
        for name, module in modules.items():
            weight = module["kernel"][i].T if "kernel" in module else module["scale"][i]
            state |= {f"{layer}{name}.weight": weight, f"{layer}{name}.bias": module["bias"][i]}
        for suffix, parts in (("weight", [p["kernel"][i].T for p in qkv]), ("bias", [p["bias"][i] for p in qkv])):
            by_head = np.stack([p.reshape(n_heads, -1, *p.shape[1:]) for p in parts], axis=1)
            state[f"{layer}attention.query_key_value.{suffix}"] = by_head.reshape(-1, *parts[0].shape[1:])
    return state


def work(who: str, vocab_size: int) -> None:
    """Answers a number of steps by [seconds a step, losses]."""
    if who == "jaxsat":
        parallel.start()
    run = Run(neox(vocab_size=vocab_size, **SHAPE), TRAIN)
    step, params = ours(run)
    if who == "torch":
        torch.set_num_threads(os.cpu_count())
        step = theirs(run, params)
    rng = np.random.default_rng(0)
    for question in questions():
        # A skewed unigram distribution, so that there is something to learn.
        batches = [(vocab_size * rng.random((8, 129)) ** 3).astype(np.int64) for _ in range(int(question))]
        start = time.perf_counter()
        losses = [step(rows) for rows in batches]
        answer([(time.perf_counter() - start) / len(batches), losses])


def bench() -> list[dict]:
    """Interleaved rounds, median seconds a step; ratio = rival / ours. `detail` has the two losses of the first and
    of the last step, which agree only where forward, gradients, clipping and AdamW all do."""
    entries = []
    for vocab_size in (4096, 50304):
        seconds, losses = {"jaxsat": [], "torch": []}, {"jaxsat": [], "torch": []}
        with (
            Worker("train_step", "jaxsat", vocab_size, JAX_NUM_CPU_DEVICES="1") as a,
            Worker("train_step", "torch", vocab_size) as b,
        ):
            for round_ in range(ROUNDS + 1):  # the first compiles
                for name, worker in (("jaxsat", a), ("torch", b)):
                    took, found = worker.ask(STEPS)
                    losses[name] += found
                    seconds[name] += [took] * (round_ > 0)
        median, least = ({n: f(s) for n, s in seconds.items()} for f in (statistics.median, min))
        ratios = sorted(b / a for a, b in zip(seconds["jaxsat"], seconds["torch"]))
        tokens = TRAIN.batch_size * SHAPE["context"]
        entries.append(
            {
                "name": "train_step_vs_torch_neox",
                "ours": median["jaxsat"],
                "rival": median["torch"],
                "ratio": median["torch"] / median["jaxsat"],
                "unit": "s/step",
                "shape": f"V={vocab_size}, L=6, d=128, H=4, B=8, T=128, float32",
                "target": TARGETS[vocab_size],
                "detail": f"{tokens / median['jaxsat']:.0f} against {tokens / median['torch']:.0f} tokens/s; "
                f"ratios of {ROUNDS} rounds {ratios[0]:.2f}-{ratios[-1]:.2f}, "
                f"of the fastest {least['torch'] / least['jaxsat']:.2f}; "
                + "; ".join(f"{n} losses {losses[n][0]:.5f} .. {losses[n][-1]:.5f}" for n in losses)
                + f"; {os.cpu_count()} cores, jax {jax.__version__}, torch {torch.__version__}, "
                f"transformers {transformers.__version__}",
            }
        )
    return entries


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
