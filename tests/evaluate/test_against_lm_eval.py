"""Tasks of local files: lm-eval's own model of transformers, ours in lm-eval, and our items have one score on the same
weights."""

import json

import numpy as np
import pytest

from jaxsat.config import InputError
from jaxsat.evaluate import items_of, score

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'jaxsat[lm-eval]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'jaxsat[bench]'")
torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'jaxsat[bench]'")

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CacheHook, CachingLM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from jaxsat import interop  # noqa: E402
from jaxsat.evaluate.lm_eval import JaxsatLM  # noqa: E402

WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
RNG = np.random.default_rng(0)
text = lambda n: " ".join(RNG.choice(WORDS, n))
PAIRS = [{"good": text(4), "bad": text(4)} for _ in range(12)]
CHOICES = [
    {"context": text(6), "options": [text(n) for n in RNG.integers(1, 5, 3)], "answer": i % 3} for i in range(12)
]
CLOZES = [{"context": context, "last": word} for context in [text(6) for _ in range(30)] for word in WORDS]
MATCHES = [{"source": text(3), "target": text(3)} for _ in range(6)]
TASKS = {
    "pairs": (PAIRS, dict(output_type="multiple_choice", doc_to_text="", doc_to_target=0, target_delimiter="",
                          doc_to_choice="{{[good, bad]}}")),
    "choices": (CHOICES, dict(output_type="multiple_choice", doc_to_text="{{context}}", doc_to_target="{{answer}}",
                              doc_to_choice="{{options}}", metric_list=[{"metric": m} for m in ("acc", "acc_bytes")])),
    "clozes": (CLOZES, dict(output_type="loglikelihood", doc_to_text="{{context}}", doc_to_target="{{' ' + last}}",
                            metric_list=[{"metric": "acc"}])),
    "texts": ([{"text": text(n)} for n in (3, 70, 130)],
              dict(output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
                   metric_list=[{"metric": "bits_per_byte"}])),
    "matches": (MATCHES, dict(output_type="generate_until", doc_to_text="{{source}}", doc_to_target="{{target}}",
                              generation_kwargs={"until": ["moon"], "max_gen_toks": 12},
                              metric_list=[{"metric": "exact_match"}])),
}  # fmt: skip


SHAPE = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100, vocab_size=91,
             max_position_embeddings=64)  # fmt: skip


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(rope_parameters=rope, **SHAPE)).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # off the ones and zeros of norms and biases
            p.add_(0.1 * torch.randn(p.shape))
    theirs.save_pretrained(folder)
    ours = interop.Source(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    return HFLM(pretrained=theirs, tokenizer=fast, batch_size=8), JaxsatLM(ours.config, ours.params(), tokenizer)


@pytest.fixture(scope="module")
def results(models, tmp_path_factory):
    """{task: (theirs, ours)}: {metric: value}, and what was answered to each request."""
    home = tmp_path_factory.mktemp("tasks")
    for name, (records, task) in TASKS.items():
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
        files = {"data_files": {"test": str(home / f"{name}.jsonl")}}
        task = task | {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (home / f"{name}.yaml").write_text(json.dumps(task))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "cache"))
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        manager = TaskManager(include_path=str(home), include_defaults=False)
        both = [lm_eval.simple_evaluate(m, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0) for m in models]
    answers = lambda found, name: [sample["filtered_resps"] for sample in found["samples"][name]]
    return {name: [(found["results"][name], answers(found, name)) for found in both] for name in TASKS}


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def assert_equal(found, expected):
    """Answers of (nats, whether it is greedy)."""
    nats, greedy = zip(*found)
    np.testing.assert_allclose(nats, [answer[0] for answer in expected], rtol=1e-5)
    assert greedy == tuple(answer[1] for answer in expected)


@pytest.mark.parametrize("task", TASKS)
def test_both_models_have_one_score(results, task):
    (theirs, their_answers), (ours, our_answers) = results[task]
    assert theirs.keys() == ours.keys() and theirs["sample_len"] == len(TASKS[task][0])
    for metric, value in theirs.items():
        assert ours[metric] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    if task == "matches":
        assert our_answers == their_answers and any("".join(answer).strip() for answer in our_answers)
    elif task == "texts":
        np.testing.assert_allclose(our_answers, their_answers, rtol=1e-5)
    else:
        assert_equal(sum(our_answers, []), sum(their_answers, []))


@pytest.mark.parametrize("task, metrics", [
    ("pairs", {"acc": "accuracy", "acc_norm": "accuracy_byte"}),
    ("choices", {"acc": "accuracy", "acc_bytes": "accuracy_byte"}),
    ("clozes", {"acc": "accuracy"}),
])  # fmt: skip
def test_items_have_the_scores_of_lm_eval(models, results, task, metrics):
    (theirs, answers), _ = results[task]
    ours = models[1]
    scores = score(ours.config, ours.params, ours.tokenizer, items_of(task, TASKS[task][0]))
    of_options = scores.table[scores.table["metric"] == "option_loglikelihood"]["value"]
    np.testing.assert_allclose(of_options, [nats for answer in answers for nats, _ in answer], rtol=1e-5)
    values = scores.summary.set_index("metric")["value"]
    for metric, own in metrics.items():
        assert values[own] == theirs[f"{metric},none"] and 0 < values[own] < 1


def test_what_is_longer_than_the_context_is_cut_alike(models):
    asked = requests("loglikelihood", (text(60), " sun"), (text(90), " the moon and the sea"), ("", text(9)))
    both = [m.loglikelihood(asked, disable_tqdm=True) for m in models]
    assert_equal(both[1], both[0])
    asked = requests("generate_until", (text(90), {"until": "sea", "max_gen_toks": 9}), ("sun", {"max_gen_toks": 30}))
    theirs, ours = (m.generate_until(asked, disable_tqdm=True) for m in models)
    assert ours == theirs and all(ours)


def test_a_cached_answer_is_the_answer(models, tmp_path):
    cached = CachingLM(models[1], str(tmp_path / "cache.db"))
    asked = requests("loglikelihood", ("the sun", " and"), ("the sun", " of"))
    try:
        assert cached.loglikelihood(asked) == cached.loglikelihood(asked) == models[1].loglikelihood(asked)
        assert len(cached.dbdict) == 2
    finally:
        cached.dbdict.close()
        models[1].set_cache_hook(CacheHook(None))


def test_tokens_are_drawn_where_a_task_asks_for_it(models):
    greedy, drawn, few = (
        models[1].generate_until(requests("generate_until", ("the sun", {"max_gen_toks": 20} | how)))
        for how in ({}, {"do_sample": True, "temperature": 2.0}, {"do_sample": True, "temperature": 2.0, "top_k": 1})
    )
    assert greedy == few != drawn


@pytest.mark.parametrize("settings, said", [
    ({"num_beams": 4, "max_gen_toks": 9}, "generation setting 'num_beams' is unknown; known: until, max_gen_toks"),
    ({"max_gen_toks": 64}, "max_gen_toks = 64: must be below model.context = 64"),
])  # fmt: skip
def test_what_generation_cannot_do_is_refused(models, settings, said):
    with pytest.raises(InputError, match=said):
        models[1].generate_until(requests("generate_until", ("the sun", settings)))
