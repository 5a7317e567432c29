"""Which servers of `./scripts/serve` another command uses."""

import stat
from pathlib import Path

import pytest

from scripts.local.started_servers import Server, announced, servers_to_adopt

PREFECT: dict[Server, str] = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
MONGODB: dict[Server, str] = {"MONGODB_URI": "mongodb://127.0.0.1:50077"}
BOTH: dict[Server, str] = {**MONGODB, **PREFECT}
ELSEWHERE: dict[Server, str] = {"MONGODB_URI": "mongodb://db.example"}


@pytest.fixture(autouse=True)
def _servers_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.local.started_servers.answers", lambda *_, **__: True)
    monkeypatch.setattr("scripts.local.started_servers.mongodb_answers", lambda *_, **__: True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serve.json"


@pytest.mark.parametrize(
    ("started", "named", "adopted"),
    [
        (BOTH, {}, BOTH),
        (BOTH, PREFECT, MONGODB),
        (BOTH, BOTH, {}),
        (BOTH, ELSEWHERE, {}),
        (PREFECT, ELSEWHERE, PREFECT),
        ({}, {}, {}),
    ],
)
def test_servers_that_no_setting_names_are_adopted_unless_one_names_another(
    path: Path,
    started: dict[Server, str],
    named: dict[Server, str],
    adopted: dict[Server, str],
) -> None:
    with announced(started, path):
        assert servers_to_adopt(path, named) == adopted
    assert not path.exists()
    assert servers_to_adopt(path, named) == {}


def test_only_this_user_can_read_the_file_even_where_another_one_was(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o644)
    with announced(BOTH, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("silent", ["answers", "mongodb_answers"])
def test_a_file_whose_servers_do_not_answer_is_not_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(f"scripts.local.started_servers.{silent}", lambda *_, **__: False)
    with announced(BOTH, path):
        assert servers_to_adopt(path, {}) == {}


@pytest.mark.parametrize("text", ["", "{", '{"ADMIN_SYNC_TOKEN": "x"}', "[]"])
def test_a_file_of_another_shape_is_not_believed(path: Path, text: str) -> None:
    path.write_text(text)
    assert servers_to_adopt(path, {}) == {}
