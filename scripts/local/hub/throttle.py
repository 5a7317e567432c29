"""Which requests come too early for a limit of requests per second."""


class Throttle:
    """A leaky bucket: each request that it lets through fills it by one, time empties it.

    As in nginx's `limit_req` with `nodelay`, a request passes while no more than `burst` is left
    of those before. One that is refused fills nothing. It is not safe for threads.
    """

    def __init__(self, requests_per_second: float, burst: int = 0) -> None:
        self._requests_per_second = requests_per_second
        self._burst = burst
        self._level = 0.0
        self._filled_at = 0.0

    def lets_through(self, now: float) -> bool:
        """Whether a request at `now`, in seconds, is not too early; calls come in order of time."""
        leaked = self._requests_per_second * (now - self._filled_at)
        left = max(0.0, self._level - leaked)
        if left > self._burst:
            return False
        self._level, self._filled_at = left + 1, now
        return True
