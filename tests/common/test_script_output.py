"""The script contract, field by field."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.script_output import ContractError, Notification, cooldown_over, parse_cooldown, parse_output


def parse(**fields):
    return parse_output(json.dumps(fields).encode())


def test_everything_given_comes_back():
    assert parse(notify=True, title="T", message="m", image_path="/a.png", cooldown="2h", data={"a": 1}) == \
        Notification(True, "T", "m", "/a.png", 7200, {"a": 1})


def test_what_is_left_out_has_its_default():
    assert parse(notify=False) == Notification(False, "", "", "", 3600, {})
    assert parse(notify=True, message="m", title=None, image_path=None, cooldown=None, data=None, other=1) == \
        Notification(True, "", "m", "", 3600, {})


@pytest.mark.parametrize("fields, field", [
    ({}, "notify"), ({"notify": None}, "notify"), ({"notify": 1}, "notify"), ({"notify": "true"}, "notify"),
    ({"notify": True}, "message"), ({"notify": True, "message": " \n"}, "message"),
    ({"notify": True, "message": 5}, "message"), ({"notify": False, "message": []}, "message"),
    ({"notify": False, "title": 1}, "title"), ({"notify": False, "image_path": "a.png"}, "image_path"),
    ({"notify": False, "image_path": "/a\0b"}, "image_path"), ({"notify": False, "data": [1]}, "data"),
    ({"notify": False, "cooldown": 60}, "cooldown"), ({"notify": False, "cooldown": ""}, "cooldown"),
    ({"notify": False, "cooldown": "1h30m"}, "cooldown"), ({"notify": False, "cooldown": "-1h"}, "cooldown"),
    ({"notify": False, "cooldown": "٣h"}, "cooldown"), ({"notify": False, "cooldown": "1s"}, "cooldown"),
    ({"notify": False, "cooldown": "123456h"}, "cooldown"),
])
def test_a_breach_names_its_field(fields, field):
    with pytest.raises(ContractError) as breach:
        parse(**fields)
    assert breach.value.field == field
    assert str(breach.value).startswith(f"{field} is ")


@pytest.mark.parametrize("output, reason", [
    (b"", "empty"), (b" \n", "empty"), (b"[1]", "array"), (b"null", "null"), (b"3", "number"), (b'"x"', "string"),
    (b"loading\n{\"notify\": false}", "one JSON object"), (b'{"notify": false}{}', "one JSON object"),
    (b"\xff{}", "UTF-8"), (b"[" * 100_000, "deep"), (b"9" * 5000, "one JSON object"),
])
def test_output_that_is_no_object(output, reason):
    with pytest.raises(ContractError) as breach:
        parse_output(output)
    assert breach.value.field == "output"
    assert reason in breach.value.reason


def test_what_python_and_windows_write_besides_json():
    assert parse_output(b'\xef\xbb\xbf{"notify": true, "message": "m", "data": {"x": NaN}}').data == {"x": None}


def test_half_a_surrogate_pair_can_be_sent():
    assert parse_output(rb'{"notify": true, "message": "a\ud83d", "title": "\ud83d\ude00"}')[1:3] == \
        ("😀", "a\ufffd")


@pytest.mark.parametrize("text, seconds", [("0m", 0), ("30m", 1800), ("1h", 3600), ("2d", 172800)])
def test_cooldowns(text, seconds):
    assert parse_cooldown(text) == seconds


@pytest.mark.parametrize("last_sent, due", [
    (None, True), (0, True), (999_000, False), (996_401, False), (996_400, True), (1_000_000, False),
    (1_000_001, True),  # written before the clock was set back
])
def test_cooldown_is_over(last_sent, due):
    assert cooldown_over(last_sent, 3600, 1_000_000) is due


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["notify", "title", "message", "image_path", "cooldown", "data"]) | st.text(), inner))


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"notify": true, "message": "\\udc80"}')
def test_any_output_is_a_notification_or_a_breach(output):
    try:
        notification = parse_output(output)
    except ContractError as breach:
        assert breach.field in ("output", *Notification._fields)
    else:
        (notification.title + notification.message).encode()
        assert isinstance(notification.notify, bool) and notification.cooldown >= 0
