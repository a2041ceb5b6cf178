"""The resident base with its lanes as a model of lm-eval.

A request is answered for all lanes in one pass and kept in a file, from which a stopped job goes
on; lm-eval then asks lane by lane. Encoding, truncation and windows follow lm-eval's own `hf`
backend, so that figures compare with published ones. All lanes see the same tokens: the context is
shortened by the most virtual tokens that a lane has.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from studio.chat.lanes import Sampling
from studio.data.template.choose_template import choose
from studio.errors import ChatError, DataError
from studio.evaluation.likelihood import Continuations, routable, score, use
from studio.evaluation.suites import lines_of, write_lines
from studio.training.sample_answers import continuations

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.backbone.composition import Stack
    from studio.models.loading import Loaded

KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
MAX_GEN_TOKS = 256  # where a task names none, as in the hf backend
PASS_ROWS = {"cpu": 128, "cuda": 512}
IGNORED = ("do_sample", "until", "max_gen_toks", "max_length", "num_beams", "use_cache")
Args = tuple[Any, ...]
Found = Iterator[tuple[str, list[Any]]]  # a request's key, and what each lane answered


class Answers:
    """The answers of all lanes, by request; written as they come."""

    def __init__(self, path: Path) -> None:
        self.known: dict[str, list[Any]] = dict(lines_of(path))
        self._path = write_lines(path, self.known.items())

    def add(self, key: str, lanes: list[Any]) -> None:
        """Keep what the lanes answered."""
        self.known[key] = lanes
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, lanes]) + "\n")


class LaneModel(TemplateLM):
    """One lane of the resident base, as lm-eval sees a model; `lane` says which."""

    def __init__(
        self, loaded: Loaded, backbone: Backbone, stacks: Sequence[Stack], answers: Answers
    ) -> None:
        super().__init__()
        self.lane = 0
        self.tokenizer = loaded.tokenizer
        self._loaded, self._backbone, self._stacks = loaded, backbone, list(stacks)
        self._answers = answers
        self._on_gpu = "cuda" if loaded.device.type == "cuda" else "cpu"
        before = [
            sum(
                backbone.adapters[name].method.num_tokens_before for name, weight in stack if weight
            )
            for stack in stacks
        ]
        self.max_length = loaded.facts.context_length - max(before)

    # -- lm-eval's interface -------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.tokenizer.eos_token_id
        return self.prefix_token_id if found is None else int(found)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context.

        Raises:
            DataError: The tokenizer has none.
        """
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        found = next((one for one in known if one is not None), None)
        if found is None:
            raise DataError(
                "The tokenizer has no token that begins or ends a text, which this task needs: "
                "set bos_token or eos_token in tokenizer_config.json."
            )
        return int(found)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in lm-eval's caches, which are not used."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text; a start token that it has already is not added again."""
        how = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        start = next((self.tokenizer.decode(one) for one in known if one is not None), "")
        if add_special_tokens is None and start and string.startswith(start):
            how = {"add_special_tokens": False}
        return list(self.tokenizer.encode(string, **how))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as the base's chat template writes it before the next answer."""
        template = choose(self.tokenizer)
        if add_generation_prompt:
            return template.prompt_text(chat_history)
        return template.prompt_text(chat_history[:-1]) + chat_history[-1]["content"]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of continuations."""
        return [(float(total), bool(greedy)) for total, greedy in self._all(KINDS[0], requests)]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log-likelihood of whole texts."""
        return [float(total) for total in self._all(KINDS[1], requests)]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return generated texts."""
        return [str(text) for text in self._all(KINDS[2], requests)]

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError  # loglikelihood answers from passes over all lanes

    # -- all lanes at once ---------------------------------------------------------------------

    def answer(self, kind: str, requests: Sequence[Any]) -> Iterator[int]:
        """Answer what is not known yet for every lane; yield how many requests are answered."""
        keys = self._keys(kind, requests)
        asked = {key: one.args for key, one in zip(keys, requests, strict=True)}
        missing = {key: args for key, args in asked.items() if key not in self._answers.known}
        done = len(asked) - len(missing)
        yield done
        for key, lanes in getattr(self, f"_{kind}")(missing):
            self._answers.add(key, lanes)
            done += 1
            yield done

    def _all(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        for _ in self.answer(kind, requests):
            pass
        return [self._answers.known[key][self.lane] for key in self._keys(kind, requests)]

    def _keys(self, kind: str, requests: Sequence[Any]) -> list[str]:
        """Return a key per request; a repeated request has one answer unless it is sampled."""
        seen, keys = Counter[str](), []
        for one in requests:
            text = json.dumps([kind, *one.args], default=str)
            key = sha256(text.encode()).hexdigest()[:32]
            sampled = kind == KINDS[2] and _sampling(one.args[1]).temperature > 0
            keys.append(f"{key}-{seen[key]}" if sampled else key)
            seen[key] += 1
        return keys

    def _loglikelihood(self, missing: Mapping[str, Args]) -> Found:
        by_context: dict[tuple[int, ...], list[tuple[str, list[int]]]] = defaultdict(list)
        for key, (context, continuation) in missing.items():
            before, ids = self._encoded(context, continuation)
            if ids:
                by_context[tuple(before)].append((key, ids))
            else:
                yield key, [(0.0, True)] * len(self._stacks)
        places = list(by_context.items())
        asked = [Continuations(context, [ids for _, ids in own]) for context, own in places]
        for place, lanes in score(self._loaded, self._backbone, asked, self._stacks):
            for number, (key, _) in enumerate(places[place][1]):
                yield key, [scores[number] for scores in lanes]

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of both parts, cut on the left to what the model takes."""
        if context:
            before, ids = self._encode_pair(context, continuation)
        else:
            before = [self.prefix_token_id]
            ids = self.tok_encode(continuation, add_special_tokens=False)
            if ids[:1] == before:
                ids = ids[1:]
        whole = [*before, *ids][-(self.max_length + 1) :]
        size = min(len(ids), self.max_length)
        return whole[: len(whole) - size], whole[len(whole) - size :]

    def _loglikelihood_rolling(self, missing: Mapping[str, Args]) -> Found:
        pieces: list[tuple[str, Continuations]] = []
        for key, (text,) in missing.items():
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            pieces += [
                (key, Continuations(before, [ids]))
                for before, ids in map(make_disjoint_window, windows)
            ]
        left = Counter(key for key, _ in pieces)
        sums = {key: [0.0] * len(self._stacks) for key in missing}
        yield from ((key, sums[key]) for key in missing if not left[key])
        asked = [one for _, one in pieces]
        for place, lanes in score(self._loaded, self._backbone, asked, self._stacks):
            key = pieces[place][0]
            own = zip(sums[key], lanes, strict=True)
            sums[key] = [total + part for total, ((part, _),) in own]
            left[key] -= 1
            if not left[key]:
                yield key, sums[key]

    def _generate_until(self, missing: Mapping[str, Args]) -> Found:
        groups: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
        for key, (context, how) in missing.items():
            text = json.dumps(how, sort_keys=True, default=str)
            groups[text].append((key, self.tok_encode(context)))
        for text, own in groups.items():
            how = json.loads(text)
            limit = int(normalize_gen_kwargs(how, MAX_GEN_TOKS)["max_gen_toks"])
            room = self.max_length - limit
            if room < 1:
                raise DataError(
                    f"The task generates up to {limit} tokens, but the model takes "
                    f"{self.max_length}: lower max_gen_toks in the task."
                )
            alike = routable(self._backbone, self._stacks)
            turns = [self._stacks] if alike else [[stack] for stack in self._stacks]
            size = max(1, PASS_ROWS[self._on_gpu] // max(map(len, turns)))
            own.sort(key=lambda pair: -len(pair[1]))
            for start in range(0, len(own), size):
                part = own[start : start + size]
                prompts = [ids[-room:] for _, ids in part]
                # Not of the place in the pass: a prompt's samples must differ, also after a resume.
                seeds = [int(sha256(key.encode()).hexdigest()[:8], 16) >> 1 for key, _ in part]
                texts = [
                    one for turn in turns for one in self._texts(prompts, seeds, how, limit, turn)
                ]
                for number, (key, _) in enumerate(part):
                    yield key, texts[number :: len(part)]

    def _texts(
        self, prompts: Sequence[list[int]], seeds: Sequence[int], how: dict[str, Any], limit: int,
        stacks: Sequence[Stack],
    ) -> list[str]:  # fmt: skip
        """Return the text after each prompt, stack by stack."""
        rows = list(prompts) * len(stacks)
        eos = self.tokenizer.decode(self.eot_token_id)
        until = handle_stop_sequences(how.get("until"), eos=eos)
        look = 2 + max(len(self.tok_encode(one, add_special_tokens=False)) for one in until)
        own = getattr(self._loaded.model.generation_config, "eos_token_id", None)
        settings = [_sampling(how).model_copy(update={"seed": seed}) for seed in seeds]

        def is_over(ids: list[int]) -> bool:
            tail = self.tokenizer.decode(ids[-look:])
            return any(one and one in tail for one in until)

        found = continuations(
            self._backbone, rows, [[one] for one in settings] * len(stacks),
            device=self._loaded.device, limits=[limit] * len(rows), is_over=is_over,
            stop_ids={self.eot_token_id, *(own if isinstance(own, list) else [own])} - {None},
            stacks=use(self._backbone, stacks, len(prompts)),
        )  # fmt: skip
        if any(one.overflows for one in found):
            raise ChatError("The logits overflow with this stack: lower its weights.")
        texts = self.tokenizer.batch_decode([one.ids for one in found], skip_special_tokens=True)
        return [postprocess_generated_text(text, until, None) for text in texts]


def _sampling(how: Mapping[str, Any]) -> Sampling:
    """Return how a task wants its tokens drawn; greedy by default.

    Raises:
        DataError: It asks for what is not done here, such as beam search.
    """
    given = normalize_gen_kwargs(dict(how), MAX_GEN_TOKS)
    beams = int(given.get("num_beams") or 1)
    known = ("temperature", "top_p", "top_k", "repetition_penalty")
    unknown = [key for key in given if key not in (*known, *IGNORED)]
    if beams > 1 or unknown:
        what = "num_beams" if beams > 1 else unknown[0]
        raise DataError(f"The task generates with {what}, which is not supported.")
    if given.get("do_sample"):
        given.setdefault("top_k", 50)  # transformers' own default
    chosen = known if given.get("do_sample") else known[-1:]
    return Sampling.parse({key: given[key] for key in chosen if given.get(key) is not None})
