"""Progress for people: a bar on a terminal, some lines elsewhere."""

from recursion import progress
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
