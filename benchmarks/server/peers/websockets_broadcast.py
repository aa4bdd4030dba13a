"""A peer: `websockets.broadcast`. Topics, phx_join and fan-out, and nothing else.

python websockets_broadcast.py PORT
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def client(connection: ServerConnection) -> None:
    """Joins, and hands broadcasts to the others on the topic as they came."""
    async for text in connection:
        message = json.loads(text)
        topic = message["topic"]
        if message["event"] == "phx_join":
            members[topic].add(connection)
            reply = {"topic": topic, "event": "phx_reply", "payload": {"status": "ok"}, "ref": "1"}
            await connection.send(json.dumps(reply))
        else:
            broadcast((one for one in members[topic] if one is not connection), text)
    for some in members.values():
        some.discard(connection)


async def main(port: int) -> None:
    async with serve(client, "127.0.0.1", port, compression=None, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
