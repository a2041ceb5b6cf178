"""Small chat templates in the manner of today's model families, and conversations of eight shapes.

Each is written here from public facts: which roles and control tokens a family has, where it puts
tools, calls, results and thoughts, and what it leaves out or refuses.
"""

from dataclasses import dataclass
from typing import Any

from studio.data.model_tokenizer import Backend
from tests.studio.data.conftest import Make

CALLS_JSON = (
    "{% for c in m.tool_calls %}{% set f = c.function or c %}"
    "{% if (loop.first and m.content) or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' ~ f.name ~ \'", "arguments": \' }}'
    "{{ f.arguments if f.arguments is string else f.arguments | tojson }}"
    "{{ '}\n</tool_call>' }}{% endfor %}"
)
RESULTS_CHATML = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
TOOLS_CHATML = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content ~ '\n\n' }}{% endif %}"
    "{{ '# Tools\n<tools>' }}{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' ~ messages[0].content ~ '<|im_end|>\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    TOOLS_CHATML + "{% for m in messages %}{% if m.role == 'user' or "
    "(m.role == 'assistant' and not m.tool_calls) or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' ~ m.content }}{% endif %}"
    "{% for c in m.tool_calls %}{% set f = c.function or c %}"
    '{{ \'\n<tool_call>\n{"name": "\' ~ f.name ~ \'", "arguments": \' }}'
    "{{ f.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}" + RESULTS_CHATML + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A thought stays in the answers behind the last question, and is cut before it.
QWEN3 = (
    TOOLS_CHATML + "{% set ns = namespace(last=messages | length - 1, seek=true) %}"
    "{% for m in messages[::-1] %}{% set i = messages | length - 1 - loop.index0 %}"
    "{% if ns.seek and m.role == 'user' and not (m.content.startswith('<tool_response>') and "
    "m.content.endswith('</tool_response>')) %}{% set ns.seek = false %}{% set ns.last = i %}"
    "{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content if m.content is string else '' %}"
    "{% set thought = '' %}{% if m.reasoning_content is string %}"
    "{% set thought = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}" + CALLS_JSON + "{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}" + RESULTS_CHATML + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen 3, with calls in XML, and a generation prompt that opens the thought.
QWEN35 = (
    QWEN3.replace("ns.last and (loop.last or thought)", "ns.last")
    .replace(
        CALLS_JSON,
        "{% for c in m.tool_calls %}{% set f = c.function or c %}"
        "{% if not loop.first %}{{ '\n' }}{% elif content %}{{ '\n\n' }}{% endif %}"
        "{{ '<tool_call>\n<function=' ~ f.name ~ '>\n' }}{% for k, v in f.arguments | items %}"
        "{{ '<parameter=' ~ k ~ '>\n' }}"
        "{{ v | tojson if v is mapping or v is not string else v }}{{ '\n</parameter>\n' }}"
        "{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}",
    )
    .removesuffix("{{ '<|im_start|>assistant\n' }}{% endif %}")
    + "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% set ns = namespace(tools_due=tools) %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}"
    "{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Today Date: 26 Jul 2024\n\n' ~ system ~ '<|eot_id|>' }}{% for m in turns %}"
    "{% if m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{ m.content | tojson if m.content is iterable else m.content }}{{ '<|eot_id|>' }}"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"' ~ f.name ~ '\", ' }}"
    "{{ '\"parameters\": ' }}{{ f.arguments | tojson }}{{ '}<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' }}"
    "{% if ns.tools_due and m.role == 'user' %}{% set ns.tools_due = none %}"
    "{{ 'Given the following functions:\n\n' }}"
    "{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}{% endif %}"
    "{{ m.content | trim ~ '<|eot_id|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
    "{{ lead if loop.first else '' }}{{ m.content | trim ~ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set turns = messages %}{% set lead = '' %}" + GEMMA
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set lead = messages[0].content ~ '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}" + GEMMA
)
# The system prompt stands in the last message, if that is a question.
MISTRAL_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' ~ system ~ '\n\n' ~ m.content ~ '[/INST]' }}{% else %}"
    "{{ '[INST] ' ~ m.content ~ '[/INST]' }}{% endif %}{% elif m.role == 'assistant' %}"
    "{{ ' ' ~ m.content | trim ~ eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% set users = turns | selectattr('role', 'equalto', 'user') | list %}{% for m in turns %}"
    "{% if m.role == 'user' %}{% if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS] [' }}"
    "{% for t in tools %}{{ t | tojson }}{{ ', ' if not loop.last else '' }}{% endfor %}"
    "{{ '][/AVAILABLE_TOOLS]' }}{% endif %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' ~ system ~ '\n\n' ~ m.content ~ '[/INST]' }}{% else %}"
    "{{ '[INST] ' ~ m.content ~ '[/INST]' }}{% endif %}"
    "{% elif m.tool_calls is defined and m.tool_calls %}{{ '[TOOL_CALLS] [' }}"
    "{% for c in m.tool_calls %}{% if c.id is undefined or c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}"
    "{% set out = c.function | tojson %}{{ out[:-1] ~ ', \"id\": \"' ~ c.id ~ '\"}' }}"
    "{{ ', ' if not loop.last else ']' ~ eos_token }}{% endfor %}"
    "{% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ eos_token }}"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id is undefined or "
    "m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}"
    '{{ \'[TOOL_RESULTS] {"content": \' ~ m.content ~ \', "call_id": "\' ~ m.tool_call_id }}'
    "{{ '\"}[/TOOL_RESULTS]' }}{% endif %}{% endfor %}"
)
MISTRAL_7 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
    "{{ '[INST]' ~ m.content ~ '[/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ m.content ~ eos_token }}{% endif %}{% endfor %}"
)
MAGISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' ~ m.content ~ '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}"
    "{{ '[INST]' ~ m.content ~ '[/INST]' }}{% elif m.role == 'assistant' %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'thinking' %}{{ '[THINK]' ~ p.thinking ~ '[/THINK]' }}"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
PHI3_FIRST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|user|>\n' ~ m.content ~ '<|end|>\n<|assistant|>\n' }}{% elif m.role == 'assistant' %}"
    "{{ m.content ~ '<|end|>\n' }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ '<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# Calls are written where the content is null; every thought is cut; a single call has no end.
DEEPSEEK = (
    "{% set ns = namespace(system='', tool=false) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ bos_token ~ ns.system }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.tool = false %}{{ '<｜User｜>' ~ m.content }}{% endif %}"
    "{% if m.role == 'assistant' and m.content is none %}{% set ns.tool = false %}"
    "{% for c in m.tool_calls %}{% if loop.first %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}"
    "{% else %}{{ '\n' }}{% endif %}{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + "
    "c.function.name + '\n```json\n' + c.function.arguments + '\n```<｜tool▁call▁end｜>' }}"
    "{% if not loop.first %}{{ '<｜tool▁calls▁end｜>' + eos_token }}{% endif %}{% endfor %}"
    "{% elif m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1] %}"
    "{% if ns.tool %}{{ '<｜tool▁outputs▁end｜>' ~ content ~ eos_token }}{% set ns.tool = false %}"
    "{% else %}{{ '<｜Assistant｜>' ~ content ~ eos_token }}{% endif %}{% endif %}"
    "{% if m.role == 'tool' %}"
    "{{ '\n' if ns.tool else '<｜tool▁outputs▁begin｜>' }}{% set ns.tool = true %}"
    "{{ '<｜tool▁output▁begin｜>' ~ m.content ~ '<｜tool▁output▁end｜>' }}{% endif %}{% endfor %}"
    "{% if ns.tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}"
    "{% if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
# No token ends a turn: the next role does.
GLM = (
    "{{ '[gMASK]<sop>' }}{% if tools %}{{ '<|system|>\n# Tools\n' }}{% for t in tools %}"
    "{{ t | tojson }}{{ '\n' }}{% endfor %}{% endif %}{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|user|>\n' ~ m.content }}{% elif m.role == 'system' %}"
    "{{ '<|system|>\n' ~ m.content }}{% elif m.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "{% set content = m.content if m.content is string else '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1] %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{% if loop.index0 > ns.last and thought %}{{ '\n<think>' ~ thought.strip() ~ '</think>' }}"
    "{% else %}{{ '\n<think></think>' }}{% endif %}"
    "{% if content.strip() %}{{ '\n' ~ content.strip() }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{% set f = c.function or c %}{{ '\n<tool_call>' ~ f.name }}"
    "{% for k, v in f.arguments.items() %}{{ '\n<arg_key>' ~ k ~ '</arg_key>\n<arg_value>' }}"
    "{{ v if v is string else v | tojson }}{{ '</arg_value>' }}{% endfor %}"
    "{{ '\n</tool_call>' }}{% endfor %}{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|observation|>' }}"
    "{% endif %}{{ '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Channels; one call a message; the thought of an answer is cut once another turn follows.
GPT_OSS = (
    "{{ '<|start|>system<|message|>Reasoning: medium<|end|>' }}"
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = messages[0].content %}{% else %}{% set turns = messages %}"
    "{% set system = '' %}{% endif %}{% if system or tools %}{{ '<|start|>developer<|message|>' }}"
    "{% if system %}{{ '# Instructions\n\n' ~ system ~ '\n\n' }}{% endif %}"
    "{% for t in tools or [] %}{{ 'type ' ~ t.function.name ~ ' = (_: ' }}"
    "{{ t.function.parameters | tojson }}{{ ') => any;\n' }}{% endfor %}{{ '<|end|>' }}{% endif %}"
    "{% set ns = namespace(tool='') %}{% for m in turns %}{% if m.role == 'assistant' %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}{% set ns.tool = f.name %}"
    "{% set thought = m.content or m.thinking %}{% if thought %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ thought ~ '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant to=functions.' ~ f.name ~ '<|channel|>commentary json<|message|>' }}"
    "{{ f.arguments | tojson }}{{ '<|call|>' }}{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' ~ m.thinking }}"
    "{{ '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|return|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.' ~ ns.tool }}"
    "{{ ' to=assistant<|channel|>commentary<|message|>' }}{{ m.content | tojson }}{{ '<|end|>' }}"
    "{% else %}{{ '<|start|>user<|message|>' ~ m.content ~ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
SMOLLM3 = (
    TOOLS_CHATML + "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' ~ m.content ~ '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ m.content }}" + CALLS_JSON +
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% elif m.role == 'tool' %}"
    + RESULTS_CHATML + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip
GRANITE = (
    "{% if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' }}{{ tools | tojson }}"
    "{{ '<|end_of_text|>\n' }}{% endif %}{% for m in messages %}"
    "{% set role = 'tool_response' if m.role == 'tool' else m.role %}"
    "{{ '<|start_of_role|>' ~ role ~ '<|end_of_role|>' ~ (m.content or '') }}"
    "{% if m.tool_calls %}{{ '<|tool_call|>' }}"
    "{{ m.tool_calls | map(attribute='function') | list | tojson }}{% endif %}"
    "{{ '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|START_OF_TURN_TOKEN|>' ~ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', "
    "'assistant': '<|CHATBOT_TOKEN|>'}[m.role] ~ m.content | trim ~ '<|END_OF_TURN_TOKEN|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
INST = ("<s>", "</s>", "[INST]", "[/INST]")


@dataclass(frozen=True)
class Family:
    """A template and the control tokens of its tokenizer."""

    source: str
    specials: tuple[str, ...]
    eos: str
    bos: str = ""

    def backend(self, make: Make) -> Backend:
        """Make the tokenizer, of bytes."""
        return make([*self.specials], self.source, eos=self.eos, bos=self.bos)


FAMILIES = {
    "ChatML": Family(CHATML, IM, "<|im_end|>"),
    "Qwen 2.5": Family(QWEN25, IM, "<|im_end|>"),
    "Qwen 3": Family(QWEN3, IM, "<|im_end|>"),
    "Qwen 3.5": Family(QWEN35, IM, "<|im_end|>"),
    "Llama 3.x": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "Gemma 2": Family(
        GEMMA2, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>"
    ),
    "Gemma 3": Family(
        GEMMA3, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>"
    ),
    "Mistral v0.2": Family(MISTRAL_2, INST, "</s>", "<s>"),
    "Mistral v0.3": Family(
        MISTRAL_3,
        (*INST, "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
         "[/TOOL_RESULTS]"),
        "</s>",
        "<s>",
    ),
    "Mistral v7": Family(
        MISTRAL_7, (*INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "</s>", "<s>"
    ),
    "Magistral": Family(
        MAGISTRAL,
        (*INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
        "</s>",
        "<s>",
    ),
    "Phi-3 (first)": Family(
        PHI3_FIRST, ("<s>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>", "<s>",
    ),
    "Phi-3": Family(
        PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "Phi-4": Family(PHI4, (*IM, "<|im_sep|>"), "<|im_end|>"),
    "DeepSeek V3/R1": Family(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
         "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
         "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁output▁begin｜>",
         "<｜tool▁output▁end｜>", "<｜tool▁outputs▁end｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
    ),
    "GLM-4.5": Family(
        GLM,
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
         "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "gpt-oss": Family(
        GPT_OSS,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        "<|return|>",
    ),
    "SmolLM3": Family(SMOLLM3, IM, "<|im_end|>"),
    "Granite": Family(
        GRANITE,
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        "<|end_of_text|>",
    ),
    "Command-R": Family(
        COMMAND_R,
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>",
         "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
    ),
}  # fmt: skip


def user(text: str) -> dict[str, Any]:
    """Return a question."""
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    """Return an answer."""
    return {"role": "assistant", "content": text, **more}


def calls(*cities: str) -> dict[str, Any]:
    """Return an answer that calls the weather tool once per city."""
    made = [
        {"id": f"weather{n:02}", "type": "function",
         "function": {"name": "weather", "arguments": {"city": city, "days": 2}}}
        for n, city in enumerate(cities)
    ]  # fmt: skip
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(text: str, number: int = 0) -> dict[str, Any]:
    """Return the result of a call."""
    return {"role": "tool", "content": text, "tool_call_id": f"weather{number:02}"}


SYSTEM = {"role": "system", "content": "Speak plainly."}
TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "Forecast.", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."},
                           "days": {"type": "integer", "description": "How long."}},
            "required": ["city"],
        },
    }}
]  # fmt: skip

SHAPES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "several turns": (
        [user("Good morning"), answer("Hello!"), user("Two plus two?"), answer("Four.")], None
    ),
    "system": ([SYSTEM, user("Good morning"), answer("Hello!")], None),
    "thoughts": (
        [user("Good morning"), answer("Hello!", reasoning_content="They greet."),
         user("Two plus two?"), answer("Four.", reasoning_content="Simple sum.")], None,
    ),
    "call and result": (
        [user("Oslo?"), calls("Oslo"), result("snow"), answer("It snows.")], TOOLS
    ),
    "parallel calls": (
        [user("Oslo, Rome?"), calls("Oslo", "Rome"), result("snow"), result("sun", 1),
         answer("Snow and sun.")], TOOLS,
    ),
    "ends with a call": ([SYSTEM, user("Oslo?"), calls("Oslo")], TOOLS),
    "ends with a question": ([SYSTEM, user("Good morning"), answer("Hello!"), user("Why?")], None),
    "ends with a result": ([user("Oslo?"), calls("Oslo"), result("snow")], TOOLS),
}  # fmt: skip
PROMPTS = ("ends with a question", "ends with a result")
