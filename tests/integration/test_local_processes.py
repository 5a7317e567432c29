"""What a script starts on this machine, and what becomes of it however the script ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.local.process import StartFailed, make_folder, running, wait_until_a_part_ends
from scripts.local.reaper import end_group
from tests.integration.world import PATIENCE_SECONDS, REPOSITORY, wait_until

SCRIPT = """
import sys
from contextlib import contextmanager
from pathlib import Path
from scripts.local.process import running, serve_until_stopped

@contextmanager
def parts():
    log = Path(sys.argv[1])
    sleeper = ["sh", "-c", "sleep 1000 & wait"]
    with running(sleeper, name="The sleeper", ready=lambda: True, log_path=log) as part:
        yield str(part.pid)

sys.exit(serve_until_stopped(parts()))
"""
"""Serves one part, whose process has a child of its own, as a worker has."""


@dataclass(frozen=True)
class Script:
    """A script that is up, and its part."""

    process: "subprocess.Popen[str]"
    part: psutil.Process

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end of the script and of all that it has started."""
        exit_status = self.process.wait(PATIENCE_SECONDS)
        wait_until(lambda: not members_of(self.part.pid))
        return exit_status


def members_of(group: int) -> list[int]:
    """Return the living processes of a group."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


@contextmanager
def script(log_path: Path, ignored: str = "") -> Iterator[Script]:
    """Start the script, from a shell that has these signals ignored."""
    shell = f"trap '' {ignored}; exec \"$@\"" if ignored else 'exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", shell, "sh", sys.executable, "-c", SCRIPT, str(log_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            part = psutil.Process(int(process.stdout.readline()))
            wait_until(lambda: len(members_of(part.pid)) == 2)
            yield Script(process, part)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "ignored"),
    [
        (signal.SIGINT, "INT"),
        (signal.SIGTERM, "TERM"),
        (signal.SIGHUP, ""),
    ],
)
def test_a_signal_ends_it_whatever_it_inherited(
    tmp_path: Path, number: signal.Signals, ignored: str
) -> None:
    with script(tmp_path / "log", ignored) as started:
        started.signal(number)
        assert started.ended() == 0


def test_a_second_hang_up_disturbs_nothing(tmp_path: Path) -> None:
    with script(tmp_path / "log") as started:
        started.signal(signal.SIGHUP)
        started.signal(signal.SIGHUP)
        assert started.ended() == 0


def test_under_nohup_the_end_of_the_terminal_ends_nothing(tmp_path: Path) -> None:
    with script(tmp_path / "log", "HUP") as started:
        started.signal(signal.SIGHUP)
        started.part.kill()
        assert started.ended() == 1


def test_its_parts_end_with_it_even_when_it_is_killed(tmp_path: Path) -> None:
    with script(tmp_path / "log") as started:
        started.signal(signal.SIGKILL)
        assert started.ended() == -signal.SIGKILL


def test_a_part_that_is_stopped_goes_on_and_one_that_ends_is_named(tmp_path: Path) -> None:
    with script(tmp_path / "log") as started:
        started.part.suspend()
        wait_until(lambda: started.part.status() == psutil.STATUS_STOPPED)
        started.part.resume()
        started.part.kill()
        assert started.ended() == 1
        assert started.process.stderr is not None
        told = started.process.stderr.read()
    assert told == (
        f"The sleeper has ended by itself (SIGKILL). It logged nothing ({tmp_path / 'log'}).\n"
    )


def test_of_several_parts_the_one_that_ended_is_named_not_one_that_is_stopped(
    tmp_path: Path,
) -> None:
    with ExitStack() as parts:
        stopped = parts.enter_context(
            running(
                ["sleep", "1000"],
                name="The sleeper",
                ready=lambda: True,
                log_path=tmp_path / "sleeper.log",
            )
        )
        stopped.send_signal(signal.SIGSTOP)
        log_path = tmp_path / "failing.log"
        log_path.write_text("of an earlier start\n")
        parts.enter_context(
            running(
                ["sh", "-c", "echo started; sleep 0.2; echo 'no room left'; exit 3"],
                name="The API",
                ready=lambda: "started" in log_path.read_text(),
                log_path=log_path,
            )
        )
        with pytest.raises(StartFailed) as raised:
            wait_until_a_part_ends()
    assert str(raised.value) == (
        f"The API has ended by itself (exit code 3). The end of {log_path}:\nstarted\nno room left"
    )


def test_what_heeds_no_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.local.reaper.STOP_SECONDS", 0.1)
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; exec sleep 1000"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        end_group(deaf.pid)
        assert deaf.wait() == -signal.SIGKILL


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    place = tmp_path / ".local"
    place.touch()
    with pytest.raises(StartFailed) as raised:
        make_folder(place / "mongodb")
    assert str(raised.value) == f"The folder {place / 'mongodb'} can't be made: Not a directory."


def test_a_folder_that_can_not_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StartFailed, match="can't be written to"):
        make_folder(tmp_path)
