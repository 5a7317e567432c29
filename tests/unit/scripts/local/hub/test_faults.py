"""Which faults the hub takes, and which of them a request gets."""

from typing import Any

import pytest
from pydantic import ValidationError

from scripts.local.hub import Fault
from scripts.local.hub.active_faults import ActiveFaults
from scripts.local.hub.request_log import SeenRequest

RARELY = 0.0001
"""Requests a second: the second one is too early on a machine of any speed."""


def seen(entity_type: str = "tenant", key: str = "acme") -> SeenRequest:
    return SeenRequest(entity_type, key, "a request id", "a digest", 1, received_at=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"requests_per_second": 0},
        {"requests_per_second": -1},
        {"requests_per_second": float("inf")},
        {"requests_per_second": float("nan")},
        {"requests_per_second": 1, "burst": -1},
        {"compress": "br"},
        {"headers": (("X-Name", "\u0100"),)},
        {"headers": (("X-Name",),)},
        {"retry_after": "\u0100"},
        {"text": 5},
    ],
)
def test_what_no_hub_can_do_is_no_fault(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fault(**fields)


def test_every_field_is_explained() -> None:
    assert all(field.description for field in Fault.model_fields.values())


def test_what_a_throttle_lets_through_gets_the_next_fault_that_matches() -> None:
    throttle, fallback = Fault(requests_per_second=RARELY), Fault(key="acme", status=500)
    faults = ActiveFaults([throttle, fallback])
    assert [faults(seen()), faults(seen())] == [fallback, throttle]


def test_a_throttle_counts_only_the_requests_that_it_matches() -> None:
    throttle = Fault(key="acme", requests_per_second=RARELY)
    faults = ActiveFaults([throttle])
    assert [faults(seen(key=key)) for key in ("other", "acme", "other", "acme")] == [
        None,
        None,
        None,
        throttle,
    ]


def test_two_throttles_that_look_the_same_count_for_themselves() -> None:
    throttle = Fault(requests_per_second=RARELY)
    both = ActiveFaults([throttle, throttle])
    assert [both(seen()), both(seen())] == [None, throttle]


def test_the_same_faults_again_start_anew() -> None:
    faults = [Fault(requests_per_second=RARELY)]
    assert ActiveFaults(faults)(seen()) is None
    assert ActiveFaults(faults)(seen()) is None
