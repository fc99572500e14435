"""What the peers' bench keeps between parts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.peers import Kept, Row, read_kept

ROW = Row("a / b", "8 at once", "ttft_mean", 1.0, 2.0, 0.5, 0.4, 0.6, True, 8, 1.0)


def test_rows_of_another_model_or_load_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    asked = {"model": "tiny", "concurrency": [8], "new": 200}
    assert read_kept(path, asked) == Kept(asked)
    path.write_bytes(msgspec.json.encode(Kept(asked, {"torch": [ROW]})))
    assert read_kept(path, asked).parts == {"torch": [ROW]}
    assert read_kept(path, asked | {"new": 50}).parts == {}
