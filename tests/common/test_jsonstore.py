"""The shared JSON files: nothing lost by writers side by side, by a kill in the middle, or by a broken file."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from common.jsonstore import CorruptStore, JsonStore, StoreError, write_atomic

# A writer that stops itself (SIGSTOP) at a named place; the test sees the stop with waitpid, and kills it there.
STOPPED_WRITER = """
import os, signal, sys
from common import jsonstore
def stop(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
where, path = sys.argv[1:]
if where == "before rename":
    jsonstore.os.rename = stop
with jsonstore.JsonStore(path).update() as document:
    document["new"] = "x" * 100_000
    if where == "inside":
        stop()
"""

LINKER = """
import sys, pathlib, links
number, count, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
store = links.Links(folder)
sys.stdin.readline()
for index in range(count):
    code = store.create_code(1000 * number + index + 1, "chat")
    store.redeem(code, f"user{number}-{index}", 4711)
"""

READER = """
import sys, jsonstore
store = jsonstore.JsonStore(sys.argv[1])
sys.stdin.readline()
seen = 0
while True:
    document = store.read()
    assert all(record["chat_id"] for record in document.values())
    assert len(document) >= seen, (len(document), seen)
    seen = len(document)
    if "last" in document:
        break
print(seen)
"""


def run_python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True,
                            env={**os.environ, "PYTHONPATH": os.path.dirname(JsonStore.__init__.__code__.co_filename)},
                            **options)


def stop_writer(where, path):
    writer = run_python(STOPPED_WRITER, where, path)
    _, status = os.waitpid(writer.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return writer


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_missing_file_is_an_empty_document(tmp_path):
    assert JsonStore(tmp_path / "a.json").read() == {}


def test_unknown_fields_survive_a_rewrite(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"alice": {"chat_id": 1, "colour": "blue"}, "_meta": [1, 2, {"three": null}]}')
    with JsonStore(path).update() as document:
        document["bob"] = {"chat_id": 2}
    assert json.loads(path.read_text()) == {
        "alice": {"chat_id": 1, "colour": "blue"}, "_meta": [1, 2, {"three": None}], "bob": {"chat_id": 2}}


def test_half_a_surrogate_pair_is_kept(tmp_path):
    """Telegram's JSON can hold one, and so can everybody else's."""
    store = JsonStore(tmp_path / "a.json")
    with store.update() as document:
        document["name"] = "é\ud800"
    assert store.read() == {"name": "é\ud800"}
    assert b"\\ud800" in (tmp_path / "a.json").read_bytes()


def test_a_file_for_a_group_has_its_mode_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with JsonStore(tmp_path / "a.json", 0o660).update() as document:
            document["x"] = 1
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", ".a.json.lock")} == {0o660}


def test_a_change_by_other_software_is_seen(tmp_path):
    path = tmp_path / "a.json"
    store = JsonStore(path)
    path.write_text('{"a": 1}')
    assert store.read() == {"a": 1}
    path.write_text('{"a": 2}')
    assert store.read() == {"a": 2}
    path.unlink()
    assert store.read() == {}


def test_an_exception_in_the_middle_changes_nothing(tmp_path):
    store = JsonStore(tmp_path / "a.json")
    with store.update() as document:
        document["a"] = 1
    with pytest.raises(ZeroDivisionError), store.update() as document:
        document["a"] = 1 / 0
    assert store.read() == {"a": 1}


@pytest.mark.parametrize("content", [
    b"", b'{"alice": {"chat_id": 1}, "bo', b"[1, 2]", b"null", b"\xff\xfe\x00", b"[" * 200_000])
def test_a_corrupt_file_is_never_empty_and_never_overwritten(tmp_path, content):
    path = tmp_path / "users.json"
    path.write_bytes(content)
    store = JsonStore(path)
    with pytest.raises(CorruptStore, match=r"users\.json is not valid JSON .* users\.json\.corrupt-"):
        store.read()
    with pytest.raises(CorruptStore), store.update() as document:
        document["new"] = {"chat_id": 3}
    assert path.read_bytes() == content
    copies = list(tmp_path.glob("users.json.corrupt-*"))
    assert [copy.read_bytes() for copy in copies] == [content]


def test_a_repaired_file_works_again(tmp_path):
    path = tmp_path / "users.json"
    path.write_text("{")
    store = JsonStore(path)
    with pytest.raises(CorruptStore):
        store.read()
    path.write_text('{"alice": 1}')
    assert store.read() == {"alice": 1}


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path):
    store = JsonStore(tmp_path / "gone" / "a.json")
    with pytest.raises(StoreError, match=str(tmp_path / "gone")), store.update() as document:
        document["a"] = 1


def test_thirty_processes_linking_at_once_lose_nothing(tmp_path):
    processes = [run_python(LINKER, number, 10, tmp_path, stdin=subprocess.PIPE) for number in range(30)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0] * 30
    users = json.loads((tmp_path / "telegram_users.json").read_text())
    assert {name: record["chat_id"] for name, record in users.items()} == {
        f"user{number}-{index}": 1000 * number + index + 1 for number in range(30) for index in range(10)}
    assert json.loads((tmp_path / "pending_codes.json").read_text()) == {}


def test_readers_never_see_a_half(tmp_path):
    path = tmp_path / "users.json"
    reader = run_python(READER, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    reader.stdin.write("go\n")
    reader.stdin.flush()
    store = JsonStore(path)
    for number in range(300):
        with store.update() as document:
            document[f"user{number}"] = {"chat_id": 1, "padding": "x" * 2000}
    with store.update() as document:
        document["last"] = {"chat_id": 1}
    assert reader.communicate(timeout=30)[0].strip() == "301"
    assert reader.returncode == 0


def test_a_second_writer_waits_for_the_first(tmp_path):
    path = tmp_path / "a.json"
    first = stop_writer("inside", path)
    second = run_python("import sys, jsonstore\n"
                        "with jsonstore.JsonStore(sys.argv[1]).update() as d: d['second'] = 1", path)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
        first.send_signal(signal.SIGCONT)
        assert (first.wait(10), second.wait(10)) == (0, 0)
    finally:
        kill(first)
        kill(second)
    assert JsonStore(path).read().keys() == {"new", "second"}


@pytest.mark.parametrize("where", ["inside", "before rename"])
def test_a_writer_killed_in_the_middle_leaves_the_old_document_and_no_lock(tmp_path, where):
    path = tmp_path / "a.json"
    with JsonStore(path).update() as document:
        document["old"] = 1
    kill(stop_writer(where, path))
    assert JsonStore(path).read() == {"old": 1}
    with JsonStore(path).update() as document:
        document["next"] = 2
    assert JsonStore(path).read() == {"old": 1, "next": 2}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".a.json.lock", "a.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    limited = subprocess.run(
        [sys.executable, "-c",
         "import resource, signal, sys, pathlib, jsonstore\n"
         "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
         "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
         "try: jsonstore.write_atomic(pathlib.Path(sys.argv[1]), b'x' * 5000, 0o600)\n"
         "except OSError as error: print(error.errno)", str(path)],
        env={**os.environ, "PYTHONPATH": os.path.dirname(JsonStore.__init__.__code__.co_filename)},
        capture_output=True, text=True, check=True)
    assert limited.stdout.strip() == "27"  # EFBIG
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a", b"old")]
    write_atomic(path, b"new", 0o640)
    assert path.read_bytes() == b"new"


def test_a_lock_is_waited_for_with_a_bound_and_its_holder_named(tmp_path, monkeypatch):
    monkeypatch.setattr("common.jsonstore.LOCK_SECONDS", 0.2)
    path = tmp_path / "a.json"
    writer = stop_writer("inside", path)
    try:
        with pytest.raises(StoreError, match=rf"is locked for over 0\.2 s by process {writer.pid} \(python"), \
                JsonStore(path).update():
            pass
    finally:
        kill(writer)
    with JsonStore(path).update() as document:
        document["after"] = 1


@pytest.mark.parametrize("place", ["a.json", ".a.json.lock"])
@pytest.mark.parametrize("thing", ["pipe", "folder", "socket", "link", "link to nothing", "huge"])
def test_what_somebody_put_there_is_neither_waited_for_nor_followed(tmp_path, thing, place):
    if (thing, place) == ("huge", ".a.json.lock"):
        return  # as good as any
    path, secret = tmp_path / place, tmp_path / "secret"
    secret.write_text("secret")
    put = {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "link": lambda: path.symlink_to(secret),
           "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"), "huge": lambda: truncate(path, 1 << 40),
           "socket": lambda: bind(path)}
    put[thing]()
    store = JsonStore(tmp_path / "a.json")
    if place == "a.json":
        with pytest.raises(StoreError, match=rf"{path} cannot be read: it "):
            store.read()
    with pytest.raises(StoreError, match="it is no regular file|it has 1099511627776 bytes"), store.update():
        pass
    assert secret.read_text() == "secret" and not (tmp_path / "nothing").exists()
    assert not list(tmp_path.glob("*corrupt*"))


def truncate(path, size):
    with open(path, "wb") as file:
        file.truncate(size)


def bind(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def test_another_s_file_under_a_second_name_is_not_copied(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.link(secret, tmp_path / "a.json")
    with pytest.raises(StoreError, match="is not valid JSON"):
        JsonStore(tmp_path / "a.json").read()
    assert not list(tmp_path.glob("*corrupt*"))


def test_thirty_thousand_links_load(tmp_path):
    users = {f"user{number:06d}": {"chat_id": 1_000_000_000 + number, "linked_at": "2026-01-31T12:00:00Z",
                                   "chat_name": "Jana Nováková (@jana_novakova)", "uid": number,
                                   "welcomed_at": "2026-01-31T12:00:01Z"} for number in range(30_000)}
    with JsonStore(tmp_path / "a.json").update() as document:
        document.update(users)
    assert JsonStore(tmp_path / "a.json").read() == users


def test_copies_of_what_could_not_be_read_are_bounded(tmp_path):
    """A group member may write any number of versions of the file."""
    path, said = tmp_path / "users.json", []
    for number in range(20):
        path.write_text("{" * (number + 1))
        with pytest.raises(CorruptStore) as raised:
            JsonStore(path).read()
        said.append(str(raised.value))
    assert len(list(tmp_path.glob("users.json.corrupt-*"))) == 5
    assert "A copy is kept as" in said[4] and "none of this one" in said[5]
