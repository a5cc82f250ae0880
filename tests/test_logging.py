"""Lines like `[loader] message`, on stderr unless a command makes them its output."""

from specdec.utils.logging import get_logger


def test_a_line_begins_with_the_last_part_of_the_name(capsys):
    get_logger("specdec.data.news").info("%d articles", 80)
    printed = capsys.readouterr()
    assert printed.err == "[news] 80 articles\n"
    assert printed.out == ""


def test_a_command_sends_its_lines_to_stdout(capsys):
    log = get_logger("specdec.models.heavy")  # as the module does when it is imported
    get_logger("heavy", to_stdout=True)  # as its command does when it starts
    log.info("OK")
    assert capsys.readouterr().out == "[heavy] OK\n"


def test_asking_twice_prints_once(capsys):
    get_logger("twice")
    get_logger("twice").info("once")
    assert capsys.readouterr().err == "[twice] once\n"


def test_debug_messages_stay_away(capsys):
    get_logger("quiet").debug("details")
    assert capsys.readouterr().err == ""
