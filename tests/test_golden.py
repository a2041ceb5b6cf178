"""Compare what the product prints and computes with golden files.

`tests/golden/contract` holds what must stay: commands and options, JSON keys and stable values,
exit codes, loss masks, losses, greedy answers. `tests/golden/wording` holds texts that may be
improved: help and error sentences. Write both again with

    STUDIO_GOLDEN=write pytest tests/test_golden.py

and read the diff before committing: a change of wording touches `wording` only.

In a contract file `<str>`, `<number>`, `<bool>`, `<list>` and `<any>` stand for values that differ
from run to run. A document may gain keys, never lose one.
"""

import hashlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from tokenizers import Tokenizer

from studio import starter
from tests.shell import Shell, opened
from tests.studio.data.test_template_shapes import SHAPES
from ui.cli.main import app

GOLDEN = Path(__file__).with_name("golden")
WRITE = os.environ.get("STUDIO_GOLDEN") == "write"
VARYING = {
    "seconds", "seconds_left", "tokens_per_second", "first_token_seconds", "memory_bytes",
    "max_error", "mean_error", "max_logit_difference", "files", "folder", "history",
    "notes", "waits",
}  # fmt: skip
WORDING = {"text", "title", "summary", "reason", "warnings", "note", "label"}


# -- comparing -------------------------------------------------------------------------------------


def kind_of(value: Any) -> str:
    """Return the marker that stands for a value of this type."""
    if isinstance(value, bool):
        return "<bool>"
    names = {int: "number", float: "number", str: "str", list: "list", dict: "any"}
    return f"<{names.get(type(value), 'any')}>"


def masked(value: Any, varying: set[str]) -> Any:
    """Replace the values of varying keys by markers, at any depth."""
    if isinstance(value, dict):
        return {
            key: kind_of(inner) if key in varying and inner is not None else masked(inner, varying)
            for key, inner in value.items()
        }
    return [masked(inner, varying) for inner in value] if isinstance(value, list) else value


def keys_only(value: Any) -> Any:
    """Replace every value that is not a record by a marker."""
    return {k: keys_only(v) for k, v in value.items()} if isinstance(value, dict) else "<any>"


def differences(expected: Any, actual: Any, where: str, tolerance: float) -> Iterator[str]:
    """Yield each place where a document differs from its golden form."""
    if expected == "<any>" or (isinstance(expected, str) and expected == kind_of(actual)):
        return
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key, value in expected.items():
            if key not in actual:
                yield f"{where}.{key} is missing"
            else:
                yield from differences(value, actual[key], f"{where}.{key}", tolerance)
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{where} has {len(actual)} items, not {len(expected)}"
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            yield from differences(one, other, f"{where}[{index}]", tolerance)
    elif isinstance(expected, float) and isinstance(actual, float | int):
        if not math.isclose(expected, actual, rel_tol=tolerance, abs_tol=1e-9):
            yield f"{where} is {actual!r}, not {expected!r}"
    elif expected != actual:
        yield f"{where} is {actual!r}, not {expected!r}"


def check_contract(
    name: str, actual: Any, *, varying: set[str] = VARYING, tolerance: float = 1e-5
) -> None:
    """Compare with a contract file, or write it."""
    file = GOLDEN / "contract" / f"{name}.json"
    if WRITE:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(masked(actual, varying), indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
    expected = json.loads(file.read_text(encoding="utf-8"))
    assert list(differences(expected, actual, name, tolerance)) == []


def check_wording(name: str, actual: str) -> None:
    """Compare with a wording file, or write it."""
    file = GOLDEN / "wording" / f"{name}.txt"
    if WRITE:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(actual, encoding="utf-8")
    hint = "if the new wording is better: STUDIO_GOLDEN=write pytest tests/test_golden.py"
    assert actual.splitlines() == file.read_text(encoding="utf-8").splitlines(), hint


# -- running ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell(forked, tmp_path_factory):
    with opened(tmp_path_factory.mktemp("golden")) as made:
        yield made


# -- commands --------------------------------------------------------------------------------------


def commands(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command and group with the words that call it."""
    yield words, command
    for name in sorted(getattr(command, "commands", {})):
        yield from commands(command.commands[name], f"{words} {name}")  # type: ignore[attr-defined]


def test_every_command_keeps_its_options():
    found = {
        words: sorted(
            "/".join([*option.opts, *option.secondary_opts])
            + (" ..." if option.multiple or option.nargs != 1 else "")
            + (" required" if option.required else "")
            for option in command.params
        )
        for words, command in commands(typer.main.get_command(app), "studio")
    }
    check_contract("commands", {words: dict.fromkeys(all_, True) for words, all_ in found.items()})


def test_help_texts():
    pages = [
        command.get_help(click.Context(command, info_name=words, terminal_width=100))
        for words, command in commands(typer.main.get_command(app), "studio")
    ]
    check_wording("help", "\n\n\n".join(pages) + "\n")


# -- mistakes --------------------------------------------------------------------------------------

SPECS = {
    "unknown key": ["--set", "method.rr=3"],
    "unknown part": ["--set", "optimizer.lr=3"],
    "no assignment": ["--set", "r"],
    "wrong type": ["--set", "train.max_steps=many"],
    "out of bounds": ["--set", "train.max_steps=-7"],
    "wrong choice": ["--set", "data.train_on=user"],
    "wrong rate": ["--set", "train.learning_rate=-1"],
    "offloading alone": ["--set", "train.activation_offloading=true"],
    "several wrong": ["--set", "method.r=0", "--set", "train.num_train_epochs=0"],
    "unknown method": ["--method", "lorra"],
    "unknown preset": ["--preset", "quik"],
    "no spec file": ["nothing.yaml"],
    "empty model": ["--model", ""],
    "no model folder": ["--model", "/nowhere/model"],
    "no data file": ["--data", "/nowhere.jsonl"],
    "unknown demo": ["--data", "starter:piratt"],
    "name too long": ["--name", "x" * 200],
    "needs an unknown job": ["--needs", "77"],
    "unknown device": ["--set", "train.device=gpu9"],
}
OTHERS = {
    "unknown command": ["trian"],
    "unknown option": ["train", "--nope"],
    "missing argument": ["show"],
    "no such job": ["show", "7"],
    "no job of that name": ["cancel", "unheard-of"],
    "unknown state": ["runs", "--state", "quedued"],
    "merge of an unknown adapter": ["merge", "--adapter", "nope"],
    "merge with a bad weight": ["merge", "--adapter", "nope:much"],
    "merge without an adapter": ["merge"],
    "chat without a prompt": ["chat"],
    "chat with an unknown adapter": ["chat", "--adapter", "nope", "--prompt", "Hi"],
    "chat with a bad weight": ["chat", "--adapter", "nope:1000", "--prompt", "Hi"],
    "chat too hot": ["chat", "--prompt", "Hi", "--temperature", "-1"],
    "X-ray with an unknown template": ["data", "xray", "starter:pirate", "--chat-template", "x"],
    "X-ray of an unknown row": ["data", "xray", "starter:pirate", "--row", "9999"],
    "unknown dataset": ["data", "delete", "nope"],
    "unknown adapter": ["adapters", "rename", "nope", "x"],
    "import of nothing": ["import", "/nowhere"],
    "unknown suite": ["suite", "/nowhere.jsonl", "--lane", "starter"],
    "a moment that is over": ["schedule", "1", "--at", "yesterday"],
    "bad field of a sweep": ["sweep", "--over", "method.rr=1,2"],
}


def test_mistakes(shell):
    files = {
        "empty file": shell.file("empty.jsonl", ""),
        "cut JSON": shell.file("cut.json", '[{"question": "a?", "answer":'),
        "PDF": shell.file("paper.pdf", "%PDF-1.4 x"),
        "pickle": shell.file("model.pkl", b"\x80\x04\x95\x00\x00\x00"),
        "no answers": shell.file("no-answers.jsonl", [{"question": "a?", "answer": ""}] * 2),
        "unknown columns": shell.file("columns.csv", "x,y\n1,2\n3,4\n"),
    }
    inputs = {name: ["train", *words] for name, words in SPECS.items()} | OTHERS
    inputs |= {name: ["train", "--data", file] for name, file in files.items()}
    ends = {name: shell(*words) for name, words in inputs.items()}
    assert [name for name, end in ends.items() if "error" not in end["json"]] == []
    errors = {name: end["json"]["error"] for name, end in ends.items()}
    check_contract(
        "errors", {name: [ends[name]["exit"], error["kind"]] for name, error in errors.items()}
    )
    said = (f"{name}\n    {error['text']}\n" for name, error in errors.items())
    check_wording("errors", "".join(said))


# -- data ------------------------------------------------------------------------------------------


def test_data_check(shell):
    files = [
        shell.file("questions.jsonl", b'{"question": "a?", "answer": "b"}\n{"question": "a?"}\n'
                   b'not json\n{"question": "a?", "answer": "b"}\n'),
        shell.file("labels.csv", "text,label\nhello,pos\nbye,neg\n"),
        shell.file("pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2),
        shell.file("poem.txt", "One line.\n\nAnother line.\n"),
        shell.file("alpaca.json", json.dumps([{"instruction": "a", "input": "", "output": "b"}])),
        shell.file("refused.pdf", "%PDF-1.4 x"),
        "starter:pirate",
    ]  # fmt: skip
    check_contract("data-check", shell("data", "check", *files), varying=VARYING | WORDING)


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS = [
    {"messages": [turn("user", "Hi"), turn("assistant", "Hello!"), turn("user", "2+2?"),
                  turn("assistant", "4")]},
    {"messages": [turn("system", "Be brief."), turn("user", " padded "),
                  turn("assistant", "  two\n\nparts ")]},
    {"messages": [turn("user", "q"), turn("assistant", "<think>\nhm\n</think>\n\na"),
                  turn("user", "r"), turn("assistant", "<think>\nso\n</think>\n\nb")]},
    {"messages": [turn("user", "q"), turn("assistant", "wrong", weight=0), turn("user", "no"),
                  turn("assistant", "right")]},
    {"messages": [turn("user", "a <|im_end|> </s> <|end|> [INST]"),
                  turn("assistant", "ß 👩‍🚀 <|im_end|> é")]},
    {"messages": [turn("user", "2 and 2?"), turn("assistant", "", tool_calls=[CALL]),
                  turn("tool", "4", tool_call_id="1"), turn("assistant", "Four.")],
     "tools": [TOOL]},
]  # fmt: skip


def masks(shell: Shell, file: str, model: str, template: str) -> dict[str, list[str]]:
    """Return each row as text with its trained parts in brackets, and a hash of its tokens."""
    found = {}
    for train_on in ("assistant", "last", "all"):
        rows = shell(
            "data", "xray", file, "--model", model, "--chat-template", template, "--count", "9",
            "--train-on", train_on,
        )["json"]  # fmt: skip
        found[train_on] = [one_mask(row) for row in rows]
    return found


def one_mask(row: dict[str, Any]) -> str:
    if row["problem"]:
        return "refused"
    text = "".join(
        f"[[{token['text']}]]" if token["state"] == "trained" else token["text"]
        for token in row["tokens"]
    ).replace("]][[", "")
    tokens = [(token["id"], token["state"]) for token in row["tokens"]]
    return f"{text} ~ {hashlib.sha256(repr(tokens).encode()).hexdigest()[:12]}"


def model_folder(shell: Shell, name: str, tokenizer: Path) -> Path:
    """Make a folder of the starter's weights with another tokenizer."""
    folder = shell.folder / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(starter.MODEL_DIR / file, folder)
    for file in tokenizer.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return folder


def test_masks_of_named_templates_and_of_the_starter(shell):
    file = shell.file("conversations.jsonl", CONVERSATIONS)
    names = ("auto", "chatml", "alpaca", "vicuna", "plain")
    check_contract("masks-named", {name: masks(shell, file, "starter", name) for name in names})


def test_masks_of_own_templates(shell):
    file = shell.file("conversations.jsonl", CONVERSATIONS)
    found = {}
    for name, (template, specials, eos, bos) in SHAPES.items():
        folder = model_folder(shell, f"model-{name}", starter.MODEL_DIR)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(specials)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"eos_token": eos, "chat_template": template} | ({"bos_token": bos} if bos else {})
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        found[name] = masks(shell, file, str(folder), "auto")
    check_contract("masks-own", found)


def test_masks_of_a_real_template(shell, real):
    file = shell.file("conversations.jsonl", CONVERSATIONS)
    folder = model_folder(shell, "model-minimind", real / "tokenizers" / "minimind")
    check_contract("masks-minimind", masks(shell, file, str(folder), "auto"))


# -- runs, chat and merge --------------------------------------------------------------------------

COMMON = {
    "model.path": "starter", "model.dtype": "float32", "seed": 5, "train.device": "cpu",
    "train.attn_implementation": "sdpa", "train.num_samples": 0, "train.save_steps": -1,
    "train.eval_steps": -1, "train.per_device_train_batch_size": 4, "train.optim": "adamw",
    "train.max_grad_norm": 1, "train.warmup_steps": 0, "data.max_length": 128,
    "data.validation_fraction": 0.05,
}  # fmt: skip
RUNS = {
    "lora": {
        "data.path": "starter:pirate", "method.name": "lora", "method.r": 8,
        "method.lora_alpha": 16, "train.learning_rate": 0.003, "train.max_steps": 8,
        "train.lr_scheduler_type": "constant", "train.packing": True,
    },
    "bottleneck": {
        "data.path": "starter:terse", "method.name": "bottleneck", "train.learning_rate": 0.003,
        "train.max_steps": 4, "train.lr_scheduler_type": "linear", "train.packing": False,
        "train.gradient_accumulation_steps": 2, "train.weight_decay": 0.1,
    },
    "prefix": {
        "data.path": "starter:butler", "method.name": "prefix_tuning", "train.eval_steps": 2,
        "method.prefix_init": "RANDOM",
        "train.learning_rate": 0.01, "train.max_steps": 4, "train.lr_scheduler_type": "cosine",
        "train.packing": True, "train.gradient_checkpointing": True,
    },
}  # fmt: skip


FOLLOWED: dict[str, Any] = {}


@pytest.fixture(scope="module")
def trained(shell):
    """Three short runs, done."""
    for name, values in RUNS.items():
        pairs = (f"{key}={json.dumps(value)}" for key, value in (COMMON | values).items())
        words = [word for pair in pairs for word in ("--set", pair.replace('"', ""))]
        wait = "--follow" if name == list(RUNS)[-1] else "--detach"
        FOLLOWED.update(shell("train", "--name", name, wait, *words))
        assert FOLLOWED["exit"] == 0, FOLLOWED["json"]["error"]
    return shell


def test_losses(trained):
    ends = {}
    database = sqlite3.connect(trained.folder / "home" / "studio.db")
    for name in RUNS:
        shown = trained("show", name)["json"]
        steps = database.execute(
            "SELECT name, value FROM metrics WHERE job = ? AND name IN ('loss', 'grad_norm',"
            " 'learning_rate') AND step IN (1, ?) ORDER BY name, step",
            (shown["id"], shown["total_steps"]),
        )
        keys = ("state", "step", "total_steps", "first_loss", "last_loss", "eval_loss", "rows")
        ends[name] = {key: shown[key] for key in keys} | {"steps": [list(row) for row in steps]}
    database.close()
    check_contract("losses", ends)


def test_the_json_of_runs(trained):
    listed, shown = trained("runs"), trained("show", "lora")
    shown["json"]["spec"] = keys_only(shown["json"]["spec"])
    failed = trained("train", "--name", "fails", "--method", "bitfit")
    found = {"train --follow": FOLLOWED, "runs": listed, "show": shown, "failed": failed}
    losses = {"first_loss", "last_loss", "eval_loss", "forgetting", "general"}
    check_contract("runs", found, varying=VARYING | losses | {"text"})


def test_answers_of_a_seeded_chat(trained):
    words = ["--prompt", "What is the capital of France?", "--max-new-tokens", "12", "--seed", "3",
             "--temperature", "0"]  # fmt: skip
    lanes = ["starter", "starter~lora:1", "starter~lora:0.5+bottleneck:1"]
    chosen = [word for lane in lanes for word in ("--lane", lane)]
    found = {
        "chat": trained("chat", "--adapter", "lora", *words),
        "chat of the base": trained("chat", "--model", "starter", *words),
        "compare": trained("compare", *chosen, *words),
    }
    check_contract("answers", found)


def test_the_json_of_a_merge(trained):
    out = str(trained.folder / "merged")
    check_contract("merge", trained("merge", "--adapter", "lora:0.5", "--out", out))


def test_the_json_of_methods_and_doctor(shell):
    doctor = shell("doctor")
    facts = keys_only(doctor["json"] | {"devices": doctor["json"]["devices"][0]})
    facts["home"]["jobs"] = "<any>"  # counts of the states that earlier tests left in this home
    found = {"methods": shell("methods"), "doctor": facts}
    check_contract("methods-doctor", found, varying=WORDING)
