"""How a benchmark's cells fare on a cluster: done, missing, queued, running or failed.

A cell is done when the results hold its records. Of the others the ledger says which job makes which record;
the newest job counts, or one that lives. A job that was cancelled or has vanished leaves its records missing;
if it was cancelled because one that it needs has failed, they have failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mim_bench.cluster.job_state import JobState, job_states
from mim_bench.cluster.ledger import Entry
from mim_bench.records.pending import PendingCell
from mim_bench.records.run_folder import record_hash, sweep_key

CellStateName = Literal["done", "missing", "queued", "running", "failed"]


@dataclass(frozen=True)
class CellState:
    """How a cell fares."""

    name: CellStateName
    entry: Entry | None = None
    """The job that tells most of it."""
    reason: str = ""
    """Why it waits."""


class KnownJobs:
    """The jobs that the missing cells of a benchmark have had, and how they fare now."""

    def __init__(self, entries: Sequence[Entry], tasks: Sequence[PendingCell]) -> None:
        missing = [task.cell.config for task in tasks if task.missing]
        keys = {config.hash for config in missing} | {sweep_key(config) for config in missing}
        self.entries = [entry for entry in entries if entry.key in keys]
        self.states: dict[str, JobState] = job_states(self.entries)
        self._by_id = {entry.job_id: entry for entry in self.entries}

    def live(self, key: str) -> list[Entry]:
        """Jobs of a run, or of a fit, that wait or run."""
        return [entry for entry in self.entries if entry.key == key and self._is_live(entry)]

    def newest(self, key: str) -> tuple[Entry, JobState] | None:
        """The last job of a run, or of a fit."""
        found = [entry for entry in self.entries if entry.key == key]
        return (found[-1], self.states[found[-1].job_id]) if found else None

    def of_record(self, task: PendingCell, protocol: str) -> CellState:
        """How the making of one missing record fares."""
        key = record_hash(task.cell.config, protocol)
        found = [entry for entry in self.entries if key in entry.records]
        if not found:
            return CellState("missing")
        entry = next(filter(self._is_live, reversed(found)), found[-1])
        state = self.states[entry.job_id]
        needed = [self._by_id[one] for one in entry.needs if one in self._by_id]
        if state.is_live:
            # an evaluation waits while its pre-training runs: that one tells more
            for one in (entry, *(one for one in needed if one.kind == "run")):
                if self.states[one.job_id].name == "running":
                    return CellState("running", one)
            return CellState("queued", entry, state.reason)
        for one in (entry, *needed):
            if self.states[one.job_id].name == "failed":
                return CellState("failed", one)
        return CellState("missing", entry)

    def of_cell(self, task: PendingCell) -> CellState:
        """How a cell fares: of its missing records the one that tells most."""
        if not task.missing:
            return CellState("done")
        found = [self.of_record(task, protocol) for protocol in task.missing]
        order: list[CellStateName] = ["running", "queued", "failed", "missing"]
        return min(found, key=lambda state: order.index(state.name))

    def _is_live(self, entry: Entry) -> bool:
        return self.states[entry.job_id].is_live
