"""Ends syncs whose worker is gone, in Prefect and in the audit trail."""

from flows.audit_sweep import end_dead_runs
from tasks.settings import read_mongo_settings


def main() -> None:
    """End every sync that has begun and not ended.

    Only for a Prefect server none of whose workers runs: a sync that goes on would end too.
    """
    end_dead_runs(read_mongo_settings(), silent_seconds=0)


if __name__ == "__main__":
    main()
