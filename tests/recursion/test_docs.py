"""The documents are true: the Python of each page runs, block after block, and links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
PYTHON = re.compile(r"^```python\n(.+?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


SLOW = {"study.md": pytest.mark.slow}
RUN = [page for page in PAGES if PYTHON.search(page.read_text()) and page.name != "README.md"]  # that is run elsewhere


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name, marks=SLOW.get(page.name, ())) for page in RUN])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), {}
    for block in PYTHON.findall(text):
        exec(compile(block, page.name, "exec"), names)
        numbers = re.findall(r"# (-?\d+\.\d{4,}) \1$", block, re.MULTILINE)
        said = capsys.readouterr().out
        for number in numbers:
            assert said.count(number) >= 2, f"{page.name} says {number}, it printed {said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), link
