"""The page of traces: the text is there as it was written, every token says what became of it, nothing is fetched."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from draftopd.decoding.rollout import rollout
from draftopd.evaluation.diagnosis import probabilities
from draftopd.evaluation.trace_page import Page, trace_page
from draftopd.trace import Trace
from pair import PROMPTS, Decoding

KINDS = ("given", "held", "cut", "own")


class Reader(HTMLParser):
    """Tokens of the prompt and the response, without the tables; all tags closed in order."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tokens: list[tuple[str, str, str]] = []
        self.inside = ""
        self.outside: list[str] = []
        self.feed(page.html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value]
        if tag in ("meta", "input", "wbr", "link"):
            return
        self.open.append(tag)
        words = (given.get("class") or "").split()
        if tag == "div":
            self.inside = words[-1] if words else ""
        if tag == "span" and words[:1] and words[0] in KINDS and self.inside in ("prompt", "response"):
            self.tokens.append((words[0], "", given["title"]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.inside = "" if tag == "div" else self.inside

    def handle_data(self, data):
        if self.inside in ("prompt", "response") and self.tokens and self.open[-1] in ("span", "i"):
            kind, text, title = self.tokens[-1]
            self.tokens[-1] = (kind, text + data, title)


def test_a_page_has_the_text_its_blocks_and_both_sides_probabilities(target, eager_drafter):
    trace = rollout(target, eager_drafter, PROMPTS[:1], Decoding(max_new_tokens=24))[0].trace
    sides = probabilities(target, eager_drafter, trace)
    page = trace_page([trace], target.tokenizer, [sides])
    read = Reader(page)
    written = "".join(text for kind, text, _ in read.tokens if kind != "cut")
    assert written == target.tokenizer.decode(trace.tokens.tolist())
    counts = {kind: [k for k, *_ in read.tokens].count(kind) for kind in KINDS}
    assert counts["given"] == trace.prompt_length
    assert counts["held"] == trace.accepted.sum()
    assert counts["cut"] == (trace.drafted - trace.accepted).sum()
    assert page.html.count('class="block"') == len(trace.anchors)
    assert read.outside == []
    assert not re.search(r"https?:|@import|url\(", page.html)
    assert "prefers-color-scheme: dark" in page.html
    rejected = next(title for kind, _, title in read.tokens if kind == "cut")
    assert re.search(r"rejected, position \d, target (< 0\.1|[\d.]+) %, drafter [\d.]+ %", rejected)
    assert page.html in unescape(page._repr_html_())


def test_probabilities_are_those_by_which_greedy_drafts_were_accepted(target, eager_drafter):
    for result in rollout(target, eager_drafter, PROMPTS, Decoding(max_new_tokens=24)):
        trace = result.trace
        sides = probabilities(target, eager_drafter, trace)
        cut = (trace.accepted < trace.drafted).nonzero()[:, 0]
        refused = sides.drafts[cut, trace.accepted[cut]]
        assert (sides.own[cut, 0] > refused[:, 0]).all()  # the target would have written its own token
        assert (sides.own[cut, 1] < refused[:, 1]).all()  # and the drafter its draft
        whole = trace.accepted == trace.drafts.shape[1]
        assert sides.own[whole].isnan().all()  # a bonus token had no draft
        slots = torch.arange(trace.drafts.shape[1])
        assert torch.equal(sides.drafts.isnan().any(-1), slots >= trace.drafted[:, None])


class Letters:
    """A tokenizer that leaves out a space at the start of a text, as some do."""

    def decode(self, ids: list[int], **_: bool) -> str:
        return "".join(map(chr, ids)).removeprefix(" ")


@pytest.mark.parametrize("word", ["a b", " ab", "a\nb\n", "<b>&"])
def test_spaces_and_line_ends_are_visible_and_stay_in_the_text(word: str):
    ids, none = torch.tensor(list(map(ord, "?" + word))), torch.zeros(0, dtype=torch.long)
    page = trace_page([Trace(ids, 1, none, none.view(0, 3), none)], Letters())
    assert "".join(text for _, text, _ in Reader(page).tokens) == "?" + word
    assert page.html.count('<i data-mark="·"> </i>') == word.count(" ")
    assert page.html.count('<i data-mark="↵">\n</i>') == word.count("\n")
    assert "probabilities" not in page.html
