"""Evaluate a stack on a dataset: loss, perplexity, token accuracy, scores, labels, forgetting.

Rows are prepared and measured by training's own functions, so the loss is comparable with a run's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from studio.adapter_stack import Stack
from studio.adapters.adapter_lineage import of_other_bases, resolve_stack
from studio.adapters.library import describe
from studio.errors import DataError, SpecError
from studio.evaluation.scores_and_gates import (
    ALIASES,
    CLASSIFIED,
    FORGOTTEN,
    SCORES,
    bounds,
    check_gate,
    scorers,
)
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.models.find_model import facts
from studio.spec import DataSource, ModelSource, RunSpec
from studio.train_args import Rows
from studio.training.training_events import Evaluated, Event, Finished, Loading, Sampled

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.data.prepare_run_data import Prepared
    from studio.data.token_arrays import Example
    from studio.models.loading import Loaded
    from studio.training.batching import TokenRow

REPORT = "evaluation.json"
BATCH_ANSWER_TOKENS = 16_384  # keys and values that are held at once
MAX_SAMPLES = 8


class EvaluateRequest(Request):
    """Measure a stack on a dataset."""

    kind: ClassVar[str] = "evaluate"
    report: ClassVar[str] = REPORT
    model: ModelSource = ModelSource()
    stack: Stack = ()
    data: DataSource = DataSource()
    rows: Literal["all", "held_out"] = knob(
        "all",
        "All rows, or those that the adapter's run held out; of other data, those that a "
        "run with this seed and share holds out.",
        title="Rows",
    )
    learned: Rows | Literal["auto"] = knob(
        "auto", "Kind of rows that the run learned from, which decides those it holds out; auto "
        "reads it from the adapter.", title="Learned from",
    )  # fmt: skip
    max_rows: int = knob(0, "Maximum number of rows, drawn by the seed; 0 uses all.", ge=0)
    scores: tuple[str, ...] = knob(
        (), "Scores of generated answers: exact_match, rouge_l, contains, number, regex, json, "
        "json_schema.", title="Scores",
    )  # fmt: skip
    pattern: str = knob("", "Regular expression of the score regex.", max_length=2000)
    json_schema: str = knob("", "JSON schema of the score json_schema.", max_length=20_000)
    max_new_tokens: int = knob(128, "Maximum length of a scored answer.", ge=1, le=4096)
    classify: bool = knob(
        False, "Score the data's labels by likelihood: accuracy, macro F1, calibration."
    )
    forgetting: bool = knob(False, "Compare with the base on general texts.")
    general_data: str = knob("", "Dataset of general texts; empty uses the embedded set.")
    min: tuple[str, ...] = knob((), "Fail below this, as in accuracy=0.8.")
    max: tuple[str, ...] = knob((), "Fail above this, as in forgetting=0.05.")
    seed: int = knob(
        0, "Seed of the run whose held-out rows are used; 0 takes that of the adapter's run.",
        ge=0, le=2**31 - 1,
    )  # fmt: skip
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return it with its adapters found and the scores that its bounds need."""
        facts(self.model)
        gated = self._gated() - {ALIASES.get(name, name) for name in self.scores}
        scores = (*self.scores, *sorted(gated & {*SCORES}))
        scorers(scores, self.pattern, self.json_schema)
        stack = resolve_stack(home, self.stack, or_model=True)
        run = self._run(stack)
        data, seed = self.data, self.seed
        if run and run.data.path == data.path:
            data = run.data.model_copy(update=data.model_dump(exclude_defaults=True))
            seed = seed or run.seed
        learned = run.train.rows if run and self.learned == "auto" else self.learned
        return self.model_copy(
            update={
                "stack": stack,
                "data": data,
                "seed": seed,
                "learned": "answers" if learned == "auto" else learned,
                "classify": self.classify or bool(gated & {*CLASSIFIED}),
                "forgetting": self.forgetting or bool(gated & {*FORGOTTEN}),
                "scores": scores,
            }
        )

    def perform(self, home: Home, run_dir: Path, *_: Any) -> Iterator[Event]:
        """Measure, and write `evaluation.json` into the run's folder."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        yield Loading(text="Loading the base")
        loaded = load(self._model(), self.device)
        backbone = Backbone(loaded.model)
        parts = () if self._is_model() else self.stack
        folders = [Path(item.name) for item in parts]
        stack = backbone.load_stack(("adapter", Path(item.name), item.weight) for item in parts)
        report = yield from self.measured(home, loaded, backbone, stack)
        report["notes"] = of_other_bases(folders, self.model.path, loaded.facts)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), "utf-8")
        check_gate(report, self.min, self.max, "The evaluation")
        yield Finished(eval_loss=report["eval_loss"])

    def measured(
        self, home: Home, loaded: Loaded, backbone: Backbone, stack: tuple[tuple[str, float], ...]
    ) -> Generator[Event, None, dict[str, Any]]:
        """Measure a stack that is loaded, and return the report.

        Raises:
            DataError: There is no row to measure, and more than forgetting is wanted.
        """
        from studio.data.token_arrays import places_by_source

        backbone.use(stack)
        before = sum(a.method.num_tokens_before for a in backbone.adapters.values())
        room = max(1, loaded.facts.context_length - before)
        yield Loading(text="Reading the data")
        prepared, chosen = self._rows(home, loaded, room)
        yield Loading(text=f"Measuring {len(chosen)} rows")
        report = {"rows": len(chosen), **losses(loaded, backbone, chosen)}
        if prepared.sources:
            report["sources"] = [
                {"name": name, "rows": len(places),
                 **losses(loaded, backbone, [chosen[i] for i in places])}
                for name, places in places_by_source(chosen).items()
            ]  # fmt: skip
        yield Evaluated(eval_loss=report["eval_loss"], token_accuracy=report["token_accuracy"])
        if self.classify:
            from studio.evaluation.likelihood import classification, score_labels, task_of

            every = [row for row in (*prepared.train, *prepared.validation) if row.good]
            task = task_of(chosen, every, loaded.tokenizer)
            yield Loading(text=f"Scoring {len(task.labels)} labels of {len(task.prompts)} rows")
            report |= classification(task, score_labels(loaded, backbone, task))
        if self.forgetting:
            yield Loading(text="Measuring forgetting")
            general = self._forgetting(home, loaded, backbone, stack, before)
            report |= {key: general.get(key) for key in FORGOTTEN} | {"general": general}
            backbone.use(stack)
        if self.scores:
            yield Loading(text=f"Answering {len(chosen)} prompts")
            answers = list(self._answers(loaded, backbone, chosen, room))
            report |= self._scored(answers)
            for answer in answers[:MAX_SAMPLES]:
                yield Sampled(prompt=answer["prompt"], text=answer["answer"])
        return report

    def _gated(self) -> set[str]:
        return {*bounds(self.min), *bounds(self.max)}

    def _run(self, stack: Stack) -> RunSpec | None:
        """Return the run of the last adapter, which held some rows out; None if it is not known."""
        if self.rows == "held_out" and stack:
            with suppress(SpecError):  # its passport is of another version, or there is none
                return RunSpec.parse(describe(Path(stack[-1].name)).section("spec"))
        return None

    def _rows(self, home: Home, loaded: Loaded, room: int) -> tuple[Prepared, list[Example]]:
        """Return the data, and the rows to measure; of preferences, the good answers."""
        from studio.data.prepare_run_data import prepare
        from studio.data.template.template import IGNORED

        held = self.rows == "held_out"
        prepared = prepare(
            self.data, loaded.tokenizer, seed=self.seed, home=home, context_length=room, split=held,
            rows="answers" if self.learned == "auto" else self.learned,
        )  # fmt: skip
        rows = prepared.validation if held else prepared.train
        usable = [
            row for row in rows
            if row.good and (row.labels != IGNORED).any() and len(row.input_ids) <= room
        ]  # fmt: skip
        if not usable and not {*FORGOTTEN} >= self._gated() > set():
            raise DataError(
                ("The rows have no answers" if rows else "No rows are held out")
                + ", so only forgetting can be measured. Measure a dataset with answers, or all "
                "rows (rows=all)."
            )
        if self.max_rows:
            drawn = np.random.default_rng(self.seed).permutation(len(usable))[: self.max_rows]
            usable = [usable[place] for place in sorted(drawn)]
        return prepared, usable

    def _forgetting(
        self, home: Home, loaded: Loaded, backbone: Backbone, stack: tuple[tuple[str, float], ...],
        before: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the forgetting of the stack, or what the run of a whole model stored."""
        from studio.evaluation.forgetting import general_set, measure

        if self._is_model():
            return describe(Path(self.stack[0].name)).section("forgetting")
        general = general_set(loaded, home, self.general_data, tokens_before=before)
        return measure(loaded, backbone, general, stack)

    def _is_model(self) -> bool:
        return len(self.stack) == 1 and describe(Path(self.stack[0].name)).is_model

    def _model(self) -> ModelSource:
        """Return the base, or the whole model that full fine-tuning left."""
        if self._is_model():
            return self.model.model_copy(update={"path": self.stack[0].name})
        return self.model

    def _answers(
        self, loaded: Loaded, backbone: Backbone, rows: Sequence[TokenRow], room: int
    ) -> Iterator[dict[str, str]]:
        """Answer the last question of each row, without thoughts.

        Plain text is continued after its first third.
        """
        from studio.chat.lanes import Sampling
        from studio.chat.prompt_and_answer import without_thought
        from studio.chat.thought_and_tool_parser import NO_MARKERS, markers_of
        from studio.data.template.choose_template import choose_for
        from studio.evaluation.likelihood import parts
        from studio.training.batching import grouped
        from studio.training.sample_answers import continuations

        template = choose_for(loaded.tokenizer, self.data)
        asked = []
        for row in rows:
            prompt, wanted = parts(row)
            if len(prompt) < 2:
                whole = prompt + wanted
                prompt, wanted = whole[: len(whole) // 3], whole[len(whole) // 3 :]
            if prompt:
                asked.append((prompt, wanted, min(self.max_new_tokens, room - len(prompt))))
        sizes = [len(prompt) + limit for prompt, _, limit in asked]
        markers = markers_of(loaded.tokenizer) if template.name == "model" else NO_MARKERS
        how = {"tokenizer": loaded.tokenizer, "markers": markers, "stop_ids": template.stop_ids}
        for places in reversed(grouped(sizes, max_tokens=BATCH_ANSWER_TOKENS)):
            part = [asked[place] for place in places]
            found = continuations(
                backbone, [prompt for prompt, *_ in part], [[Sampling()]] * len(part),
                device=loaded.device, stop_ids=template.stop_ids, limits=[n for *_, n in part],
            )  # fmt: skip
            for (prompt, wanted, _), one in zip(part, found, strict=True):
                yield {
                    "prompt": loaded.tokenizer.decode(prompt, skip_special_tokens=True).strip(),
                    "answer": without_thought(one.ids, prompt, **how),
                    "wanted": without_thought(wanted, prompt, **how),
                }

    def _scored(self, answers: Sequence[dict[str, str]]) -> dict[str, Any]:
        score = scorers(self.scores, self.pattern, self.json_schema)
        means = {
            name: fmean(of(a["answer"], a["wanted"]) for a in answers) if answers else None
            for name, of in score.items()
        }
        return {"answered": len(answers), "scores": means, "answers": list(answers)}


def losses(loaded: Loaded, backbone: Backbone, rows: Sequence[TokenRow]) -> dict[str, Any]:
    """Return loss per trained token, perplexity, token accuracy and number of tokens.

    Of no tokens they are None.
    """
    from studio.training.batching import groups, pack
    from studio.training.loss import eval_tokens, evaluate_loss

    tokens = eval_tokens(backbone)
    batches = (pack(group, loaded.device) for group in groups(rows, max_tokens=tokens))
    found = evaluate_loss(backbone, batches)
    measured = found.tokens > 0
    return {
        "eval_loss": found.loss if measured else None,
        "perplexity": math.exp(min(found.loss, 700.0)) if measured else None,
        "token_accuracy": found.accuracy if measured else None,
        "tokens": found.tokens,
    }
