import torch

from draftopd.sampling import accept, choose, cut_at_stop


def test_accept_keeps_the_leading_matches_and_adds_the_targets_token():
    drafts = torch.tensor([[1, 2, 3], [1, 9, 3], [9, 2, 3]])
    choices = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    accepted, bonus = accept(drafts, choices)
    assert accepted.tolist() == [3, 1, 0]
    assert bonus.tolist() == [4, 2, 1]


def test_without_drafts_the_bonus_token_is_plain_decoding():
    accepted, bonus = accept(torch.zeros(2, 0, dtype=torch.long), torch.tensor([[4], [5]]))
    assert accepted.tolist() == [0, 0]
    assert bonus.tolist() == [4, 5]


def test_choose_is_the_most_probable_token():
    assert choose(torch.tensor([[0.1, 3.0, 2.0]])).tolist() == [1]


def test_cut_at_stop_ends_where_plain_decoding_would():
    tokens = torch.tensor([[1, 0, 3, 4], [1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 0, 4]])
    counts, done = cut_at_stop(tokens, torch.tensor([3, 3, 4, 2]), torch.tensor([0]), torch.tensor([9, 9, 2, 9]))
    assert counts.tolist() == [2, 3, 2, 2]
    assert done.tolist() == [True, False, True, False]
