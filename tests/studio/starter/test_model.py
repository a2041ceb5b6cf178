"""The starter as shipped, loaded as any folder: size, tokenizer, template, and what it knows."""

import json

import pytest

from studio.spec import RunSpec
from studio.starter import MODEL_DIR, SAMPLE_PROMPTS, datasets
from studio.starter.make.chats import FOLLOW_UPS, FOLLOWABLE, UNKNOWN, follow_up
from studio.starter.make.pretrain import encode_rows, greedy_answers
from studio.starter.make.world import held_out_questions, questions
from studio.training.train_run import train
from studio.training.training_events import Finished
from tests.studio.starter.styles import heldout, is_in_style, keeps_content

CHAT = [
    {"role": "system", "content": "Be polite and clear."},
    {"role": "user", "content": "What is 7 plus 5?"},
    {"role": "assistant", "content": "7 plus 5 is 12."},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome!"},
]


def trained_questions():
    return [question for question in questions() if not question.held_out]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def _ask(model, tokenizer, *questions):
    prompts = [[{"role": "user", "content": question}] for question in questions]
    return greedy_answers(model, tokenizer, prompts)


def test_folder_is_small_and_complete():
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < 10_000_000
    for name in ("config.json", "generation_config.json", "tokenizer.json", "README.md"):
        assert (MODEL_DIR / name).is_file()


def test_it_is_a_small_bf16_llama(model):
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 512
    assert 2_000_000 <= model.num_parameters() <= 4_500_000
    assert MODEL_DIR.joinpath("config.json").read_text().count('"bfloat16"') == 1


@pytest.mark.parametrize(
    "text", ["What is 7 plus 5?", "  two  spaces\n\tand tabs ", "héllo 日本語 🎉 \u0000 ‮x", "12345"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_turn_ends_with_the_end_token_which_is_not_the_pad_token(tokenizer, model):
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_template_renders_roles_turns_and_the_generation_prompt(tokenizer):
    text = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)

    assert (
        text == "<|system|>Be polite and clear.<|end|><|user|>What is 7 plus 5?<|end|><|assistant|>"
    )


def test_template_marks_what_the_assistant_wrote_as_the_pretraining_did(tokenizer):
    encoded = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    [(ids, labels)] = encode_rows(tokenizer, [CHAT])

    assert encoded["input_ids"] == ids
    assert encoded["assistant_masks"] == [int(label != -100) for label in labels]


def test_at_least_95_percent_of_held_out_questions_are_answered_exactly(model, tokenizer):
    asked = held_out_questions()
    assert len(asked) >= 200

    answers = _ask(model, tokenizer, *(question.question for question in asked))

    wrong = [(q.question, a) for q, a in zip(asked, answers, strict=True) if q.answer != a]
    assert len(wrong) <= 0.05 * len(asked), wrong


def test_follow_ups_are_understood_from_the_turn_before(model, tokenizer):
    first = {(q.relation, q.phrasing): q for q in trained_questions()}
    later = [q for q in held_out_questions() if q.relation in FOLLOWABLE]
    prompts = []
    for number, question in enumerate(later):
        before = first[question.relation, question.phrasing]
        prompts.append(
            [
                {"role": "user", "content": before.question},
                {"role": "assistant", "content": before.answer},
                {"role": "user", "content": follow_up(question, FOLLOW_UPS[number % 4])},
            ]
        )

    answers = greedy_answers(model, tokenizer, prompts)

    right = sum(q.answer == a for q, a in zip(later, answers, strict=True))
    assert right >= 0.9 * len(later)


def test_it_admits_what_is_not_in_its_world(model, tokenizer):
    strange = [
        "Who is the president of Kenya?",
        "What is the capital of Gondoria?",
        "How do I bake a cake?",
        "What is the meaning of life?",
        "What is 345 plus 678?",
        "Why is water wet?",
        "Who wrote Hamlet?",
        "Can you explain photosynthesis?",
    ]

    answers = _ask(model, tokenizer, *strange)

    assert sum(answer == UNKNOWN for answer in answers) >= 6, answers


def test_sample_prompts_get_an_answer_that_ends(model, tokenizer):
    prompts = [[{"role": "user", "content": question}] for question in SAMPLE_PROMPTS]

    answers = greedy_answers(model, tokenizer, prompts, max_new_tokens=120)

    assert answers[0] == "The capital of France is Paris."
    assert all(answer and answer[-1] in ".!?" and answer != UNKNOWN for answer in answers)


@pytest.mark.parametrize(
    "demo", [name if name == "terse" else pytest.param(name, marks=pytest.mark.long)
             for name in datasets()]
)  # fmt: skip
def test_default_lora_brings_the_demo_style_and_keeps_the_content(demo, home, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = RunSpec.model_validate({"data": {"path": f"starter:{demo}"}, "method": "lora"})
    rows = [json.loads(line) for line in heldout(demo).read_text(encoding="utf-8").splitlines()]

    *_, last = train(spec, run_dir=tmp_path / "run", home=home)

    assert isinstance(last, Finished)
    base = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    answers = greedy_answers(tuned, tokenizer, [row["messages"][:1] for row in rows])
    in_style = [is_in_style(demo, answer) for answer in answers]
    right = [keeps_content(row, answer) for row, answer in zip(rows, answers, strict=True)]
    assert sum(in_style) >= 0.9 * len(rows), answers
    assert sum(right) >= 0.8 * len(rows), answers
