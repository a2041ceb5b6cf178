"""Three task files with rows: multiple choice, rolling perplexity, generation."""

import json

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
