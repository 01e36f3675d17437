"""Progress for people: a bar on a terminal, some lines elsewhere."""

from recursion import progress
from recursion.notation import parse
from recursion.reports import Report


class Stream:
    """A text stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return None


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    shown = {}
    for terminal in (True, False):
        stream = Stream(terminal)
        with progress.Steps(200, stream) as report:  # type: ignore[arg-type]
            for step in range(101, 201):
                report(Report(step, [0.5, 7.25], [0, 3]))
        shown[terminal] = stream.text
    assert "200/200" in shown[True]
    lines = shown[False].splitlines()
    assert [line.split()[1] for line in lines] == ["120", "140", "160", "180", "200"]
    assert lines[-1] == "step 200 of 200, 0 s left, losses 0.5 7.25, skipped 0 3"


def test_a_table_says_how_each_level_moved() -> None:
    stream = Stream(False)
    tower = parse("quadratic: lstm@20 / adam")
    with progress.Steps(2, stream) as report:  # type: ignore[arg-type]
        report.print_table(tower, {})  # nothing to say yet
        report(Report(1, [0.5, 7.25], [0, 0]))
        report(Report(2, [0.25, 6.0], [0, 0]))
    report.print_table(tower, {"level 2 lr": 0.002, "level 1 gradient norm": 3.0})
    text = " ".join(stream.text.split())
    assert "1: lstm@20 0.5 to 0.25 gradient norm 3" in text
    assert "2: adam@1 7.25 to 6 lr 0.002" in text
