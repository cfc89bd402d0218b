import io

import pytest

from planet.progress import Display, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0 s"), (59.6, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_without_a_terminal_lines_are_plain_and_logged(tmp_path):
    stream = io.StringIO()

    with Display(tmp_path / "log.txt", title="run", total=3, stream=stream) as display:
        display.line("episode 1/3 [seed]")
        display.advance(1, "detail")

    assert stream.getvalue() == "run: episode 1/3 [seed]\n"
    assert (tmp_path / "log.txt").read_text().endswith("episode 1/3 [seed]\n")


def test_in_a_terminal_a_bar_is_drawn_and_the_log_stays_plain(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()

    with Display(tmp_path / "log.txt", title="run", total=3, stream=stream) as display:
        display.line("hello [there]")
        display.advance(2, "return 12")

    assert "2/3" in stream.getvalue() and "return 12" in stream.getvalue() and "hello [there]" in stream.getvalue()
    assert "\x1b" not in (tmp_path / "log.txt").read_text()
