"""Standard tasks: equal to lm-eval's own hf backend, resumed, paired, refused in one sentence."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from studio.backbone import Backbone
from studio.errors import AdapterError, DataError, GateFailed, InputError, Unreached
from studio.evaluation import standard_tasks
from studio.evaluation.evaluate_on_dataset import REPORT
from studio.evaluation.standard_tasks import ANSWERS, TasksRequest
from studio.home import open_home
from studio.models.loading import load
from studio.spec import ModelSource
from studio.training.training_events import Finished, Working
from tests.studio.methods.cases import ADAPTERS

QUIZ = """
task: quiz
dataset_path: json
dataset_kwargs: {data_files: {test: quiz.jsonl, train: shots.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
num_fewshot: 1
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
PROSE = """
task: prose
dataset_path: json
dataset_kwargs: {data_files: {test: prose.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: quiz.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
WORDS = ("a red ball", "two dogs", "the old king of France", "rain", "nothing at all, my friend")


def write_tasks(folder, rows=5):
    """Write the three tasks into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("quiz", QUIZ), ("prose", PROSE), ("write", WRITE)):
        (folder / f"{name}.yaml").write_text(text)
    quiz = []
    for n, word in zip(range(rows), WORDS * rows, strict=False):
        choices = [*WORDS[n % 3 :], "no", word]
        quiz.append({"question": f"What is {word} {n}?", "choices": choices, "label": n % 3})
    prose = [{"text": " ".join(WORDS[: 1 + n % 5] * (1 + 80 * (n % 2)))} for n in range(rows)]
    for name, own in (("quiz", quiz), ("shots", quiz[:2]), ("prose", prose)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    return folder


lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval")
LABELS = {"lora": "lora-r=4", "prefix": "prefix_tuning-num_virtual_tokens=5"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of tasks, the starter with two adapters, and the adapters' folders."""
    place = tmp_path_factory.mktemp("made")
    loaded = load(ModelSource(), "cpu")
    backbone = Backbone(loaded.model)
    generator = torch.Generator().manual_seed(7)
    for name, label in LABELS.items():
        for parameter in backbone.attach(name, ADAPTERS[label], seed=3).parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        (place / name).mkdir()
        backbone.save(name, place / name)
    return place, write_tasks(place / "tasks"), loaded, backbone


def lanes_of(made, path, stacks):
    from studio.evaluation import lm_eval_model, lm_eval_tasks

    _, tasks, loaded, backbone = made
    model = lm_eval_model.LaneModel(loaded, backbone, stacks, lm_eval_model.Answers(path))
    files = [str(tasks / f"{name}.yaml") for name in ("quiz", "prose", "write")]
    found = [
        lm_eval_tasks.load(one, standard_tasks.source_of(one), num_fewshot=-1, seed=1)
        for one in files
    ]
    return model, [lm_eval_tasks.requests_of(one, model, limit=0, chat=False) for one in found]


@pytest.mark.parametrize("lane", ["base", "lora"])
def test_answers_equal_those_of_the_hf_backend(made, tmp_path, lane):
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, _, loaded, _ = made
    model, asked = lanes_of(made, tmp_path / ANSWERS, [(), (("lora", 1.0),)])
    model.lane = int(lane == "lora")
    folder = loaded.facts.path
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lane == "lora":
        theirs = PeftModel.from_pretrained(theirs, place / "lora")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf = HFLM(pretrained=theirs.eval(), tokenizer=tokenizer, batch_size=4, device="cpu")
    quiz, prose, write = (next(iter(kinds.values())) for kinds in asked)
    for (mine, greedy), (wanted, best) in zip(
        model.loglikelihood(quiz), hf.loglikelihood(quiz), strict=True
    ):
        assert mine == pytest.approx(wanted, abs=1e-4)
        assert greedy == best
    lengths = [len(model.tok_encode(one.args[0])) for one in prose]
    assert max(lengths) > model.max_length  # read in windows
    wanted = hf.loglikelihood_rolling(prose)
    assert model.loglikelihood_rolling(prose) == pytest.approx(wanted, rel=1e-6, abs=1e-4)
    assert model.generate_until(write) == hf.generate_until(write)


def test_a_mixed_stack_equals_sums_over_its_own_logits(made, tmp_path):
    stack = (("lora", 0.5), ("prefix", 1.0))
    model, (quiz, prose, _) = lanes_of(made, tmp_path / ANSWERS, [(), stack])
    model.lane = 1
    _, _, loaded, backbone = made

    def total(context, ids):
        backbone.use(stack)
        with torch.no_grad():
            logits = backbone.model(torch.tensor([[*context, *ids]])).logits[0]
        logs = logits[len(context) - 1 : -1].double().log_softmax(-1)
        return float(logs[range(len(ids)), ids].sum())

    asked = quiz["loglikelihood"]
    for (mine, _), one in zip(model.loglikelihood(asked), asked, strict=True):
        context = loaded.tokenizer.encode(one.args[0])
        whole = loaded.tokenizer.encode(one.args[0] + one.args[1])
        assert mine == pytest.approx(total(context, whole[len(context) :]), abs=1e-4)
    one = prose["loglikelihood_rolling"][0]
    ids = loaded.tokenizer.encode(one.args[0])
    wanted = total([model.prefix_token_id], ids)
    assert model.loglikelihood_rolling([one])[0] == pytest.approx(wanted, abs=1e-4)
    assert model.max_length == loaded.facts.context_length - 5


def request(made, home, **values):
    place, tasks, _, _ = made
    given = {"stack": [str(place / "lora"), str(place / "prefix")], "each": True,
             "tasks": [str(tasks)], **values}  # fmt: skip
    return TasksRequest.parse(given).checked(home)


def test_base_and_adapters_are_measured_in_one_pass_and_a_stopped_job_goes_on(
    made, tmp_path, monkeypatch
):
    home = open_home(tmp_path / "home")
    asked = request(made, home, limit=4)
    run = tmp_path / "runs" / "1"
    stops = iter([None, None, "stop"])
    events = list(asked.perform(home, run, lambda: next(stops)))
    assert isinstance(events[-1], Finished) and events[-1].reason == "stopped"
    lines = (run / ANSWERS).read_text().splitlines(True)
    assert lines
    (run / ANSWERS).write_text("".join(lines) + '["half a li')  # a killed process
    from studio.evaluation import likelihood

    seen = []
    real = likelihood._packed
    monkeypatch.setattr(
        likelihood, "_packed", lambda rows, device: seen.extend(rows) or real(rows, device)
    )
    events = list(asked.perform(home, run))
    assert isinstance(events[-1], Finished) and events[-1].reason == "completed"
    steps = [event for event in events if isinstance(event, Working)]
    assert steps[0].step == len(lines) and steps[-1].step == steps[-1].total_steps
    report = json.loads((run / REPORT).read_text())
    assert report["lanes"][0] == "starter" and len(report["lanes"]) == 3
    rows = {(row["task"], row["metric"]): row for row in report["tasks"]}
    assert set(rows) == {("quiz", "acc"), ("quiz", "acc_norm"), ("prose", "word_perplexity"),
                         ("write", "exact_match")}  # fmt: skip
    perplexity = rows["prose", "word_perplexity"]
    assert perplexity["best"] == "min" and perplexity["documents"] == 4
    assert len(set(perplexity["values"])) == 3
    gap, low, high = perplexity["differences"][1]
    assert gap == pytest.approx(perplexity["values"][1] - perplexity["values"][0])
    assert low <= gap <= high and perplexity["differences"][0] is None
    assert {one["task"] for one in report["examples"]} == {"quiz", "prose", "write"}
    assert all(len(one["answers"]) == 3 for one in report["examples"])
    assert asked.outcome(home, run, {})["id"] == 1
    # A gate is about the adapters, and what was measured stays.
    gated = asked.model_copy(update={"max": ("prose:word_perplexity=1.5",), "min": ("x:y=1",)})
    with pytest.raises(
        GateFailed, match=r"lora.* x:y was not measured .*; prose:word_perplexity is"
    ):
        list(gated.perform(home, run))
    assert json.loads((run / REPORT).read_text()) == report


def test_an_adapter_alone_is_measured_on_top_of_what_it_was_trained_on(made, tmp_path):
    home, place = open_home(tmp_path / "home"), made[0]
    shutil.copytree(place / "prefix", tmp_path / "second")
    line = [{"name": "first", "path": str(place / "lora"), "frozen": True}]
    (tmp_path / "second" / "passport.json").write_text(
        json.dumps({"name": "second", "lineage": line})
    )
    quiz = {"tasks": [str(place / "tasks" / "quiz.yaml")], "limit": 4}
    both = [f"{tmp_path / 'second'}:0.5", str(place / "lora")]
    each = request(made, home, stack=both, **quiz)
    assert [item.weight for item in each.stack] == [0.5, 1]
    whole = request(made, home, stack=both[:1], each=False, **quiz)
    reports = []
    for number, asked in enumerate((each, whole)):
        list(asked.perform(home, tmp_path / str(number)))
        reports.append(json.loads((tmp_path / str(number) / REPORT).read_text()))
    assert reports[0]["names"] == ["starter", "lora + second × 0.5", "lora"]
    assert reports[0]["lanes"][1:2] == reports[1]["lanes"]
    kept = [
        [json.loads(line)[1] for line in (tmp_path / name / ANSWERS).read_text().splitlines()]
        for name in "01"
    ]
    for (_, top, below), (alone,) in zip(*kept, strict=True):
        assert top[0] == pytest.approx(alone[0], abs=1e-4) != below[0]


def test_samples_of_one_prompt_differ_whatever_pass_they_are_in(made, tmp_path, monkeypatch):
    from studio.evaluation import lm_eval_model

    _, _, loaded, backbone = made
    how = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8, "until": ["\n"]}
    asked = [SimpleNamespace(args=("Once upon a time there was", how))] * 4
    found = []
    for name, rows in (("one", 1), ("all", 128)):
        monkeypatch.setitem(lm_eval_model.PASS_ROWS, "cpu", rows)
        answers = lm_eval_model.Answers(tmp_path / name)
        found.append(lm_eval_model.LaneModel(loaded, backbone, [()], answers).generate_until(asked))
    assert len(set(found[0])) > 1 and found[0] == found[1]


def test_a_paired_interval_is_that_by_hand():
    from lm_eval.api.metrics import mean, weighted_perplexity

    from studio.evaluation.lm_eval_tasks import paired

    # Differences 1, 0, 1, 0: mean 0.5, standard deviation 0.57735, t(3) = 3.1824.
    half = 3.1824 * 0.57735 / 2
    found = paired([(0, 1), (1, 1), (0, 1), (0, 0)], mean)
    assert found == pytest.approx([0.5, 0.5 - half, 0.5 + half], abs=1e-3)
    assert paired([(0, 1)], mean) is None
    pairs = [((-10.0 * n, n), (-9.0 * n, n)) for n in (1, 2, 3)]
    gap, low, high = paired(pairs, weighted_perplexity)
    assert gap == pytest.approx(2.718281828**9 - 2.718281828**10, rel=1e-6)
    assert low == pytest.approx(high)  # every document has the same ratio


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: x\ndoc_to_text: !function utils.text\n", "names code at line 2"),
        ("task: x\nclass: y\n", "runs code"),
        ("a: [", "not valid YAML"),
        ("- a", "must hold a mapping"),
        ("group: x\n", "names no task"),
        (QUIZ.replace("test: quiz.jsonl", "test: gone.jsonl"), r"names the rows gone\.jsonl"),
        (
            QUIZ.replace("{data_files: {test: quiz.jsonl, train: shots.jsonl}}", "{}"),
            "names no rows",
        ),
        (QUIZ + "  - {metric: acc2, hf_evaluate: true}\n", "runs code"),
        ("include: own.yaml\ntask: x\n", "includes itself"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_one_sentence(tmp_path, text, words):
    write_tasks(tmp_path)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        standard_tasks.resolve_tasks([str(tmp_path / "own.yaml")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("metric: acc,", "metric: acc2,"), 'unknown metric "acc2"'),
        (("test_split: test", "test_split: tests"), 'task "own.yaml" cannot be loaded: check its'),
        (("{{question}}", "{{().__class__.__base__.__subclasses__()}}"), "cannot be loaded"),
    ],
)
def test_what_only_lm_eval_can_tell_is_one_sentence_too(tmp_path, change, words):
    from studio.evaluation import lm_eval_tasks

    write_tasks(tmp_path)
    (tmp_path / "own.yaml").write_text(QUIZ.replace(*change))
    with pytest.raises(DataError, match=words):
        own = str(tmp_path / "own.yaml")
        lm_eval_tasks.load(own, standard_tasks.source_of(own), num_fewshot=-1, seed=1)


def test_names_are_checked_at_once_and_lm_eval_is_not_imported(tmp_path, monkeypatch):
    home = open_home(tmp_path / "home")
    with pytest.raises(DataError, match='There is no task "arc_esay".* Did you mean "arc_easy"'):
        TasksRequest(tasks=("arc_esay",)).checked(home)
    with pytest.raises(DataError, match="Name at least one task"):
        TasksRequest(tasks=(" , ",)).checked(home)
    with pytest.raises(AdapterError, match="nobody"):
        TasksRequest.parse({"tasks": ["arc_easy"], "stack": ["nobody"]}).checked(home)
    asked = TasksRequest(tasks=("gsm8k, arc_easy", "arc_easy")).checked(home)
    assert asked.tasks == ("gsm8k", "arc_easy")
    assert standard_tasks.file_of("arc_easy").name == "arc_easy.yaml"
    monkeypatch.setattr(standard_tasks, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'adapter-studio\[eval\]'"):
        TasksRequest(tasks=("arc_easy",)).checked(home)


def test_a_hub_task_offline_is_one_sentence(monkeypatch, tmp_path):
    import datasets

    from studio.evaluation import lm_eval_tasks

    def refused(*_, **__):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(Unreached, match='"arc_easy" are not on this machine, and the hub cannot'):
        lm_eval_tasks.load("arc_easy", standard_tasks.file_of("arc_easy"), num_fewshot=-1, seed=1)


def test_asking_for_tasks_imports_no_lm_eval():
    import subprocess

    code = (
        "import sys, jobs.actions, studio.evaluation.standard_tasks\n"
        "studio.evaluation.standard_tasks.resolve_tasks(['arc_easy'])\n"
        "print([m for m in ('lm_eval', 'torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
