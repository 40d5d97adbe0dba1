"""Chat templates render as in transformers, and hostile ones end in a typed error."""

from __future__ import annotations

import re
import resource
import time
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from dejavu.chat import ChatTemplate
from dejavu.errors import InputError, ModelFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER = {"role": "user", "content": "Hi \U0001f600 <b>\n {{ x }} "}
ANSWER = {"role": "assistant", "content": "<think>hm</think> Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": "é"}}}],
}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, USER],
    [SYSTEM, USER, CALL, {"role": "tool", "content": "3"}],
]

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
FEATURES = """\
{{ bos_token }}
  {% set indented = 1 %}
    {%- macro show(value, depth=0) %}
  {%- if value is mapping %}{{ value | tojson(indent=2) | indent(depth) }}
  {%- elif value is string %}{{ value | trim | replace('<', '&') }}{% else %}{{ value }}{% endif %}
{%- endmacro %}
{%- set ns = namespace(last=-1, text='') %}
{%- for m in messages if m.role != 'system' %}
  {%- set ns.last = loop.index0 %}
  {%- if m.content is not none and '</think>' in m.content %}
    {%- set text = m.content.split('</think>')[-1].lstrip() %}
  {%- else %}{% set text = m.content or '' %}{% endif %}
  {%- set ns.text = ns.text ~ loop.index ~ '/' ~ loop.length ~ (':' if not loop.last else '!') %}
  {%- generation %}{{ '[%s] ' % m.role.upper() + show(text) }}{% endgeneration %}
  {%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{{ show(call.function, 4) }}{% endfor %}
  {%- if ns.last > 50 %}{% break %}{% endif %}
{%- endfor %}
{% filter upper %}{{ ns.text }}{% endfilter %}
{% set block %}{{ messages | map(attribute='role') | join(', ') }}{% endset %}{{ block * 2 }}
{{ messages[::-1] | selectattr('role', 'equalto', 'user') | list | length }} {{ '-'.join(['a', 'b']) }}
{{ '{}-{}'.format(1, 'x') }} {{ range(3) | list }} {{ 7 // 2 * 3 % 4 + 2 ** 3 }} {{ undefined_thing }}
{%- if tools is defined and documents is not undefined %}{{ tools }}{{ documents is none }}{% endif %}
{%- if add_generation_prompt %}[ASSISTANT]{% endif %}"""


@pytest.mark.parametrize("source", [CHATML, FEATURES], ids=["chatml", "features"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_in_transformers(source: str, messages: list[dict[str, Any]], prompt: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected = utils._compile_jinja_template(source).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=prompt, bos_token="<s>"
    )
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render(messages, add_generation_prompt=prompt) == expected


def test_chatml() -> None:
    text = ChatTemplate(CHATML).render([{"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_content_is_not_run_as_template() -> None:
    assert "{{ 7 * 7 }}" in ChatTemplate(CHATML).render([{"role": "user", "content": "{{ 7 * 7 }}"}])


def test_variables_and_tokens() -> None:
    template = ChatTemplate(
        "{{ bos_token }}|{{ eos_token }}|{{ tools[0].name }}|{{ missing }}", bos_token="<s>"
    )
    assert template.render([USER], tools=[{"name": "f"}]) == "<s>||f|"


def test_variables_that_the_template_does_not_have() -> None:
    source = """{% set own = 1 %}{% macro f(x) %}{{ x }}{% endmacro %}{% for m in messages %}{{ m.content }}{% endfor %}
    {%- if enable_thinking is defined and enable_thinking %}{{ bos_token }}{{ f(date) }}{% endif %}"""
    template = ChatTemplate(source, bos_token="<s>")
    message = [{"role": "user", "content": "Hi"}]
    assert template.render(message, enable_thinking=True, date=5, tools=[], documents=[]) == "Hi<s>5"
    for name in ("enable_thinkin", "temperature", "own", "x"):
        with pytest.raises(InputError, match=f"no variable {name}") as caught:
            template.render(message, **{name: False})
        assert caught.value.fix == "it takes: date, documents, enable_thinking, tools"


def test_strftime_now() -> None:
    text = ChatTemplate("{{ strftime_now('%d %b %Y') }}").render([USER])
    assert re.fullmatch(r"\d\d \w+ \d{4}", text)


def test_messages_that_the_template_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="roles must alternate"):
        template.render([USER])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        {"role": "user"},
        ["hi"],
        [{"content": "x"}],
        [{"role": 3}],
        [{"role": "user", "content": {1, 2}}],
        [{**USER, "more": {1, 2}}],
        None,
        5,
        b"hi",
        iter([]),
    ],
)
def test_malformed_messages(messages: Any) -> None:
    with pytest.raises(InputError):
        ChatTemplate(CHATML).render(messages)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("hi", r"messages\[1\] is 'hi'; it must be a dict"),
        ({"content": "x"}, r'"role" of messages\[1\] is None'),
        ({"role": "", "content": "x"}, r'"role" of messages\[1\]'),
        ({"role": "user"}, r'"content" of messages\[1\] is None; it must be a str'),
        ({"role": "user", "content": None}, r'"content" of messages\[1\] is None'),
        ({"role": "user", "content": 5}, r'"content" of messages\[1\] is 5'),
        ({"role": "user", "content": b"x"}, r'"content" of messages\[1\]'),
        ({"role": "user", "content": []}, r'"content" of messages\[1\]'),
        ({"role": "assistant", "content": None, "tool_calls": []}, r'"content" of messages\[1\]'),
        ({"role": "user", "content": ["x"]}, r'part 0 of the "content" of messages\[1\]'),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, r"part 0 .* must be text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, r"part 0 .* must be text"),
    ],
)
def test_a_malformed_message_is_named(message: Any, found: str) -> None:
    with pytest.raises(InputError, match=found):
        ChatTemplate(CHATML).render([USER, message])


@pytest.mark.parametrize("given", [iter, tuple, lambda messages: (MappingProxyType(m) for m in messages)])
def test_messages_of_other_kinds_than_lists_of_dicts(given: Callable[[list[Any]], Any]) -> None:
    template = ChatTemplate(CHATML)
    for messages in CONVERSATIONS[:3]:
        assert template.render(given(messages)) == template.render(messages)


def test_parts_of_text_become_the_lines_of_one() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    message = {"role": "user", "content": parts}
    rendered = ChatTemplate(CHATML).render([message])
    assert rendered == ChatTemplate(CHATML).render([{"role": "user", "content": "Hi\nthere"}])
    assert message["content"] is parts


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}", "{{ a", "{% endfor %}", "{{ 'x' | nofilter }}", "{% include 'x' %}",
        "{{ " + "(" * 5000 + "}}", "{% if a %}" * 3000 + "{% endif %}" * 3000, "x" * (1 << 19),
    ],
)  # fmt: skip
def test_sources_that_are_no_templates(source: str) -> None:
    with pytest.raises(ModelFormatError):
        ChatTemplate(source).render([USER])


LOOP = "{% set ns = namespace(x='xx', n=3, list=[1]) %}{% for i in range(99) %}BODY{% endfor %}"
NEST = "{% set ns = namespace(a='x', b='x') %}{% for i in range(40) %}MORE{% endfor %}{{ SHOW }}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class of message": "{{ messages.__class__.__base__ }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "filtered attribute": "{{ (messages | attr('__class__')).__mro__ }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "code": "{{ range.__call__.__code__ }}",
    "mutation": "{{ messages.append(1) }}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops with text": "{% for i in range(9999) %}{% for j in range(9999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "text": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "repeat": "{{ 'x' * 10**10 }}",
    "repeat list": "{{ [0] * 10**10 }}",
    "repeat reversed": "{{ 10**9 * 'xxx' }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "multiply": LOOP.replace("BODY", "{% set ns.n = ns.n * ns.n %}"),
    "double": LOOP.replace("BODY", "{% set ns.x = ns.x + ns.x %}"),
    "concat": LOOP.replace("BODY", "{% set ns.x = ns.x ~ ns.x %}"),
    "block": LOOP.replace("BODY", "{% set b %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = b %}"),
    "lists": LOOP.replace("BODY", "{% set ns.list = ns.list + ns.list %}"),
    "replace": "{% set x = 'a' * 99999 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "replace of nothing": "{% set x = 'a' * 99999 %}{{ x | replace('', x) }}",
    "join": "{% set x = 'a' * 99999 %}{{ range(99999) | join(x) }}",
    "join method": "{% set x = 'a' * 99999 %}{{ x.join(x) }}",
    "map": "{% set x = 'a' * 999999 %}{{ range(99999) | map('replace', '1', x) | list | length }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 10**9) }}",
    "format map": "{{ '{:999999999}'.format_map({}) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent many": "{% set x = 'a' * 999999 %}{{ ('%(a)s' * 99999) % {'a': x} }}",
    "center": "{{ 'x'.center(10**9) }}",
    "center filter": "{{ 'x' | center(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'x\ny' | indent(10**10) }}",
    "tojson indent": "{{ {'a': 1} | tojson(indent=10**9) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "wordwrap": "{{ 'xxxxxxxx' | wordwrap(1, wrapstring='y' * 10**9) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "strftime": "{{ strftime_now('%999999999Y') }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "bytes of text": "{{ 'x'.encode().zfill(10**9) }}",
    **{
        f"nested {name}": NEST.replace("MORE", f"{{% set ns.a = {more} %}}").replace("SHOW", show)
        for name, (more, show) in {
            "lists": ("[ns.a, ns.a]", "ns.a"),
            "tuples": ("(ns.a, ns.a)", "ns.a"),
            "dicts": ("{1: ns.a, 2: ns.a}", "ns.a"),
            "dict call": ("dict(a=ns.a, b=ns.a)", "ns.a"),
            "sums": ("[ns.a] + [ns.a]", "ns.a"),
            "products": ("[ns.a] * 2", "ns.a"),
            "tojson": ("[ns.a, ns.a]", "ns.a | tojson"),
            "join": ("[ns.a, ns.a]", "ns.a | join"),
            "upper": ("[ns.a, ns.a]", "ns.a | upper"),
            "concat": ("[ns.a, ns.a]", "'' ~ ns.a"),
            "format": ("[ns.a, ns.a]", "'%s' % [ns.a]"),
            "format method": ("[ns.a, ns.a]", "'{}'.format(ns.a)"),
            "values": ("{1: ns.a, 2: ns.a}.values()", "ns.a"),
            "comparison": ("[ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b]", "ns.a == ns.b"),
        }.items()
    },
    "nested arguments": "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% else %}{{ varargs }}{% endif %}"
    "{% endmacro %}{{ f(40) }}",
    "tojson separators": "{{ range(9999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "tojson of deep lists": "{% set ns = namespace(a=range(99999) | list) %}{% for i in range(300) %}"
    "{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson(indent=16) }}",
    "type error": "{{ 1 + 'x' }}",
    "division": "{{ 1 // 0 }}",
    "undefined": "{{ a.b.c }}",
}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """400 MB of address space beyond what is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_a_typed_error(source: str, little_memory: None) -> None:
    started = time.process_time()
    with pytest.raises(ModelFormatError, match="chat template") as error:
        ChatTemplate(source).render([USER])
    assert time.process_time() - started < 30
    assert "MemoryError" not in str(error.value)


def test_a_deadline_for_steps_that_read_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dejavu.sandbox._MAX_SECONDS", 0.2)
    source = "{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}"
    started = time.process_time()
    with pytest.raises(ModelFormatError, match=r"SecurityError: not done after 0\.2 seconds"):
        ChatTemplate(source).render([USER])
    assert time.process_time() - started < 5


def test_namespaces_do_not_show_what_they_hold() -> None:
    source = NEST.replace("MORE", "{% set ns.a = namespace(a=ns.a, b=ns.a) %}").replace("SHOW", "[ns.a]")
    assert ChatTemplate(source).render([USER]) == "[<Namespace>]"


def test_lists_of_templates_that_are_no_bombs() -> None:
    """Nested and shared, but short as text; built one by one; shown again and again."""
    source = """{% set ns = namespace(all=[], a='x') %}{% for m in messages %}{% set ns.all = ns.all + [m] %}{% endfor %}
    {%- for i in range(5) %}{% set ns.a = [ns.a, (ns.a, {i: ns.a})] %}{% endfor %}{% set a, b = (1, [2]) %}
    {%- for role, n in ns.all | groupby('role') %}{{ role }} {{ n | length }} {% endfor %}
    {{- ns.all | tojson(indent=2) | length }} {{ ns.a | tojson(separators=(',', ':')) | length }} {{ a }} {{ b }}"""
    messages = [{"role": "user", "content": "word " * 20}] * 400
    text = ChatTemplate(source).render(messages)
    assert re.fullmatch(r"user 400 \d{5} \d{4} 1 \[2\]", text)


def test_budget_is_fresh_for_each_rendering() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}ok")
    assert all(template.render([USER]) == "ok" for _ in range(15))


def test_long_conversations_fit_the_budget() -> None:
    messages = [{"role": "user", "content": "word " * 2000}] * 400
    assert len(ChatTemplate(CHATML).render(messages)) > 4_000_000
