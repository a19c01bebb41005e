"""weights/text/template.py and sandbox.py: templates do what they do with transformers, and never too much."""

from __future__ import annotations

import random
import resource
import time

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template
from weights_helpers import LLAMA_TEMPLATE, PHI3_TEMPLATE, QWEN2_TEMPLATE, write_tokenizer

from model.errors import InputError
from weights import ChatFormat, Tokenizer
from weights.text.template import REPLY_MARK, USER_MARK, ChatTemplate

NS = "{% set ns = namespace(s='ab', l=[1], n=7) %}"
LOOP = "{% for i in range(20000) %}"
OUTSIZED = [
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 10**(10**7) }}",
    NS + LOOP + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    NS + LOOP + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    NS + LOOP + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    NS + LOOP + "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}{% endfor %}",
    NS + LOOP + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set s = 'a' * 100000 %}{{ " + " ~ ".join(["s"] * 999) + " }}",
    "".join(f"{{% set n{i} = namespace() %}}" for i in range(41))
    + "".join(f"{{% set n{i}.a = n{i + 1} %}}{{% set n{i}.b = n{i + 1} %}}" for i in range(40))
    + "{{ n0 }}",
    LOOP * 3 + "{% endfor %}" * 3,
    LOOP + "{% for j in range(20000) if false %}{% endfor %}{% endfor %}",
    "{% set s = 'a' * 100000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
    "{% for a in range(20000) recursive %}{{ loop(range(20000)) if loop.depth < 5 }}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}" + "x" * 9000 + "{% endmacro %}" + LOOP + "{{ m() }}{% endfor %}",
    LOOP + "x" * 9000 + "{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.1000000000f' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': '1000000000'}) }}",
    "{{ ('{0}' * 60000).format('a' * 100000) }}",
    "{{ 'a'.center(10**9) }}{{ 'a' | center(1000000000) }}",
    "{{ ('\t' * 100000).expandtabs(100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | join('b' * 100000) }}",
    "{{ range(20000) | map('string') | join('b' * 100000) }}",
    "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "{{ ('\n' * 100000) | indent(100000) }}",
    "{{ [1] | batch(1000000000, 1) | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ [[1]] | tojson(indent=1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ ([[1]] * 20000) | sum(start=[]) }}",
    "{{ lipsum(n=1000000) }}",
    "{% set s = 'a' * 200000 %}" + LOOP + "{% set t = s[1:] %}{% endfor %}",
    "{% set c = cycler('a' * 100000) %}" + LOOP + "{{ c.next() }}{% endfor %}",
    LOOP + "{% set x = range(20000) | list | sort %}{% endfor %}",
]


@pytest.mark.parametrize("template", OUTSIZED)
def test_no_template_takes_time_or_memory(tmp_path, template):
    folder = write_tokenizer(tmp_path, "qwen2", chat_template=template + QWEN2_TEMPLATE)
    start, kilobytes = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer = Tokenizer.from_folder(folder)  # it looks at the template, too
    with pytest.raises(InputError, match="^The chat template in .* refuses a conversation of user .*; use") as told:
        ChatFormat.from_folder(folder, tokenizer)
    assert "MemoryError" not in str(told.value)
    assert time.thread_time() - start < 2.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes < 200_000


def by_jinja(template, named, reply=False):
    """As transformers renders it."""
    messages = [{"role": "user", "content": USER_MARK}, {"role": "assistant", "content": REPLY_MARK}]
    given = {"tools": None, "documents": None, "add_generation_prompt": not reply, "enable_thinking": False}
    return _compile_jinja_template(template).render(messages=messages[: 1 + reply], **given, **named)


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(n=0, t='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.t = ns.t ~ loop.index ~ ', ' %}{% endfor %}{{ ns.n }}{{ ns.t }}{{ -ns.n }}",
        "{%- macro turn(m, last=false) -%}<|{{ m.role }}|>\n{{- m['content'] | trim }}{{ '!' if last else '.' }}"
        "{{ caller() if caller }}{%- endmacro -%}{% for m in messages if m.role != 'tool' %}{{ turn(m, loop.last) }}"
        "{% call turn(m) %}({{ loop.length }}){% endcall %}{% else %}none{% endfor %}",
        "{{ '%s and %-5d|' % ('x', 3) }}{{ '{:>6}|{a}'.format('é', a=bos_token) }}{{ '%d%%' | format(1700000000) }}",
        "{{ [1, 'a', {'b': none, '<': 1.5}] | tojson(indent=2) }}{{ messages | tojson }}{{ messages }}",
        "{{ range(300) | map('string') | select('ne', '7') | join(' ') | replace('1', 'one') }}{{ 7 // 2 ** 2 % 5 }}",
        "{% for a in [[1, [2]], [3]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}",
        "{% filter upper %}in {{ 'capitals' }}{% endfilter %}{% set t %}block\n{{ 1 }}{% endset %}{{ t | indent(2) }}",
        "{{ 'a b c'.split(' ') | reverse | list }}{{ ('ab' * 3)[1:4] }}{{ (1, 2) + (3,) }}{{ 'b' in 'abc' and not false }}",
        "{{ messages[::-1] | map(attribute='role') | unique | list }}{{ dict(a=1).items() | list }}{{ 3.0 * 2 }}",
        "{% for i in range(5000) %}{{ i }}{% if i > 3 %}{% break %}{% endif %}{% endfor %}{{ none }}{{ range(9) }}",
        "{{ nothing | default(1700000000) }}{{ 'a'.center(9) | length }}{{ messages | groupby('role') | length }}",
    ],
)
@pytest.mark.parametrize("reply", [False, True])
def test_what_bounds_a_template_changes_nothing_in_what_it_writes(template, reply):
    named = {"bos_token": "<s>"}
    assert ChatTemplate(template, "it").render(named, reply=reply) == by_jinja(template, named, reply)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_templates_get_a_sentence_or_are_rendered_as_by_transformers(tmp_path):
    """Templates of which something was cut out, doubled, or exchanged with another."""
    folder = write_tokenizer(tmp_path, "llama")
    tokenizer, sources = Tokenizer.from_folder(folder), (LLAMA_TEMPLATE, PHI3_TEMPLATE, QWEN2_TEMPLATE)
    refused = 0
    for seed in range(200):
        rng = random.Random(seed)
        text = rng.choice(sources)
        for _ in range(rng.choice([1, 1, 2])):
            at, other = rng.randrange(len(text)), rng.choice(sources)
            cut = rng.randrange(len(other))
            piece = rng.choice(["", "%}", "{{", "'", "[", "not ", "**9", "\0", other[cut : cut + 20]])
            text = text[:at] + piece + text[at + rng.choice([0, 1, 5, 30]) :]
        try:
            rendered = ChatTemplate(text, "it").render(tokenizer.named)
        except InputError as error:
            refused += 1
            assert str(error).startswith("it ") and len(str(error)) < 400 and "\n" not in str(error)
        else:
            assert rendered == by_jinja(text, tokenizer.named)
    assert 20 < refused < 180
