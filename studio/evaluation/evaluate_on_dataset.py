"""Evaluate a stack on a dataset: loss, perplexity, token accuracy, scores, labels, forgetting.

Rows are prepared and measured by training's own functions, so the loss is comparable with a run's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from studio.adapter_stack import Stack
from studio.adapters.adapter_lineage import resolve_stack
from studio.adapters.library import describe
from studio.evaluation.answer_scores import SCORES, scorers
from studio.evaluation.gate import CLASSIFIED, FORGOTTEN, bounds, check
from studio.fields import knob
from studio.home import Home
from studio.job_request import Request
from studio.models.find_model import facts
from studio.spec import DataSource, ModelSource
from studio.training.training_events import Evaluated, Event, Finished, Loading, Sampled

if TYPE_CHECKING:
    from studio.backbone import Backbone
    from studio.models.loading import Loaded
    from studio.training.batching import TokenRow

REPORT = "evaluation.json"
BATCH_TOKENS = 4096
BATCH_PROMPTS = 16
MAX_SAMPLES = 8


class EvaluateRequest(Request):
    """Measure a stack on a dataset."""

    kind: ClassVar[str] = "evaluate"
    report: ClassVar[str] = REPORT
    model: ModelSource = ModelSource()
    stack: Stack = ()
    data: DataSource = DataSource()
    rows: Literal["all", "held_out"] = knob(
        "all", "All rows, or those that a run with this seed and share holds out.", title="Rows"
    )
    max_rows: int = knob(0, "Maximum number of rows; 0 uses all.", ge=0)
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
    seed: int = knob(0, "Seed of the run whose held-out rows are used.", ge=0, le=2**31 - 1)
    device: str = knob("auto", "auto, cpu, cuda:0 …", advanced=True)

    def checked(self, home: Home) -> Self:
        """Return the request as the queue stores it, with the adapters' folders.

        Raises:
            StudioError: An adapter, the model or a score does not exist.
        """
        facts(self.model)
        scorers(self.scores, self.pattern, self.json_schema)
        gated = {*bounds(self.min), *bounds(self.max)}
        return self.model_copy(
            update={
                "stack": resolve_stack(home, self.stack),
                "classify": self.classify or bool(gated & {*CLASSIFIED}),
                "forgetting": self.forgetting or bool(gated & {*FORGOTTEN}),
                "scores": (*self.scores, *sorted(gated & {*SCORES} - {*self.scores})),
            }
        )

    def perform(self, home: Home, run_dir: Path, *_: Any) -> Iterator[Event]:
        """Measure, and write `evaluation.json` into the run's folder."""
        from studio.backbone import Backbone
        from studio.models.loading import load

        yield Loading(text="Loading the base")
        loaded = load(self._model(), self.device)
        backbone = Backbone(loaded.model)
        stack = []
        for place, item in enumerate(() if self._is_model() else self.stack):
            backbone.load(f"adapter-{place}", Path(item.name))
            stack.append((f"adapter-{place}", item.weight))
        report = yield from self.measured(home, loaded, backbone, tuple(stack))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1), "utf-8")
        check(report, self.min, self.max, "The evaluation")
        yield Finished(eval_loss=report["eval_loss"])

    def measured(
        self, home: Home, loaded: Loaded, backbone: Backbone, stack: tuple[tuple[str, float], ...]
    ) -> Generator[Event, None, dict[str, Any]]:
        """Measure a stack that is loaded, and return the report."""
        from studio.data.prepare_run_data import prepare
        from studio.data.token_arrays import places_by_source

        backbone.use(stack)
        before = sum(a.method.num_tokens_before for a in backbone.adapters.values())
        yield Loading(text="Reading the data")
        held = self.rows == "held_out"
        source = self.data if held else self.data.model_copy(update={"validation_fraction": 0.0})
        prepared = prepare(
            source, loaded.tokenizer, seed=self.seed, home=home,
            context_length=max(1, loaded.facts.context_length - before),
        )  # fmt: skip
        rows = prepared.validation if held else prepared.train
        chosen = list(rows[: self.max_rows] if self.max_rows else rows)
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
            from studio.evaluation.label_classification import classification, score, task_of

            every = [*prepared.train, *(prepared.validation if held else ())]
            task = task_of(chosen, every, loaded.tokenizer)
            yield Loading(text=f"Scoring {len(task.labels)} labels of {len(task.prompts)} rows")
            report |= classification(task, score(loaded, backbone, task))
        if self.forgetting:
            yield Loading(text="Measuring forgetting")
            general = self._forgetting(home, loaded, backbone, stack, before)
            report |= {key: general.get(key) for key in FORGOTTEN} | {"general": general}
            backbone.use(stack)
        if self.scores:
            yield Loading(text=f"Answering {len(chosen)} prompts")
            answers = list(self._answers(loaded, backbone, chosen))
            report |= self._scored(answers)
            for answer in answers[:MAX_SAMPLES]:
                yield Sampled(prompt=answer["prompt"], text=answer["answer"])
        return report

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
        self, loaded: Loaded, backbone: Backbone, rows: Sequence[TokenRow]
    ) -> Iterator[dict[str, str]]:
        from studio.data.template.template import choose_for
        from studio.training.sample_answers import greedy, prompt_of

        template = choose_for(loaded.tokenizer, self.data)
        asked = [(row, p) for row in rows if (p := prompt_of(row, loaded.tokenizer))]
        asked.sort(key=lambda pair: len(pair[1].ids))
        for start in range(0, len(asked), BATCH_PROMPTS):
            part = asked[start : start + BATCH_PROMPTS]
            found = greedy(
                backbone, [prompt.ids for _, prompt in part], device=loaded.device,
                stop_ids=template.stop_ids, max_new_tokens=self.max_new_tokens,
            )  # fmt: skip
            for (row, prompt), (ids, _) in zip(part, found, strict=True):
                wanted = row.input_ids[len(prompt.ids) :].tolist()
                yield {
                    "prompt": prompt.text,
                    "answer": loaded.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "wanted": loaded.tokenizer.decode(wanted, skip_special_tokens=True).strip(),
                }

    def _scored(self, answers: Sequence[dict[str, str]]) -> dict[str, Any]:
        score = scorers(self.scores, self.pattern, self.json_schema)
        means = {
            name: sum(of(a["answer"], a["wanted"]) for a in answers) / max(1, len(answers))
            for name, of in score.items()
        }
        return {"answered": len(answers), "scores": means, "answers": list(answers)}


def losses(loaded: Loaded, backbone: Backbone, rows: Sequence[TokenRow]) -> dict[str, Any]:
    """Return loss per trained token, perplexity, token accuracy and number of tokens."""
    from studio.training.batching import groups, pack
    from studio.training.loss import evaluate_loss

    batches = (pack(group, loaded.device) for group in groups(rows, max_tokens=BATCH_TOKENS))
    found = evaluate_loss(backbone, batches)
    return {
        "eval_loss": found.loss,
        "perplexity": math.exp(min(found.loss, 700.0)),
        "token_accuracy": found.accuracy,
        "tokens": found.tokens,
    }
