"""A function of Stage 1 as AWS Lambda runs one, with the local hub as its database.

It takes an event from the runtime API and asks the hub: what the hub answers is its reply, and a
hub that drops the request is an error of its own. It dies where the hub's answer is `"die"`. This
script needs the standard library only, so it starts at once; and AWS's own client for the runtime
API can't be used, as the emulator sends an event without a Content-Type.
"""

import base64
import json
import os
import signal
from http.client import HTTPConnection, HTTPException
from typing import Any

HEADERS_FOR_HUB = ("authorization", "content-type")
Document = dict[str, Any]


def main() -> None:
    host, _, path = os.environ["AWS_LAMBDA_RUNTIME_API"].partition("/")
    invocations = f"/{path}/2018-06-01/runtime/invocation"
    runtime = HTTPConnection(host)
    while True:
        runtime.request("GET", f"{invocations}/next")
        response = runtime.getresponse()
        event, request_id = json.load(response), response.headers["Lambda-Runtime-Aws-Request-Id"]
        outcome, reply = handle(event)
        runtime.request("POST", f"{invocations}/{request_id}/{outcome}", json.dumps(reply))
        runtime.getresponse().read()


def handle(event: Document) -> tuple[str, Document]:
    """Return the last part of the path that a reply is posted to, and the reply."""
    try:
        status, content = ask_hub(event)
    except (OSError, HTTPException) as error:
        return "error", {"errorType": type(error).__name__, "errorMessage": str(error)}
    if content == b'"die"':
        os.kill(os.getpid(), signal.SIGKILL)
    return "response", reply_with(status, content)


def ask_hub(event: Document) -> tuple[int, bytes]:
    hub = HTTPConnection(os.environ["HUB"])
    path = f"/lambda-url/{os.environ['AWS_LAMBDA_FUNCTION_NAME']}{event['rawPath']}"
    headers = {name: value for name, value in event["headers"].items() if name in HEADERS_FOR_HUB}
    try:
        hub.request("POST", path, (event.get("body") or "").encode(), headers)
        response = hub.getresponse()
        return response.status, response.read()
    finally:
        hub.close()


def reply_with(status: int, content: bytes) -> Document:
    in_base64 = bool(os.environ["REPLIES_IN_BASE64"])
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": (base64.b64encode(content) if in_base64 else content).decode(),
        "isBase64Encoded": in_base64,
        "cookies": [],  # without them the emulator answers 500
    }


if __name__ == "__main__":
    main()
