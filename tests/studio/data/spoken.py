"""What each family's model says in the shapes of `families`, written by hand from public facts.

These texts carry loss: all that a model writes itself, up to the token that ends its turn.
"""

from collections.abc import Callable
from dataclasses import dataclass

Writes = Callable[..., str]


def _lines(*cities: str) -> str:
    return "\n".join(
        f'{{"name": "weather", "arguments": {{"city": "{city}", "days": 2}}}}' for city in cities
    )


def _tags(*cities: str) -> str:
    return "\n".join(f"<tool_call>\n{_lines(city)}\n</tool_call>" for city in cities)


def _xml(*cities: str) -> str:
    return "\n".join(
        f"<tool_call>\n<function=weather>\n<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n2"
        "\n</parameter>\n</function>\n</tool_call>"
        for city in cities
    )


def _llama(city: str) -> str:
    return _lines(city).replace("arguments", "parameters")


def _mistral(*cities: str) -> str:
    made = (
        f'{_lines(city)[:-1]}, "id": "weather{number:02}"}}' for number, city in enumerate(cities)
    )
    return f"[TOOL_CALLS] [{', '.join(made)}]"


def _deepseek(*cities: str) -> str:
    made = (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        f'```json\n{{"city": "{city}", "days": 2}}\n```<｜tool▁call▁end｜>'
        for city in cities
    )
    # The template closes several calls; a single one is followed by its result at once.
    end = (
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        if len(cities) > 1
        else "<｜tool▁outputs▁begin｜>"
    )
    return "<｜tool▁calls▁begin｜>" + "\n".join(made) + end


def _glm(*cities: str) -> str:
    return "".join(
        f"\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        for city in cities
    )


def _harmony(city: str) -> str:
    return (
        " to=functions.weather<|channel|>commentary json<|message|>"
        f'{{"city": "{city}", "days": 2}}<|call|>'
    )


def _granite(*cities: str) -> str:
    return f"<|tool_call|>[{', '.join(map(_lines, cities))}]"


@dataclass(frozen=True)
class Spoken:
    """What a model writes: answers, those at the end, thoughts before them, calls, ends of turns.

    `turns` is True if the template cuts the thoughts of earlier answers.
    """

    end: str
    answer: str = "{}"
    last: str = ""
    thought: str = "<think>\n{}\n</think>\n\n{}"
    calls: Writes = _lines
    calling: str = "{}"
    last_call: str = ""
    middle: str = ""
    turns: bool = False

    def of(self, shape: str) -> list[list[str]]:
        """Return the texts that are trained of a shape, in each of its views."""
        said, last = self.answer + (self.middle or self.end), (self.last or self.answer) + self.end
        both = [("They greet.", "Hello!"), ("Simple sum.", "Four.")]
        if shape == "several turns":
            return [[said.format("Hello!"), last.format("Four.")]]
        if shape == "system":
            return [[last.format("Hello!")]]
        if shape == "thoughts":
            texts = [self.thought.format(*pair) + self.end for pair in both]
            return [[text] for text in texts] if self.turns else [texts]
        cities = ("Oslo", "Rome") if shape == "parallel calls" else ("Oslo",)
        if shape == "ends with a call":
            return [[(self.last_call or self.calling).format(self.calls(*cities))]]
        called = self.calling.format(self.calls(*cities))
        result = "Snow and sun." if shape == "parallel calls" else "It snows."
        return [[called, last.format(result)]]


def _plain(end: str, calls: Writes = _lines, **more: str) -> Spoken:
    return Spoken(end, calls=calls, calling="{}" + end, **more)


SPOKEN = {
    "ChatML": _plain("<|im_end|>"),
    "Qwen 2.5": _plain("<|im_end|>", _tags),
    "Qwen 3": Spoken(
        "<|im_end|>", last="<think>\n\n</think>\n\n{}", calls=_tags, calling="{}<|im_end|>",
        last_call="<think>\n\n</think>\n\n{}<|im_end|>", turns=True,
    ),
    # The generation prompt opens the thought.
    "Qwen 3.5": Spoken(
        "<|im_end|>", last="\n</think>\n\n{}", thought="{}\n</think>\n\n{}", calls=_xml,
        calling="\n</think>\n\n{}<|im_end|>", turns=True,
    ),
    "Llama 3.x": _plain("<|eot_id|>", _llama),
    "Gemma 2": _plain("<end_of_turn>"),
    "Gemma 3": _plain("<end_of_turn>"),
    "Mistral v0.2": Spoken(
        "</s>", " {}", thought=" <think>\n{}\n</think>\n\n{}", calling=" {}</s>"
    ),
    "Mistral v0.3": Spoken(
        "</s>", " {}", thought=" <think>\n{}\n</think>\n\n{}", calls=_mistral, calling="{}</s>"
    ),
    "Mistral v7": _plain("</s>"),
    "Magistral": _plain("</s>", thought="[THINK]{}[/THINK]{}"),
    "Phi-3 (first)": _plain("<|end|>"),
    "Phi-3": _plain("<|end|>"),
    "Phi-4": _plain("<|im_end|>"),
    "DeepSeek V3/R1": Spoken(
        "<｜end▁of▁sentence｜>", thought="{}\n</think>\n\n{}", calls=_deepseek, turns=True
    ),
    "GLM-4.5": Spoken(
        "<|user|>", "\n<think></think>\n{}", thought="\n<think>{}</think>\n{}", calls=_glm,
        calling="\n<think></think>{}<|observation|>", turns=True,
    ),
    "gpt-oss": Spoken(
        "<|return|>",
        "<|channel|>final<|message|>{}",
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
        "<|channel|>final<|message|>{}",
        calls=_harmony, middle="<|end|>", turns=True,
    ),
    "SmolLM3": _plain("<|im_end|>", _tags),
    "Granite": _plain("<|end_of_text|>", _granite),
    "Command-R": _plain("<|END_OF_TURN_TOKEN|>"),
}  # fmt: skip
