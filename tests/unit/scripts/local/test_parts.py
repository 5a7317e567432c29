"""The port of the local MongoDB: it stays the same from start to start."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.local.hub import upsert_urls
from scripts.local.parts import start_missing_parts
from scripts.local.process import StartFailed, free_port, is_free


@pytest.fixture
def port_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the port is remembered; everything but MongoDB is named."""
    path = tmp_path / "mongodb.port"
    monkeypatch.setattr("scripts.local.parts._MONGODB_PORT", path)
    monkeypatch.setattr("scripts.local.parts.seed_source", lambda _settings: 5)
    monkeypatch.setattr("scripts.local.parts.local_mongod", mongod)
    monkeypatch.setenv("MONGODB_URI", "")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for variable, url in upsert_urls("http://127.0.0.1:9").items():
        monkeypatch.setenv(variable, url)
    return path


@contextmanager
def mongod(_data_path: Path, port: int) -> Iterator[str]:
    assert is_free(port)
    yield f"mongodb://127.0.0.1:{port}"


def uri() -> str:
    with ExitStack() as parts:
        started = start_missing_parts(parts)
        assert started.keys() == {"MONGODB_URI"}
        return started["MONGODB_URI"]


def uri_at_a_start(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MONGODB_URI", "")
    return uri()


def test_a_mongodb_has_the_port_that_it_had_before(
    port_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = uri_at_a_start(monkeypatch)
    assert first.endswith(f":{port_file.read_text()}")
    assert uri_at_a_start(monkeypatch) == first
    assert "is taken" not in capsys.readouterr().out


def test_a_port_that_is_taken_gives_way_to_another_one_which_is_told(
    port_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        port_file.write_text(str(taken))
        second = uri_at_a_start(monkeypatch)
    port = second.rpartition(":")[2]
    told = f"Port {taken} is taken: from now on, MongoDB has port {port}."
    assert told in capsys.readouterr().out
    assert uri_at_a_start(monkeypatch) == second


def test_a_port_is_remembered_only_once_mongodb_has_it(
    port_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = str(free_port())
    port_file.write_text(remembered)

    @contextmanager
    def fails(*_: object) -> Iterator[str]:
        raise StartFailed("Another mongod is running on the data folder")
        yield ""

    monkeypatch.setattr("scripts.local.parts.local_mongod", fails)
    monkeypatch.setattr("scripts.local.parts.is_free", lambda _port: False)
    with pytest.raises(StartFailed):
        uri()
    assert port_file.read_text() == remembered


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "65536"])
def test_what_is_no_port_is_not_remembered(
    port_file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    port_file.write_text(text)
    assert uri_at_a_start(monkeypatch).endswith(f":{port_file.read_text()}")
    assert port_file.read_text() != text
