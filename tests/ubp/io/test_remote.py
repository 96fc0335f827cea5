"""A data path in an object store: one state for all, whoever writes meanwhile or is killed."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubp.io.errors import UserError
from ubp.io.remote import MANIFEST, OBJECTS, Clash, Moved, Workspace, state_of
from ubp.io.s3 import Listed


class Memory:
    """An `ubp.io.s3.ObjectFolder` in memory."""

    address = "s3://bucket/shop"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}
        self.downloads = 0

    def put(self, key: str, content: bytes) -> None:
        self.objects[key], self.modified[key] = content, datetime.now(UTC)

    @staticmethod
    def etag(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def listed(self) -> dict[str, Listed]:
        return {key: Listed(self.etag(each), len(each), self.modified[key]) for key, each in self.objects.items()}

    def read(self, key: str) -> tuple[bytes, str] | None:
        content = self.objects.get(key)
        return None if content is None else (content, self.etag(content))

    def write(self, key: str, content: bytes, instead_of: str | None) -> bool:
        found = self.read(key)
        if (found and found[1]) != instead_of:
            return False
        self.put(key, content)
        return True

    def download(self, key: str, file: Path, etag: str | None) -> bool:
        self.downloads += 1
        if key not in self.objects or etag not in (None, self.etag(self.objects[key])):
            return False
        file.write_bytes(self.objects[key])
        return True

    def upload(self, file: Path, key: str) -> None:
        self.put(key, file.read_bytes())

    def remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def workspace(folder: Memory, home: Path, name: str = "command", wanted=lambda _: True) -> Workspace:
    return Workspace(folder, home, name, wanted)


def here(place: Workspace) -> dict[str, str]:
    """Contents by path; without what stays on the machine."""
    files = (file for file in place.root.rglob("*") if file.is_file())
    return {file.relative_to(place.root).as_posix(): file.read_text() for file in files}


def put(place: Workspace, path: str, text: str) -> None:
    (place.root / path).parent.mkdir(parents=True, exist_ok=True)
    (place.root / path).write_text(text)


@pytest.fixture
def folder() -> Memory:
    return Memory()


@pytest.fixture
def place(folder, tmp_path) -> Workspace:
    made = workspace(folder, tmp_path / "one")
    made.fetch()
    return made


@pytest.fixture
def other(folder, tmp_path) -> Workspace:
    """On another machine."""
    made = workspace(folder, tmp_path / "two")
    made.fetch()
    return made


class TestOneAfterTheOther:
    def test_what_one_machine_made_another_one_has(self, place, other):
        put(place, "raw/a.parquet", "1")
        put(place, "models/x/local/block.json", "2")
        assert place.publish() == Moved(2, 2)
        assert here(other) == {}
        assert other.fetch() == Moved(2, 2)
        assert here(other) == {"raw/a.parquet": "1", "models/x/local/block.json": "2"}
        (other.root / "raw/a.parquet").unlink()
        put(other, "models/x/local/block.json", "3")
        other.publish()
        place.fetch()
        assert here(place) == {"models/x/local/block.json": "3"}
        assert not (place.root / "raw").exists()

    def test_what_has_not_changed_is_not_moved_again(self, folder, place, tmp_path):
        put(place, "a", "1")
        put(place, "b", "1")
        assert place.publish() == Moved(1, 1)  # one content
        before = dict(folder.objects)
        assert place.publish() == Moved(0, 0)
        put(place, "a", "1")  # written anew, the same
        assert place.publish() == Moved(0, 0)
        assert folder.objects == before
        assert place.fetch() == Moved(0, 0)
        assert workspace(folder, tmp_path / "one", "another command").fetch() == Moved(0, 0)

    def test_what_stays_on_the_machine(self, folder, place):
        for path in (
            *("cache/sequences/x", "hydra/split/x.log", "raw/.done/a.json.lock", "raw/.done/a.json.lock-holder"),
            *("raw/.12-0abc.a.parquet", "raw/.12-0abc-old.models/x", "raw/.12-0abc.models/x", "raw/.new/complete.json"),
        ):
            put(place, path, "1")
        put(place, "raw/.done/a.json", "2")
        place.publish()
        assert [*state_of(folder).files] == ["raw/.done/a.json"]

    def test_cache_and_logs_are_those_of_all_commands_of_a_machine(self, folder, place, tmp_path):
        put(place, "cache/sequences/x", "1")
        place.remove()
        again = workspace(folder, tmp_path / "one", "another command")
        again.fetch()
        assert (again.root / "cache/sequences/x").read_text() == "1"
        assert again.kept["cache"].joinpath("sequences/x").is_file()

    def test_only_what_is_wanted_is_fetched_and_the_rest_stays_in_the_state(self, folder, place, tmp_path):
        put(place, "a", "1")
        put(place, "b", "2")
        place.publish()
        only = workspace(folder, tmp_path / "two", "x", lambda path: path != "b")
        assert only.fetch() == Moved(1, 1)
        put(only, "c", "3")
        only.publish()
        assert {*state_of(folder).files} == {"a", "b", "c"}

    def test_whoever_appends_to_a_file_changes_no_other_command_s(self, folder, place, tmp_path):
        put(place, "logs/metrics.csv", "1\n")
        place.publish()
        another = workspace(folder, tmp_path / "one", "another command")
        another.fetch()
        with (another.root / "logs/metrics.csv").open("a") as file:
            file.write("2\n")
        third = workspace(folder, tmp_path / "one", "a third")
        third.fetch()
        assert here(third) == here(place) == {"logs/metrics.csv": "1\n"}
        another.publish()
        place.fetch()
        assert here(place) == {"logs/metrics.csv": "1\n2\n"}

    def test_a_content_that_was_written_to_is_fetched_again(self, folder, place, tmp_path):
        large = "x" * (2**20 + 1)
        put(place, "raw/a.parquet", large)
        place.publish()
        linked = workspace(folder, tmp_path / "one", "another command")
        assert linked.fetch() == Moved(0, 0)
        assert (linked.root / "raw/a.parquet").stat().st_nlink > 2
        with (linked.root / "raw/a.parquet").open("a") as file:
            file.write("y")
        third = workspace(folder, tmp_path / "one", "a third")
        assert third.fetch().files == 1
        assert here(third) == {"raw/a.parquet": large}


class TestPlainFiles:
    def test_what_the_user_uploaded_is_there_and_is_not_copied_in_the_store(self, folder, place):
        folder.put("raw/a.parquet", b"1")
        folder.put("raw/", b"")  # some programs make folders so
        place.fetch()
        assert here(place) == {"raw/a.parquet": "1"}
        put(place, "b", "2")
        place.publish()
        assert [*state_of(folder).entries] == ["b"]

    def test_what_a_command_writes_takes_its_place_until_it_is_uploaded_again(self, folder, place):
        folder.put("raw/a.parquet", b"1")
        place.fetch()
        put(place, "raw/a.parquet", "2")
        place.publish()
        assert place.fetch() == Moved(0, 0)
        assert here(place) == {"raw/a.parquet": "2"}
        folder.put("raw/a.parquet", b"3")
        place.fetch()
        assert here(place) == {"raw/a.parquet": "3"}

    def test_what_a_command_removes_is_gone_until_it_is_uploaded_again(self, folder, place, other):
        folder.put("raw/a.parquet", b"1")
        place.fetch()
        (place.root / "raw/a.parquet").unlink()
        place.publish()
        other.fetch()
        assert here(other) == {}
        folder.put("raw/a.parquet", b"2")
        other.fetch()
        assert here(other) == {"raw/a.parquet": "2"}

    def test_one_that_is_replaced_while_it_is_fetched(self, folder, place, monkeypatch):
        folder.put("raw/a.parquet", b"1")
        download = folder.download

        def replaced_before(key, file, etag):
            monkeypatch.setattr(folder, "download", download)
            folder.put(key, b"2")
            return download(key, file, etag)

        monkeypatch.setattr(folder, "download", replaced_before)
        place.fetch()
        assert here(place) == {"raw/a.parquet": "2"}


class TestTwoAtOnce:
    def test_changes_of_different_files_both_stand(self, folder, place, other):
        put(place, "a", "1")
        put(other, "b", "2")
        place.publish()
        other.publish()
        assert {*state_of(folder).files} == {"a", "b"}

    def test_who_wrote_first_stands_and_the_other_is_told(self, folder, place, other):
        put(place, "a", "1")
        put(other, "a", "2")
        put(other, "b", "2")
        place.publish()
        before = dict(folder.objects)
        with pytest.raises(Clash, match=r"s3://bucket/shop: another command wrote a meanwhile; nothing"):
            other.publish()
        assert folder.objects == before
        other.fetch()  # given again
        assert here(other) == {"a": "1"}

    def test_the_same_change_is_no_clash(self, folder, place, other):
        put(place, "a", "1")
        put(other, "a", "1")
        place.publish()
        assert other.publish() == Moved(0, 0)
        assert [*state_of(folder).files] == ["a"]

    def test_a_manifest_written_in_the_last_moment(self, folder, place, other, monkeypatch):
        put(place, "a", "1")
        put(other, "b", "2")
        write = folder.write

        def after_the_other(key, content, instead_of):
            monkeypatch.setattr(folder, "write", write)
            other.publish()
            return write(key, content, instead_of)

        monkeypatch.setattr(folder, "write", after_the_other)
        place.publish()
        assert {*state_of(folder).files} == {"a", "b"}

    def test_an_object_that_goes_while_a_state_is_taken(self, folder, place, other, monkeypatch):
        put(place, "a", "1")
        place.publish()
        download = folder.download

        def replaced_before(key, file, etag):
            monkeypatch.setattr(folder, "download", download)
            put(place, "a", "2")
            place.publish()
            del folder.objects[key]
            return download(key, file, etag)

        monkeypatch.setattr(folder, "download", replaced_before)
        other.fetch()
        assert here(other) == {"a": "2"}


class TestKilled:
    @pytest.fixture
    def interrupted(self, folder, place, monkeypatch) -> Workspace:
        """Killed when its objects were there, before the manifest was."""
        put(place, "a", "1")
        put(place, "b", "1")
        place.publish()
        put(place, "a", "2")
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                place.publish()
        return place

    @pytest.mark.usefixtures("interrupted")
    def test_others_have_the_old_state(self, other):
        other.fetch()
        assert here(other) == {"a": "1", "b": "1"}

    @pytest.mark.usefixtures("interrupted")
    def test_given_again_it_goes_on_with_what_it_had(self, folder, tmp_path, other):
        again = workspace(folder, tmp_path / "one")
        other.fetch()
        put(other, "c", "3")
        other.publish()
        again.fetch()
        assert here(again) == {"a": "2", "b": "1", "c": "3"}
        again.publish()
        other.fetch()
        assert here(other)["a"] == "2"

    @pytest.mark.usefixtures("interrupted")
    def test_what_it_uploaded_is_removed_when_it_is_old(self, folder, other):
        other.fetch()
        put(other, "c", "3")
        other.publish()
        objects = {key for key in folder.objects if key.startswith(OBJECTS)}
        assert len(objects) == 3  # of a and b, of what the killed one uploaded, of c
        for key in objects:
            folder.modified[key] -= timedelta(days=2)
        put(other, "c", "4")
        other.publish()
        assert {key.partition("-")[0] for key in folder.objects if key.startswith(OBJECTS)} == {
            f"{OBJECTS}/{hashlib.sha256(text).hexdigest()}" for text in (b"1", b"4")
        }

    def test_a_folder_that_was_not_ready_is_made_anew(self, folder, place, tmp_path):
        put(place, "a", "1")
        place.publish()
        half = workspace(folder, tmp_path / "one", "another command")
        put(half, "a", "0")
        put(half, "b", "0")
        half.fetch()
        assert here(half) == {"a": "1"}


class TestManifest:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"{", "is no manifest"),
            (b"[]", "is no manifest"),
            (b'{"version": 1}', "is no manifest"),
            (b'{"version": 1, "files": {"a": {"object": "b"}}}', "is no manifest"),
            (b'{"version": 2, "files": {}}', "of version 2, which this code does not know; update it"),
            *(
                (
                    json.dumps({"version": 1, "files": {path: {"object": "b", "size": 1, "over": None}}}).encode(),
                    "is no path below the data path",
                )
                for path in ("../a", "/a", "a//b", "cache/a", ".ubp/a", "a/..", "")
            ),
        ],
    )
    def test_one_that_cannot_be_read_is_refused_in_a_line(self, folder, place, content, said):
        folder.put(MANIFEST, content)
        with pytest.raises(UserError, match=said) as refused:
            place.fetch()
        assert len(refused.value.messages) == 1

    def test_an_object_with_another_content_is_refused(self, folder, place, other):
        put(place, "a", "1")
        place.publish()
        (key,) = (key for key in folder.objects if key.startswith(OBJECTS))
        folder.put(key, b"2")
        with pytest.raises(UserError, match="has not the content that its name says"):
            other.fetch()


class Dictionaries:
    """What a machine should have, the slow and obvious way: a dictionary of its files, one of what they stand on."""

    def __init__(self, state: dict[str, str]) -> None:
        self.state, self.base, self.files = state, dict[str, str](), dict[str, str]()

    @property
    def changes(self) -> set[str]:
        paths = self.base.keys() | self.files.keys()
        return {path for path in paths if self.base.get(path) != self.files.get(path)}

    @property
    def clashes(self) -> bool:
        return any(self.state.get(path) != self.base.get(path) for path in self.changes)

    def fetch(self) -> None:
        kept = {} if self.clashes else {path: self.files.get(path) for path in self.changes}
        self.base = dict(self.state)
        self.files = {path: text for path, text in (self.state | kept).items() if text is not None}

    def publish(self) -> None:
        for path in self.changes:
            for table in (self.state, self.base):
                table.pop(path, None)
                table.update({path: self.files[path]} if path in self.files else {})


_MACHINES, _PATHS = 3, ["a", "raw/b", "raw/c"]
_STEPS = st.tuples(
    st.sampled_from(["put", "put", "remove", "fetch", "publish", "publish", "upload"]),
    st.integers(0, _MACHINES - 1),
    st.sampled_from(_PATHS),
)


@given(st.lists(_STEPS, max_size=25))
def test_any_order_against_dictionaries(steps):
    state, folder, texts = dict[str, str](), Memory(), (str(number) for number in count(100))
    with TemporaryDirectory() as home:
        places = [workspace(folder, Path(home) / str(machine)) for machine in range(_MACHINES)]
        expected = [Dictionaries(state) for _ in places]
        for place in places:
            place.fetch()
        for step, machine, path in steps:
            taken(step, path, places[machine], expected[machine], next(texts))
            assert [here(place) for place in places] == [each.files for each in expected]


def taken(step: str, path: str, place: Workspace, expected: Dictionaries, text: str) -> None:
    """Take a step with a folder, and with what it should be."""
    if step == "upload":
        expected.state[path] = text
        place.folder.put(path, text.encode())
    elif step == "put":
        expected.files[path] = text
        put(place, path, text)
    elif step == "remove":
        expected.files.pop(path, None)
        (place.root / path).unlink(missing_ok=True)
    elif step == "publish" and expected.clashes:
        with pytest.raises(Clash):
            place.publish()
    else:
        getattr(expected, step)()
        getattr(place, step)()
