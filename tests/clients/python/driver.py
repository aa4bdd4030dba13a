"""Runs the unmodified Python clients. The same commands and answers as ../javascript/driver.js."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from realtime import AsyncRealtimeClient
from supabase import acreate_client


def tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def to_payload(value: Any) -> Any:
    """Bytes are `{"hex": "…"}` on stdin."""
    is_bytes = isinstance(value, dict) and "hex" in value
    return bytes.fromhex(value["hex"]) if is_bytes else value


class Client:
    """A client of either package, and its channels."""

    async def open(self, client: str, library: str, url: str, key: str, token: str | None) -> None:
        self.name = client
        if library == "supabase-py":
            self.client: Any = await acreate_client(url, key)
            self.realtime = self.client.realtime
        else:
            socket = url.replace("http", "ws") + "/socket"
            self.client = self.realtime = AsyncRealtimeClient(socket, token=key)
        if token is not None:
            await self.setAuth(token)

    async def setAuth(self, token: str) -> None:
        await self.realtime.set_auth(token)

    async def subscribe(self, topic: str, config: dict[str, Any]) -> None:
        def on_status(status: Any, error: Exception | None) -> None:
            text = None if error is None else str(error)
            tell(client=self.name, kind="status", topic=topic, status=status.value, error=text)

        def on_message(message: Any) -> None:
            tell(client=self.name, kind="message", topic=topic, message=message)

        def on_system(message: Any) -> None:
            tell(client=self.name, kind="system", topic=topic, message=message.model_dump())

        channel = self.client.channel(topic, {"config": config})
        await channel.on_broadcast("*", on_message).on_system(on_system).subscribe(on_status)

    async def send(self, topic: str, event: str, payload: Any) -> str:
        await self.client.channel(topic).send_broadcast(event, payload)
        return "ok"

    async def httpSend(self, topic: str, config: dict[str, Any], event: str, payload: Any) -> None:
        channel = self.client.channel(topic, {"config": config})
        await channel.http_send(event, to_payload(payload))

    async def track(self, topic: str, payload: Any) -> str:
        await self.client.channel(topic).track(payload)
        return "ok"

    async def unsubscribe(self, topic: str) -> str:
        await self.client.channel(topic).unsubscribe()
        return "ok"

    async def close(self) -> None:
        await self.realtime.close()


async def run(clients: dict[str, Client], command: dict[str, Any]) -> None:
    number, what, name = command.pop("id"), command.pop("do"), command["client"]
    try:
        if what == "open":
            clients[name] = Client()
            command.pop("options")
        else:
            command.pop("client")
        tell(id=number, result=await getattr(clients[name], what)(**command))
    except Exception as error:
        tell(id=number, error=str(error))


async def main() -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    clients: dict[str, Client] = {}
    running = set()
    while line := await reader.readline():
        task = asyncio.create_task(run(clients, json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


asyncio.run(main())
