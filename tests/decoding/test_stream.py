"""A response that is handed out step by step is the one that a rollout writes."""

import pytest

from draftopd.decoding.ledger import Ledger
from draftopd.decoding.rollout import rollout
from draftopd.decoding.settings import Decoding
from draftopd.decoding.stream import stream
from draftopd.errors import DraftError
from pair import PROMPTS

SETTINGS = {
    "greedy": Decoding(max_new_tokens=12),
    "sampled": Decoding(max_new_tokens=12, temperature=0.7),
    "rejection": Decoding(max_new_tokens=12, temperature=0.7, rule="rejection"),
    "one token": Decoding(max_new_tokens=1),
}


@pytest.mark.parametrize("decoding", SETTINGS.values(), ids=list(SETTINGS))
def test_commits_are_those_of_the_rollout(target, eager_drafter, decoding):
    for key, prompt in enumerate(PROMPTS[:2]):
        for drafter in (eager_drafter, None):
            (result,) = rollout(target, drafter, [prompt], decoding, keys=[key])
            ledger = Ledger()
            commits = list(stream(target, drafter, prompt, decoding, ledger, key))
            tokens = [token for commit in commits for token in commit.tokens]
            assert tokens == result.trace.tokens[len(prompt) :].tolist()
            accepted = [commit.accepted for commit in commits[1:]]
            assert accepted == (result.trace.accepted.tolist() if drafter else [0] * len(accepted))
            assert ledger.seconds["prefill"] > 0


def test_whoever_stops_reading_leaves_the_drafter_as_it_was(target, eager_drafter):
    eager_drafter.train()
    reader = stream(target, eager_drafter, PROMPTS[0], SETTINGS["greedy"], Ledger())
    next(reader)
    assert not eager_drafter.training
    reader.close()
    assert eager_drafter.training
    eager_drafter.eval()


def test_what_a_rollout_refuses_is_refused(target, eager_drafter):
    for prompt, decoding in (([10_000], Decoding()), (PROMPTS[0], Decoding(memory_gib=1e-9))):
        with pytest.raises(DraftError):
            next(stream(target, eager_drafter, prompt, decoding, Ledger()))
