"""A local Stage 1: the five upsert endpoints over MongoDB, with faults on demand."""

from scripts.local.hub.faults import Fault
from scripts.local.hub.local_hub import LocalHub, upsert_path, upsert_urls

__all__ = ["Fault", "LocalHub", "upsert_path", "upsert_urls"]
