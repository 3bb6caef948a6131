"""One of our models in lm-eval (the extra `lm-eval`), which runs its own tasks on it:

lm_eval.simple_evaluate(model=JaxsatLM(config, params, tokenizer), tasks=["lambada_openai"])
"""

from collections.abc import Sequence

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from tokenizers import Tokenizer

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.pairs import Pair
from jaxsat.corpus.tokenizer import begin_ids, end_id
from jaxsat.evaluate.generation import generate_tokens, tokens_with
from jaxsat.evaluate.likelihood import log_likelihoods

MAX_NEW = 256  # tokens, where a task does not say: as lm-eval's own models


class JaxsatLM(TemplateLM):
    """Texts are split into tokens as lm-eval does it, and what is longer than the context is cut on its left."""

    def __init__(self, config: ModelConfig, params: model.Params, tokenizer: Tokenizer):
        super().__init__()
        self.config, self.params, self.tokenizer = config, params, tokenizer

    @property
    def eot_token_id(self) -> int:
        return end_id(self.tokenizer) or 0

    @property
    def prefix_token_id(self) -> int:
        return begin_ids(self.tokenizer)[-1]

    @property
    def max_length(self) -> int:
        return self.config.context

    @property
    def tokenizer_name(self) -> str:
        return "jaxsat"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        found = self._score([(context, continuation) for _, context, continuation in requests])
        for (texts, *_), answer in zip(requests, found):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for n, (text,) in enumerate(request.args for request in requests):
            of_text = utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in map(utils.make_disjoint_window, of_text):
                windows.append(window)
                owners.append(n)
        totals = [0.0] * len(requests)
        for n, (nats, _) in zip(owners, self._score(windows)):
            totals[n] += nats
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        written = [""] * len(requests)
        alike: dict[str, list[int]] = {}  # places of the requests of equal settings
        for n, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(n)
        for places in alike.values():
            texts = self._generate([requests[n].args[0] for n in places], requests[places[0]].args[1])
            for n, text in zip(places, texts):
                written[n] = text
                self.cache_hook.add_partial("generate_until", requests[n].args, text)
        return written

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        room = self.config.context + 1
        cut = [Pair(context[-(room - len(new)) :] if len(new) < room else [], new) for context, new in pairs]
        found = log_likelihoods(self.config, self.params, cut)
        return list(zip(found.nats_N.tolist(), found.greedy_N.tolist()))

    def _generate(self, prompts: Sequence[str], settings: dict[str, object]) -> list[str]:
        kwargs = normalize_gen_kwargs(settings, MAX_NEW)
        n_new, greedy = kwargs.pop("max_gen_toks"), not kwargs.pop("do_sample")
        temperature = 0.0 if greedy else kwargs["temperature"]
        stops = handle_stop_sequences(kwargs.pop("until"), eos=self.tokenizer.id_to_token(self.eot_token_id))
        draw = {key: kwargs.pop(key, None) for key in ("top_k", "top_p")}
        if unknown := kwargs.keys() - {"temperature"}:
            known = "until, max_gen_toks, do_sample, temperature, top_k, top_p"
            raise InputError(f"generation setting {min(unknown)!r} is unknown; known: {known}")
        if n_new >= self.config.context:
            raise InputError(f"max_gen_toks = {n_new}: must be below model.context = {self.config.context}")
        rows = [self.tok_encode(prompt)[-(self.config.context - n_new) :] for prompt in prompts]
        ends = {self.eot_token_id, *tokens_with(self.tokenizer, list(filter(None, stops)))}
        found = generate_tokens(self.config, self.params, rows, n_new, ends=ends, temperature=temperature, **draw)
        texts = [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in found]
        return [postprocess_generated_text(text, stops, None) for text in texts]
