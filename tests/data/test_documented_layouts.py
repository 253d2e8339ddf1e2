"""Each row of the table of layouts in docs/data.md names a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_each_layout_of_the_page_has_its_test() -> None:
    page = (HERE.parent.parent / "docs" / "data.md").read_text()
    table = page.partition("## Layouts\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    tests = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in HERE.glob("test_*.py")), re.M))
    assert len(rows) > 20
    for row in rows:
        *_, name = row.strip(" |").split("|")
        assert name.strip(" `") in tests, row
