"""`python -m scripts.history` in a process that tells its peak memory when it has ended."""

import sys

from scripts.history import leave, main
from tests.benchmarks.resource_usage import measured

if __name__ == "__main__":
    usage, status = measured(main)
    print(usage.peak_rss_bytes, file=sys.stderr, flush=True)
    leave(status)
