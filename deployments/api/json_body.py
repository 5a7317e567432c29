"""Takes every body for JSON: curl, for one, calls it a form unless it is told otherwise."""

from starlette.types import ASGIApp, Receive, Scope, Send

_CONTENT_TYPE = b"content-type"
_JSON = (_CONTENT_TYPE, b"application/json")


class JsonBody:
    """Middleware that lets a request have the content type of JSON, whatever it says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            others = [header for header in scope["headers"] if header[0] != _CONTENT_TYPE]
            scope = {**scope, "headers": [*others, _JSON]}
        await self._app(scope, receive, send)
