"""context_worker.sources: a traceback has its lines when the files are gone."""

from __future__ import annotations

import importlib.util
import linecache
import traceback
from pathlib import Path

from context_worker import sources, worker


def test_lines_outlive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def fail():\n    raise ValueError('on purpose')\n")
    spec = importlib.util.spec_from_file_location("module", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sources.keep_file(str(file))
    file.unlink()
    try:
        module.fail()
    except ValueError:
        assert "    raise ValueError('on purpose')" in traceback.format_exc()


def test_ours_are_kept() -> None:
    sources.keep()
    assert worker.__file__
    entry = linecache.cache[worker.__file__]
    assert len(entry) == 4 and entry[1] is None and entry[2][0].startswith('"""The way of one worker')
