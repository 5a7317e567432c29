"""Prefect's record of one flow run in memory."""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Self
from unittest.mock import Mock

from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Running

from tests.trail_documents import at

FLOW_RUN: Final = uuid.UUID(int=1)


class Prefect:
    """The client of a Prefect with a clock of its own; its flow run runs since 10 s."""

    def __init__(self) -> None:
        self.state: State[Any] | None = Running(timestamp=at(10))
        self.set: list[State[Any]] = []
        self.looks = 0
        self.deployment_id: uuid.UUID | None = None
        self.tags: list[str] = []
        self.run_count = 1
        self.earlier: list[State[Any]] = []
        """The states that it had before."""
        self.at_looks: dict[int, Callable[[], None]] = {}
        """What happens before this number of times that it is asked."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def now(self) -> datetime:
        return at(20 + len(self.set))

    def flow_run(self) -> FlowRun:
        return FlowRun(
            id=FLOW_RUN,
            flow_id=uuid.uuid4(),
            name="its name",
            state=self.state,
            parameters={},
            deployment_id=self.deployment_id,
            tags=self.tags,
            run_count=self.run_count,
        )

    async def read_flow_run_states(self, flow_run_id: uuid.UUID) -> list[State[Any]]:
        assert flow_run_id == FLOW_RUN
        return [*self.earlier, *([self.state] if self.state else [])]

    async def read_flow_run(self, flow_run_id: uuid.UUID) -> FlowRun:
        assert flow_run_id == FLOW_RUN
        self.looks += 1
        if happening := self.at_looks.get(self.looks):
            happening()
        if self.state is None:
            raise ObjectNotFound(ValueError())
        return self.flow_run()

    async def set_flow_run_state(self, flow_run_id: uuid.UUID, state: State[Any]) -> Any:
        assert flow_run_id == FLOW_RUN
        self.set.append(state)
        self.state = state.model_copy(update={"timestamp": self.now()})
        return Mock(state=self.state)
