"""Changes one operator, number, call or statement of the source at a time, and shows the changes that no test sees.

`python tests/mutants.py [decoding/acceptance.py ...]` takes the files of `TESTS`. A mutant is a fork of one process
that has imported everything and run the tests once; it replaces the code of living functions, and runs the tests that
reach the change, cheapest first. Outcomes are appended to outputs/mutants.jsonl: a killed mutant runs once, one that
has survived runs again at the next start. Survivors that docs/mutants.md does not explain make the exit code 1. The
source must not change meanwhile: functions are found by their lines.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import coverage
import pytest
from _pytest.runner import runtestprotocol

from source_changes import SOURCE, Mutant, mutants

ROOT = Path(__file__).parents[1]
KNOWN, DONE = ROOT / "docs/mutants.md", ROOT / "outputs/mutants.jsonl"
RULES = ("decoding/test_sampling.py", "decoding/test_acceptance.py")
LOSSES = ("objectives/test_losses.py",)
ROLLOUTS = ("decoding/test_rollout.py", "decoding/test_sampled_rollout.py", "drafters/test_every_kind.py")
TESTS = {
    "decoding/acceptance.py": RULES,
    "decoding/sampling.py": RULES,
    "blocks.py": ("test_blocks.py", "test_block_geometry.py"),
    **{f"objectives/{name}.py": LOSSES for name in ("base", "draft_opd", "block", "divergences")},
    "objectives/rounds.py": ("objectives/test_rounds.py", *LOSSES),
    "objectives/rows.py": (*LOSSES, "objectives/test_rows.py"),
    "objectives/chunked.py": ("objectives/test_objectives.py", "objectives/test_rows.py", "drafters/test_dspark.py"),
    "decoding/rollout.py": ROLLOUTS,
    "decoding/batch.py": ROLLOUTS,
}
LONGEST = 1.0  # seconds of processor time: a test that takes longer runs for no mutant
OUTCOMES = ("survived", "killed")


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def key(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def functions_of(names: dict[str, Any]) -> list[FunctionType]:
    return [f for f in gc.get_objects() if isinstance(f, FunctionType) and f.__globals__ is names]


def apply(mutant: Mutant, module: ModuleType, living: list[FunctionType]) -> None:
    """Gives living functions the mutant's code; of what runs at import, gives them its defaults and constants."""
    made = compile(mutant.tree, str(module.__file__), "exec")
    if not mutant.at_import:
        new = {key(code): code for code in codes(made)}
        for function in living:
            function.__code__ = new.get(key(function.__code__), function.__code__)
        return
    fresh = ModuleType(module.__name__)
    exec(made, fresh.__dict__)
    defaults = {key(f.__code__): f for f in functions_of(fresh.__dict__)}
    for function in living:
        if other := defaults.get(key(function.__code__)):
            function.__defaults__, function.__kwdefaults__ = other.__defaults__, other.__kwdefaults__
    for name, value in vars(fresh).items():
        if isinstance(value, type) and value.__module__ == module.__name__:
            for attribute, simple in vars(value).items():
                if isinstance(simple, bool | int | float) and not attribute.startswith("_"):
                    setattr(getattr(module, name), attribute, simple)
        elif isinstance(value, int | float | tuple) and not name.startswith("_"):
            for user in [m for n, m in sys.modules.items() if n.startswith("draftopd") and hasattr(m, name)]:
                setattr(user, name, value)


class Mutating:
    """A pytest plugin that runs the collected tests once, and then once for each mutant that they reach."""

    def __init__(self, files: Sequence[str], done: set[str]) -> None:
        self.files, self.done = files, done
        self.cost: dict[str, float] = {}
        """seconds of processor time of each test"""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        reach = self.reached(session)
        gc.unfreeze()
        modules = {file: importlib.import_module("draftopd." + file[:-3].replace("/", ".")) for file in self.files}
        living = {file: functions_of(vars(module)) for file, module in modules.items()}
        gc.freeze()
        for file, module in modules.items():
            lines = reach.contexts_by_lineno(str(SOURCE / file))
            for mutant in mutants(file):
                if mutant.name not in self.done:
                    names = {test for line in mutant.lines for test in lines.get(line, ())} - {""}
                    if not names and mutant.at_import:
                        names = {test for tests in lines.values() for test in tests}
                    note(mutant, self.outcome(mutant, module, living[file], self.chosen(session, names)))
        return True

    def reached(self, session: pytest.Session) -> coverage.CoverageData:
        """Runs every test; the lines that each of them reaches."""
        measured = coverage.Coverage(data_file=None, include=[str(SOURCE / file) for file in self.files])
        measured.start()
        for item, following in zip(session.items, [*session.items[1:], session], strict=True):
            measured.switch_context(item.nodeid)
            start = time.process_time()
            if not passes(item, following):
                raise pytest.UsageError(f"{item.nodeid} fails without any mutant")
            self.cost[item.nodeid] = time.process_time() - start
        measured.stop()
        return measured.get_data()

    def chosen(self, session: pytest.Session, names: set[str]) -> list[pytest.Item]:
        short = [item for item in session.items if item.nodeid in names and self.cost[item.nodeid] < LONGEST]
        return sorted(short, key=lambda item: self.cost[item.nodeid])

    def outcome(self, mutant: Mutant, module: ModuleType, living: list[FunctionType], items: list[pytest.Item]) -> str:
        """Of a fork that becomes the mutant; a mutant that takes far longer than the original is killed, too."""
        if not items:
            return "unreached"
        limit = 5 + int(4 * sum(self.cost[item.nodeid] for item in items))
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
            return OUTCOMES[os.WEXITSTATUS(status)] if os.WIFEXITED(status) else "killed"
        code = OUTCOMES.index("killed")
        try:
            confine(limit)
            apply(mutant, module, living)
            following = [*items[1:], items[0].session]
            if all(passes(item, after) for item, after in zip(items, following, strict=True)):
                code = OUTCOMES.index("survived")
        finally:
            os._exit(code)


def confine(seconds: int) -> None:
    """This process ends after so many seconds of processor time, takes at most 2 GiB more, and prints nothing."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    memory = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.alarm(100 * seconds)  # where it waits for ever
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)


def note(mutant: Mutant, outcome: str) -> None:
    DONE.parent.mkdir(exist_ok=True)
    with DONE.open("a") as file:
        file.write(json.dumps({"mutant": mutant.name, "outcome": outcome}) + "\n")
    if outcome != "killed":
        print(f"{outcome}: {mutant.name}", flush=True)


def passes(item: pytest.Item, following: Any) -> bool:
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def main() -> None:
    files = sys.argv[1:] or list(TESTS)
    killed = {name for name, outcome in outcomes().items() if outcome == "killed"}
    tests = dict.fromkeys(f"{ROOT}/tests/{name}" for file in files for name in TESTS[file])
    words = ["-n", "0", "--tb=no", "-p", "no:cacheprovider", *tests]
    if pytest.main(words, plugins=[Mutating(files, killed)]) not in (0, 5):
        raise SystemExit("the tests fail without any mutant")
    sys.exit(report(files))


def report(files: Sequence[str]) -> bool:
    """Prints a table; whether a survivor is not explained."""
    explained, found = KNOWN.read_text() if KNOWN.exists() else "", outcomes()
    print(f"{'file':28}{'mutants':>8}{'killed':>8}{'explained':>11}{'open':>6}")
    some = False
    for file in files:
        of_file = {m.name: found[m.name] for m in mutants(file) if m.name in found}
        killed = sum(outcome == "killed" for outcome in of_file.values())
        known = sum(outcome != "killed" and name in explained for name, outcome in of_file.items())
        left = len(of_file) - killed - known
        some = some or left > 0
        print(f"{file:28}{len(of_file):8}{killed:8}{known:11}{left:6}")
    return some


def outcomes() -> dict[str, str]:
    """The last outcome of every mutant so far."""
    lines = DONE.read_text().splitlines() if DONE.exists() else []
    return {entry["mutant"]: entry["outcome"] for entry in map(json.loads, lines)}


if __name__ == "__main__":
    main()
