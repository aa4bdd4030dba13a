"""A peer: uvicorn with starlette. Topics, phx_join and fan-out, and nothing else.

python starlette_app.py PORT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import uvicorn  # type: ignore[import-not-found,unused-ignore]
from starlette.applications import Starlette  # type: ignore[import-not-found,unused-ignore]
from starlette.routing import WebSocketRoute  # type: ignore[import-not-found,unused-ignore]
from starlette.websockets import (  # type: ignore[import-not-found,unused-ignore]
    WebSocket,
    WebSocketDisconnect,
)

members: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def client(socket: WebSocket) -> None:
    """Joins, and hands broadcasts to the others on the topic as they came."""
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            message = json.loads(text)
            topic = message["topic"]
            if message["event"] == "phx_join":
                members[topic].add(socket)
                reply = {"topic": topic, "event": "phx_reply", "payload": {"status": "ok"}}
                await socket.send_text(json.dumps(reply))
                continue
            for one in list(members[topic]):
                if one is not socket:
                    await one.send_text(text)
    except WebSocketDisconnect:
        pass
    finally:
        for some in members.values():
            some.discard(socket)


if __name__ == "__main__":
    uvicorn.run(
        Starlette(routes=[WebSocketRoute("/", client)]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=4096,
        log_level="error",
        ws_per_message_deflate=False,
    )
