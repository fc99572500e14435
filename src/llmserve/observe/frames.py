"""Rows and records as pandas DataFrames. pandas is imported when a frame is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from llmserve.core import StepRecord
from llmserve.observe.requests import RequestRow

if TYPE_CHECKING:
    import pandas as pd

_STEP_COLUMNS = (
    "index", "start_s", "duration_s", "running", "waiting", "kv_used_tokens",
    "kv_capacity_tokens", "max_num_seqs", "max_num_batched_tokens", "cached_tokens",
    "draft_tokens", "accepted_tokens",
)
_STEP_COUNTS = ("rows", "prefill_tokens", "decode_tokens", "preempted", "held")
_TAPE_COLUMNS = ("step", "start_s", "duration_s", "request_id", "kind", "tokens")


def requests_frame(rows: Sequence[RequestRow]) -> pd.DataFrame:
    """One row per request, indexed by its id: where its time went as `queue_s` (arrival to the
    engine), `prefill_s` (to the first token) and `decode_s` (to the end), in seconds."""
    import pandas as pd

    columns = list(RequestRow.__struct_fields__)
    values = [msgspec.structs.astuple(row) for row in rows]
    frame = pd.DataFrame.from_records(values, columns=columns).set_index("id")
    times = frame[["queue_s", "ttft_s", "e2e_s"]].astype(float)
    at = columns.index("ttft_s")  # the id is the index, so this is behind it
    frame.insert(at, "prefill_s", times["ttft_s"] - times["queue_s"])
    frame.insert(at + 1, "decode_s", times["e2e_s"] - times["ttft_s"])
    return frame


def steps_frame(records: Iterable[StepRecord]) -> pd.DataFrame:
    """One row per engine step. `held`: requests whose reason for waiting is another one from this
    step on, each with that reason."""
    import pandas as pd

    values = [
        (
            *(getattr(record, name) for name in _STEP_COLUMNS),
            len(record.rows), record.prefill_tokens, record.decode_tokens, len(record.preempted),
            dict(record.held),
        )
        for record in records
    ]
    columns = [*_STEP_COLUMNS, *_STEP_COUNTS]
    return pd.DataFrame.from_records(values, columns=columns).rename(columns={"index": "step"})


def tape_frame(records: Iterable[StepRecord]) -> pd.DataFrame:
    """One row per request per step: who was in the batch, and with how many tokens."""
    import pandas as pd

    values = [
        (record.index, record.start_s, record.duration_s, row.request_id, row.kind, row.tokens)
        for record in records
        for row in record.rows
    ]
    return pd.DataFrame.from_records(values, columns=list(_TAPE_COLUMNS))
