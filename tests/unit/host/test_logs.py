import json
import logging
import sys

import pytest

from components.host.logs import VALUE_CHARS_MAX, JsonFormatter, TextFormatter


def record(message: str, *args: object, error: BaseException | None = None, **fields: object):
    return logging.getLogger("switchyard.gateway").makeRecord(
        "switchyard.gateway",
        logging.INFO,
        __file__,
        1,
        message,
        args,
        (type(error), error, error.__traceback__) if error else None,
        extra=fields or None,
    )


def test_a_line_of_text_holds_time_level_logger_instance_message_and_fields():
    line = TextFormatter("gateway-0").format(record("listening on %d", 80, port=80, why="a b"))
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'INFO switchyard.gateway gateway-0 listening on 80 port=80 why="a b"'


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_what_others_wrote_cannot_start_a_line_of_its_own(formatter):
    line = formatter("g").format(record("got %s", "a\nERROR forged", name_given='b"\nc', empty=""))
    assert "\n" not in line


def test_json_holds_the_same_and_a_traceback():
    try:
        raise ValueError("oh")
    except ValueError as error:
        line = JsonFormatter("gateway-0").format(record("fault", error=error, port=80))
    values = json.loads(line)
    assert values["port"] == 80
    assert values["instance"] == "gateway-0"
    assert values["logger"] == "switchyard.gateway"
    assert "ValueError: oh" in values["traceback"]


def test_a_traceback_follows_a_line_of_text():
    try:
        raise ValueError("oh")
    except ValueError:
        line = TextFormatter("g").format(record("fault", error=sys.exception()))
    assert line.splitlines()[-1] == "ValueError: oh"


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_a_log_is_no_place_for_payloads(formatter):
    line = formatter("g").format(record("x" * 10_000, body="y" * 10_000))
    assert len(line) < 2 * VALUE_CHARS_MAX + 500
