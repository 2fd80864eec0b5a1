"""`python -m tests.rogue.service`: isorend's command line, with tests.rogue.launcher in place of the launcher.

Workers that do not come up are given up sooner than a driver would have to be, so that tests need not wait so long.
"""

import sys
from unittest import mock

from master import cli, hang_watch, supervisor
from master.launch import LaunchSettings

START_LIMIT = 10.0  # seconds
_REAL = "context_worker.launcher"
_real_command = LaunchSettings.command


def _command(settings: LaunchSettings, channel_fd: int) -> list[str]:
    command = _real_command(settings, channel_fd)
    assert _REAL in command
    return ["tests.rogue.launcher" if word == _REAL else word for word in command]


if __name__ == "__main__":
    with (
        mock.patch.object(LaunchSettings, "command", _command),
        mock.patch.object(hang_watch, "START_LIMIT", START_LIMIT),
        mock.patch.object(supervisor, "START_LIMIT", START_LIMIT),
    ):
        sys.exit(cli.main())
