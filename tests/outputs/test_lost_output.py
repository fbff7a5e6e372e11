"""A writer notices that another one has taken its output over."""

from pathlib import Path

import pytest

from caan.outputs.log import RECEIPTS_SCHEMA, LogWriter, LostOutput


def test_a_writer_that_lost_its_output_stops_before_it_changes_files(tmp_path: Path) -> None:
    first = LogWriter(str(tmp_path), "the first driver")
    first.check()
    second = LogWriter(str(tmp_path), "the second driver")
    with pytest.raises(LostOutput, match="was taken over by the second driver"):
        first.check()
    with pytest.raises(LostOutput, match="the second driver"):
        first.commit(RECEIPTS_SCHEMA.empty_table())
    second.check()
    second.commit(RECEIPTS_SCHEMA.empty_table())
