"""Prompts become token ids: what is left out, refused or written otherwise is said, with its place."""

from datetime import date
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from draftopd.data import templates
from draftopd.data.prompts import Prompt, ask
from draftopd.data.sources import encode, encode_all
from draftopd.errors import DraftError
from draftopd.target.load import tiny_tokenizer

SETTING = "data.batching.max_prompt_length"


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template or made.chat_template
    return made


def prompt(text: str, line: int = 1) -> Prompt:
    return Prompt(f"mine/{line}", "mine", ask(text), where=f"mine.jsonl:{line}")


def written(template: str) -> str:
    made = tokenizer(template)
    return str(made.decode(encode(prompt("hi"), made)))


EACH = "{% for m in messages %}"


@pytest.mark.parametrize(
    "template",
    [
        EACH + "{{ m.content + 1 }}{% endfor %}",  # TypeError
        "{{ messages[7].content.x }}",  # UndefinedError
        "{{ raise_exception('system turns are not known') }}",  # TemplateError
        "{% for m in %}",  # TemplateSyntaxError
        "{{ 1 // 0 }}",  # ZeroDivisionError
        "{{ messages.append(1) }}",  # SecurityError
    ],
)
def test_whatever_a_template_raises_is_one_line_with_file_and_line(template: str):
    with pytest.raises(DraftError, match=r"^mine\.jsonl:4: .* chat template or tokenizer refuses it \(\w+: .+\)$"):
        encode(prompt("hi", 4), tokenizer(template))


@pytest.mark.parametrize("template", [None, EACH + "{{ m.content }}{% endfor %}"])
def test_what_the_tokenizer_refuses_is_one_line_too(template: str | None):
    made = tokenizer(template)
    made.chat_template = template
    with pytest.raises(DraftError, match=r"^prompt x/1: the target's chat template or tokenizer refuses it"):
        encode(Prompt("x/1", "x", ask("half \ud83d")), made)


PARTS = "{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", ["{# nothing #}", EACH + PARTS])
def test_a_template_that_makes_nothing_of_a_prompt_is_refused(template: str):
    with pytest.raises(DraftError, match=r"mine\.jsonl:1: .* make no token of it"):
        encode(prompt("hi"), tokenizer(template))


def test_a_template_that_leaves_out_what_users_say_is_refused():
    parts = EACH + "<user>" + PARTS + "<bot>"
    system = "<user>{{ messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join }}<bot>"
    for template in (parts, system):
        with pytest.raises(DraftError, match=r"leaves out what users say .*: take a tokenizer whose template reads"):
            encode_all([prompt("hi")], tokenizer(template), None, None, SETTING)
    assert encode_all([prompt("hi")], tokenizer(), None, None, SETTING)


def test_prompts_that_are_too_long_are_counted_in_one_line(caplog):
    prompts = [prompt("long " * 30 if i % 5 else f"short {i}", i) for i in range(40)]
    out = encode_all(prompts, tokenizer(), None, 50, SETTING)
    assert [p.id for p, _ in out] == [f"mine/{i}" for i in range(0, 40, 5)]
    assert caplog.messages == ["32 of 40 prompts left out: longer than data.batching.max_prompt_length=50 tokens"]
    caplog.clear()
    encode_all(prompts, tokenizer(), None, None, SETTING)
    assert caplog.messages == []


def test_special_tokens_in_a_prompt_are_counted_and_the_first_is_named(caplog):
    later = Prompt("mine/9", "mine", ask("fine"), followups=("and <bot>?",))
    said = ({"role": "system", "content": "be <user>"}, *ask("fine"))
    first = [prompt("fine"), prompt("<b> is no token", 2), prompt("say <end>", 3)]
    encode_all([*first, later, Prompt("mine/8", "mine", said)], tokenizer(), None, None, SETTING)
    (line,) = caplog.messages
    assert line.startswith("3 of 5 prompts hold special tokens in their text, which the target reads as control tokens")
    assert line.endswith("the first is <end> in mine.jsonl:3")


DATED = "{{ strftime_now('%s') }}"


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %e", "%-d/%-m/%y %H:%M:%S", "day %j", "%F"])
def test_a_template_that_writes_todays_date_gets_the_same_on_every_day(form: str):
    assert written(DATED % form + "{{ messages[0].content }}") == templates.DATE.strftime(form) + "hi"


def test_templates_ask_for_the_date_in_many_ways_and_the_rest_of_them_stays():
    call, day = "strftime_now('%d %b %Y')", "01 Jan 2026"
    given = "{% if strftime_now is defined %}{% set d = strftime_now(f) %}{% else %}{% set d = 'never' %}{% endif %}"
    assert written("{%- set f = '%d %b %Y' -%}" + given + "{{ d }}{{ messages[0].content }}") == f"{day}hi"
    inside = EACH + "{% if loop.first %}{{ " + call + " }}{% endif %}{{ m.content }}{% endfor %}"
    for template in (inside, f"  {inside}  ", f"\n{inside}\n", f"a {inside}", f"{{%- set x = 1 %}}\n {inside}"):
        texts = [
            tiny_tokenizer().apply_chat_template(list(ask("hi")), chat_template=given, tokenize=False)
            for given in (templates.dated(template), template.replace(call, repr(day)))
        ]
        assert texts[0] == texts[1]
    assert written(inside.replace("'%d %b %Y'", "format='%Y'")) == "2026hi"
    assert templates.dated(EACH) == EACH


def test_the_same_prompt_has_the_same_ids_on_another_day(monkeypatch):
    class Tomorrow(date):
        @classmethod
        def now(cls) -> Any:
            return cls(2031, 5, 6)

    made = tokenizer(DATED % "%d %b %Y" + "{{ messages[0].content }}")
    today = made.apply_chat_template(ask("hi"), return_dict=False)
    before = encode(prompt("hi"), made)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert made.apply_chat_template(ask("hi"), return_dict=False) != today  # by itself it does change
    assert encode(prompt("hi"), made) == before


def test_the_fixed_date_is_said_once(caplog):
    template = DATED % "%Y" + "{{ messages[0].content }} {# of this test #}"
    for _ in range(2):
        encode_all([prompt("hi"), prompt("ho", 2)], tokenizer(template), None, None, SETTING)
    assert caplog.messages == [
        "the target's chat template writes today's date: prompts get 2026-01-01, whatever the day"
    ]
