"""A file that can't be read ends a command in one sentence, before Prefect reads it."""

from pathlib import Path

import pytest

from deployments.files import exit_unless_readable


def test_utf_16_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".env"
    path.write_text("ADMIN_SYNC_TOKEN=marked\n", encoding="utf-16")
    with pytest.raises(SystemExit) as ended:
        exit_unless_readable(path)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{path} can't be read: it is not UTF-8 text.\n"


def test_one_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / ".env"
    path.touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SystemExit):
        exit_unless_readable(path)
    assert capsys.readouterr().err == f"{path} can't be read: Permission denied.\n"


def test_certificates_that_are_not_there_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(SystemExit) as ended:
        exit_unless_readable(tmp_path / ".env")
    assert ended.value.code == 2
    told = "SSL_CERT_FILE names a file that can't be read: No such file or directory.\n"
    assert capsys.readouterr().err == told


def test_text_nothing_and_a_folder_of_that_name_pass(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    exit_unless_readable(path)
    path.write_text("ADMIN_ENVIRONMENT=münchen\n", encoding="utf-8")
    exit_unless_readable(path)
    exit_unless_readable(tmp_path)
