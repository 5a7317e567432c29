"""Prefect's floor: a flow of as many stages as a sync has, each with one task that does nothing."""

import asyncio

from prefect import flow, task
from prefect.futures import wait

from tasks.entities import ENTITY_TYPES


@task
def do_nothing(_: int) -> None:
    """Nothing."""


@flow
async def empty_stage() -> None:
    await asyncio.to_thread(wait, do_nothing.map([0]))


@flow
async def empty_flow() -> None:
    for _ in ENTITY_TYPES:
        await empty_stage()


def main() -> None:
    state = asyncio.run(empty_flow(return_state=True))
    print(state.state_details.flow_run_id)


if __name__ == "__main__":
    main()
