"""Contexts as the tests of others need them: nobody hears of their events, and nothing is limited but by default."""

from typing import Any

from master.contexts import Contexts
from master.events import EventSource
from master.incidents import IncidentLog
from master.strikes import Strikes
from native.dataplane import Plane
from resource_table import ResourceTable


def plain_contexts(plane: Plane, supervisor: Any, table: ResourceTable) -> Contexts:
    """`supervisor`: a Supervisor[LaneWorker], or what plays one."""
    events = EventSource("test")
    return Contexts(plane, supervisor, table, events, IncidentLog(events), Strikes(events, None))
