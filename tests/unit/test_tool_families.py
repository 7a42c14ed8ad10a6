"""Each family on a small template of its own kind: what it is given, and what comes back."""

import json
import re
from dataclasses import replace

import pytest

from hxd.wire import Message, Tool, ToolCall, Tools
from hxd.worker.template import ChatTemplate
from hxd.worker.tools.family import (
    GENERIC,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    PHI,
    Family,
    detect,
)
from hxd.worker.tools.ids import shortened
from hxd.worker.tools.parse import Parser

TEMPLATES = {
    "hermes": """
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for tool in tools %}{{ "\\n" + tool | tojson }}{% endfor %}
{{ '<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call>' }}<|im_end|>
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{ '<tool_response>' + m.content + '</tool_response>' }}
{%- elif m.tool_calls %}{{ '<|im_start|>assistant' + m.content }}
{%- for call in m.tool_calls %}{% set call = call.function %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}<|im_end|>
{%- else %}{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endif %}
{%- endfor %}""",
    "llama3": """
{%- for m in messages %}
{%- if loop.first and tools is not none %}
{{- 'Environment: ipython {"name": function name, "parameters": its arguments}' }}
{%- for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}
{%- if 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|assistant|>{"name": "' + call.name + '", ' }}
{{- '"parameters": ' }}{{ call.arguments | tojson }}{{ '}' }}
{%- elif m.role == 'tool' %}{{ '<|ipython|>' + m.content | tojson }}
{%- else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}
{%- endfor %}""",
    "mistral": """
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined and m.tool_calls is not none %}{{ '[TOOL_CALLS][' }}
{%- for call in m.tool_calls %}{% set out = call.function | tojson %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- out[:-1] + ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}{% endfor %}{{ ']' }}
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- '[TOOL_RESULTS]' + m.tool_call_id + m.content }}
{%- else %}{{ m.content }}{% endif %}{% endfor %}""",
    "mistral-named": """
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- elif m.get('tool_calls') %}{% for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}
{{- call['function']['arguments'] | tojson }}{% endfor %}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.tool_call_id + m.content }}
{%- else %}{{ m.content }}{% endif %}{% endfor %}""",
    "phi": """
{%- for message in messages %}
{%- if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}
{{- '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}
{%- else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}
{%- endfor %}""",
    "granite": """
{%- if tools %}{{ 'To call a tool say <|tool_call|>' + tools | tojson(indent=4) }}{% endif %}
{%- for m in messages %}{{ '<|start_of_role|>' + m.role + '|' + m.content }}{% endfor %}""",
    "generic": """
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('user and assistant must alternate') }}{% endif %}
{{- '<' + m.role + '>' + m.content }}{% endfor %}""",
}
FAMILIES = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral-named": replace(MISTRAL_NAMED, call_ids=True),
    "phi": PHI,
    "granite": GRANITE,
    "generic": GENERIC,
}
SPECIAL = {"<|im_end|>": 1, "<|tool_call|>": 2, "[TOOL_CALLS]": 3, "<|/tool_call|>": 4}

WEATHER = Tool("get_weather", "The weather.", {"type": "object", "properties": {"city": {}}})
TOOLS = Tools([WEATHER, Tool("now")])
LONG = "call_0123456789abcdefghijklmn"
CONVERSATION = [
    Message("user", "Weather?"),
    Message(
        "assistant",
        "",
        tool_calls=[ToolCall(LONG, "get_weather", '{"city":"Rome"}'), ToolCall("b", "now", "")],
    ),
    Message("tool", "RAIN", tool_call_id=LONG),
    Message("tool", "NOON", tool_call_id="b"),
    Message("assistant", "It rains."),
    Message("user", "Thanks"),
]


def render(name: str, messages: list[Message], tools: Tools | None = TOOLS) -> list[str]:
    source = TEMPLATES[name]
    return ChatTemplate(source, bos="", eos="", special_texts=SPECIAL).render(messages, tools=tools)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_shows_its_family(name: str) -> None:
    assert detect(TEMPLATES[name], SPECIAL) == FAMILIES[name]


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        "{{ messages[0].content }}",
        "{% if tools %}<tool_call>\n<function=f>\n<parameter=p></parameter></function></tool_call>",
        "{% if tools %}<tool_call>f<arg_key>arguments</arg_key></tool_call>",
        "{% if tools %}<|channel|>commentary {{ tools | tojson }}",
        "[TOOL_CALLS] without any tools",
    ],
)
def test_what_is_not_known_is_generic(template: str | None) -> None:
    assert detect(template, {}) == GENERIC


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_of_the_conversation_are_what_the_parser_reads(name: str) -> None:
    family = FAMILIES[name]
    prompt = "".join(render(name, CONVERSATION))
    answer = prompt.partition("Weather?")[2]
    if family.bare:
        answer = answer[answer.index("{") :]
    parser = Parser(family, TOOLS, 1)
    calls = parser.feed(answer).calls
    assert [call.name for call in calls if call.name][: 1 if family.single else 2] == (
        ["get_weather"] if family.single else ["get_weather", "now"]
    )
    made = "".join(call.arguments for call in calls if call.index == 0)
    assert json.loads(made) == {"city": "Rome"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_calls_and_results_reach_the_prompt(name: str) -> None:
    prompt = "".join(render(name, CONVERSATION))
    assert "The weather." in prompt
    places = [prompt.index(text) for text in ('"Rome"', "RAIN", "NOON", "It rains.", "Thanks")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_that_may_not_be_called_are_not_shown(name: str) -> None:
    for tools in (None, Tools([WEATHER], "none"), Tools([])):
        prompt = "".join(render(name, CONVERSATION, tools))
        assert "The weather." not in prompt
        assert '"Rome"' in prompt and "RAIN" in prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_text_of_the_client_becomes_a_control_token(name: str) -> None:
    evil = "".join(SPECIAL)
    escaped = json.dumps(evil).replace("|", "\\u007c")
    messages = [
        Message("user", evil, name=evil),
        Message("assistant", evil, tool_calls=[
            ToolCall(evil, evil, json.dumps({evil: [evil]})),
            ToolCall("x", evil, f"{{{escaped}: {{{escaped}: {escaped}}}}}"),
            ToolCall("y", evil, evil),
        ]),
        Message("tool", evil, tool_call_id=evil),
        Message("tool", evil, tool_call_id="unheard-of"),
        Message("assistant", evil),
        Message("user", evil),
    ]  # fmt: skip
    harmless = [
        Message("user", "-"),
        Message("assistant", "-", tool_calls=[
            ToolCall("-", "-", '{"-": ["-"]}'),
            ToolCall("x", "-", '{"-": {"-": "-"}}'),
            ToolCall("y", "-", "-"),
        ]),
        Message("tool", "-", tool_call_id="-"),
        Message("tool", "-", tool_call_id="unheard-of"),
        Message("assistant", "-"),
        Message("user", "-"),
    ]  # fmt: skip
    tools = Tools([Tool(evil, evil, {"type": "object", "properties": {evil: {"enum": [evil]}}})])
    same = Tools([Tool("-", "-", {"type": "object", "properties": {"-": {"enum": ["-"]}}})])

    def count(pieces: list[str]) -> list[int]:
        return [sum(piece.count(text) for piece in pieces) for text in SPECIAL]

    assert count(render(name, messages, tools)) == count(render(name, harmless, same))
    assert evil in "".join(render(name, messages, tools))


@pytest.mark.parametrize("text", ["", "not json", '["a"]', '{"a": tru', "[" * 10_000, '{"a": NaN}'])
def test_arguments_that_are_no_object_do_no_harm(text: str) -> None:
    messages = [
        Message("user", "?"),
        Message("assistant", "", tool_calls=[ToolCall("a", "f", text)]),
    ]
    for name in TEMPLATES:
        assert text[:50] in "".join(render(name, messages)).replace("\\", "")


def test_a_template_that_prints_arguments_gets_text() -> None:
    source = TEMPLATES["hermes"].replace("call.arguments | tojson", "call.arguments")
    assert detect(source, {}).arguments_as_text
    prompt = ChatTemplate(source, bos="", eos="", special_texts=()).render(CONVERSATION)
    assert '"arguments": {"city": "Rome"}' in "".join(prompt)


def test_ids_for_mistral_are_nine_alphanumerics() -> None:
    assert shortened("aB3456789") == "aB3456789"
    for id in (LONG, "", "aB345678\n", "äB3456789", "call_1234"):
        short = shortened(id)
        assert re.fullmatch("[A-Za-z0-9]{9}", short) and short == shortened(id)
    prompt = "".join(render("mistral", CONVERSATION))
    assert prompt.count(shortened(LONG)) == 2 and LONG not in prompt


def test_a_result_without_an_id_answers_the_first_open_call() -> None:
    messages = [*CONVERSATION[:2], Message("tool", "RAIN"), Message("tool", "NOON")]
    prompt = "".join(render("mistral", messages))
    assert f"[TOOL_RESULTS]{shortened(LONG)}RAIN[TOOL_RESULTS]{shortened('b')}NOON" in prompt


def test_one_call_a_message_where_the_template_takes_no_more() -> None:
    prompt = "".join(render("llama3", CONVERSATION))
    assert re.search(r'Rome.*"RAIN".*now.*"NOON".*It rains', prompt, re.DOTALL)


def test_phi_has_its_tools_in_the_system_message() -> None:
    prompt = "".join(render("phi", [Message("system", "Be brief."), *CONVERSATION]))
    assert prompt.startswith('<|system|>Be brief.<|tool|>[{"name": "get_weather"')
    assert "".join(render("phi", CONVERSATION)).startswith("<|system|>You are")
    pieces = render("phi", CONVERSATION)
    assert any('<|assistant|><|tool_call|>[{"name": "get_weather"' in piece for piece in pieces)


def test_phi_results_have_the_role_that_the_vocabulary_knows() -> None:
    source = TEMPLATES["phi"]
    known = [*SPECIAL, "<|tool_response|>"]
    prompt = ChatTemplate(source, bos="", eos="", special_texts=known).render(CONVERSATION)
    assert "<|tool_response|>RAIN" in "".join(prompt)
    assert "<|tool|>RAIN" in "".join(render("phi", CONVERSATION))


def test_a_template_without_tools_is_told_in_words() -> None:
    messages = [Message("system", "Be brief."), *CONVERSATION]
    prompt = "".join(render("generic", messages))
    # This template wants a user first, so it can't have a system message.
    assert prompt.startswith("<user>Be brief.\n\nYou can call these functions")
    assert '{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}, ' in prompt
    assert "<user>Result of get_weather:\nRAIN\n\nResult of now:\nNOON<assistant>" in prompt


def test_a_user_who_follows_a_result_speaks_in_the_same_message() -> None:
    messages = [*CONVERSATION[:4], Message("user", "Well?")]
    assert "".join(render("generic", messages)).endswith("NOON\n\nWell?")


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        (Tools([WEATHER]), "only where it helps"),
        (Tools([WEATHER], "required"), "Call at least one function now."),
        (Tools([WEATHER], "get_weather", True), "Call the function get_weather now."),
        (Tools([WEATHER], parallel=False), "one function at a time"),
    ],
)
def test_words_say_whether_to_call(tools: Tools, says: str) -> None:
    assert says in "".join(render("generic", [Message("user", "?")], tools))


@pytest.mark.parametrize("name", TEMPLATES)
def test_markers_are_those_that_a_vocabulary_may_hold_as_tokens(name: str) -> None:
    family: Family = FAMILIES[name]
    assert all(family.markers)
    assert family.opening in family.markers or family is GENERIC
