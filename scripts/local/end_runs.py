"""Says of syncs whose worker is gone that they have crashed, in Prefect and in the audit trail."""

from flows.audit_sweep import end_dead_runs


def main() -> None:
    """End every sync that has begun and not ended.

    Only for a Prefect server none of whose workers runs: a sync that goes on would end too.
    """
    end_dead_runs(silent_seconds=0)


if __name__ == "__main__":
    main()
