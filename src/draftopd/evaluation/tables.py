"""What an evaluation says in the terminal: tables that fit 80 columns, however long the names of the sets are."""

import math
from collections.abc import Iterator, Sequence

from rich.table import Table

from draftopd.evaluation.results import Result, Results
from draftopd.evaluation.scores import Scores, Sets, compare

MOST = 3  # drafters whose acceptance by position is printed with intervals
SETS_SHOWN = 3  # of more, acceptance by position is printed only for their mean


def tables(results: Results) -> Iterator[Table | str]:
    """All tables, and the sentences between them, in the order of reading."""
    scored = {result.name: result.scores for result in results.results}
    yield _acceptance(results, scored)
    shown = set_names(_sets(scored))
    for name in shown if len(shown) <= SETS_SHOWN + 1 else ["mean"]:
        yield positions(scored, name)
    if len(shown) > SETS_SHOWN + 1:
        yield "Acceptance by position of each set: acceptance_by_position.png and results.json."
    if any("speedup" in values for values in _sets(scored).values()):
        yield _speed(scored)
    for result in results.results:
        if result.costs is not None:
            yield _block_sizes(result)
            yield _best(result)
        if result.cuts:
            yield _cuts(result)
    for first, second in results.pairs:
        yield _paired(first, second)
    if any(values["acceptance_length"].count == 1 for values in _sets(scored).values()):
        yield "A set of one prompt has no interval, and neither has the mean over sets then."


def _acceptance(results: Results, scored: dict[str, Sets]) -> Table:
    decoding = results.decoding
    title = (
        f"{decoding.words}, at most {decoding.max_new_tokens} new tokens; τ = acceptance length, bonus included [95 %]"
    )
    table = _table(title, "set", right=("n", "τ", "pooled"))
    for name, values in _lines(scored):
        lengths = [_cell(values, key) for key in ("acceptance_length", "acceptance_length_pooled")]
        table.add_row(name, str(values["acceptance_length"].count) if values else "", *lengths)
    return table


def _speed(scored: dict[str, Sets]) -> Table:
    """Sets of which no prompt was timed are left out."""
    timed = {d: {name: v for name, v in sets.items() if "speedup" in v} for d, sets in scored.items()}
    count = sum(values["speedup"].count for name, values in _sets(timed).items() if name != "mean")
    title = f"{count} prompts, one at a time, beside plain decoding [95 %]"
    table = _table(title, "set", right=("speedup", "without prefill", "tok/s", "plain"))
    for name, values in _lines(timed):
        keys = ("tokens_per_second", "tokens_per_second_plain") if values else ()
        rates = [f"{values[key].value:.1f}" for key in keys] or ["", ""]
        table.add_row(name, _cell(values, "speedup"), _cell(values, "decode_speedup"), *rates)
    return table


def positions(scored: dict[str, Sets], name: str) -> Table:
    """Of one set: marginal and conditional acceptance and the histogram; of several drafters only the marginal."""
    held, many = "" if len(scored) == 1 else ", the first k held", len(scored) > MOST
    title = f"{'mean of sets' if name == 'mean' else name}: acceptance by position{held}{'' if many else ' [95 %]'}"
    table = _table(title, right=("k",))
    kinds = {"accept_at": "the first k held", "accept_at_given": "k held, if k - 1 did", "accepted": "k accepted"}
    single = len(scored) == 1
    shown = [(drafter, kind) for drafter in scored for kind in (kinds if single else ["accept_at"])]
    for drafter, kind in shown:
        table.add_column(kinds[kind] if single else drafter, justify="right", no_wrap=single, overflow="fold")
    most = max(sum(key.startswith("accept_at/") for key in sets[name]) for sets in scored.values())
    for k in range(0 if single else 1, most + 1):
        cells = [_cell(scored[drafter][name], f"{kind}/{k}") for drafter, kind in shown]
        cells = [cell.partition(" ")[0] for cell in cells] if many else cells
        table.add_row(str(k), *(cells if k else ["", "", cells[-1]]))
    return table


def _block_sizes(result: Result) -> Table:
    costs = result.costs
    assert costs is not None
    title = (
        f"{result.name}: speedup by block size W, prefill aside; model: τ · t(1) / (t(W) + t_draft(W)), "
        f"t(1) = {_ms(costs.verify[1])} ms, after {costs.length} tokens"
    )
    columns = ("W", "draft\nms", "verify\nms", "\npredicted", "\nτ", "\nmodel", "\nmeasured", "measured\n/ model")
    table = _table(title, right=columns)
    for row in result.block_sizes:
        size = row.block_size
        speeds = [f"{v:.2f}x" if v == v else "-" for v in (row.predicted, row.model, row.measured)]
        parts = [str(size), _ms(costs.draft[size]), _ms(costs.verify[size]), speeds[0], f"{row.acceptance_length:.2f}"]
        table.add_row(*parts, *speeds[1:], f"{row.measured / row.model:.3f}")
    return table


def _cuts(result: Result) -> Table:
    title = f"{result.name}: whole blocks, and blocks cut where a draft costs more than it brings"
    table = _table(title, "blocks", right=("batch", "τ, pooled", "verified tokens", "tok/s"))
    for row in result.cuts:
        numbers = (f"{row.acceptance_length:.2f}", f"{row.verified_tokens:.2f}", f"{row.tokens_per_second:.1f}")
        table.add_row("cut" if row.cut else "whole", str(row.batch_size), *numbers)
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _best(result: Result) -> str:
    rows = result.block_sizes
    measured, model = max(rows, key=lambda row: row.measured), max(rows, key=lambda row: row.model)
    known = [row for row in rows if not math.isnan(row.predicted)]
    ahead = max(known, key=lambda row: row.predicted)
    far = [row.measured / row.model - 1 for row in rows]
    return (
        f"{result.name}: best block size on this machine: {measured.block_size} measured "
        f"({measured.measured:.2f}x), {model.block_size} by the model ({model.model:.2f}x, with the τ measured at each "
        f"size), {ahead.block_size} predicted ({ahead.predicted:.2f}x, from the acceptance by position at "
        f"{rows[-1].block_size}); measured speeds lie {min(far):+.1%} to {max(far):+.1%} from the model"
    )


def _paired(first: Result, second: Result) -> Table:
    """τ as a difference, speed as a quotient."""
    a, b = first.name, second.name
    table = _table(f"{a} and {b}, paired over prompts [95 %]", "set", right=("n", "", "p"))
    difference = compare(first.scores, second.scores)
    for name in set_names(difference):
        values, rows = difference[name], []
        if "acceptance_length" in values:
            rows.append((f"τ, {a} - {b}", values["acceptance_length"].estimate(), "+.3f"))
        if "speedup" in values:
            rows.append((f"speed, {a} / {b}", values["speedup"].estimate(null=1.0), ".3f"))
        if rows:
            table.add_row(name)
        for what, estimate, form in rows:
            table.add_row(f"  {what}", str(estimate.count), estimate.text(form), estimate.p_text)
    return table


def _cell(scores: Scores, key: str) -> str:
    """Empty on a line that holds only a name; a dash where nothing was measured."""
    if not scores:
        return ""
    return str(scores[key].estimate()) if key in scores and math.isfinite(scores[key].value) else "-"


def _lines(scored: dict[str, Sets]) -> Iterator[tuple[str, Scores]]:
    """A line a set; of two drafters a line each, beneath the set's name on a line of its own."""
    for name in set_names(_sets(scored)):
        if len(scored) == 1:
            yield name, _sets(scored)[name]
            continue
        yield name, {}
        for drafter, sets in scored.items():
            yield f"  {drafter}", sets[name]


def _sets(scored: dict[str, Sets]) -> Sets:
    """Of the first drafter; all have the same sets."""
    return next(iter(scored.values()))


def set_names(sets: Sets) -> list[str]:
    """The sets, and their mean where there are several."""
    names = list(sets)
    return names if len(names) > 2 else names[:1]


def _table(title: str, *left: str, right: Sequence[str] = ()) -> Table:
    """Names fold where the numbers leave them too little room."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
