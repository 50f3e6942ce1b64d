"""What documents name is there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_fault_of_the_table_has_its_test():
    page = (TESTS.parent / "docs" / "faults.md").read_text()
    named = re.findall(r"`([\w/.]*)::(\w+)`", page)
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| fault")]
    assert len(named) >= len(rows) > 30
    file = ""
    for place, test in named:
        file = place or file  # `::test` is in the file named before
        assert f"def {test}(" in (TESTS / file).read_text(), f"{file} has no {test}"
