"""A client on Python's websockets, with asyncio."""

import asyncio
import contextlib
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def report(*words):
    print(*words, flush=True)


async def run_commands(ws):
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, _, rest = line.rstrip("\n").partition(" ")
        if command == "text":
            await ws.send(rest)
        elif command == "binary":
            await ws.send(bytes.fromhex(rest))
        elif command == "close":
            code, _, reason = rest.partition(" ")
            await ws.close(int(code), reason)


async def handle(message):
    if isinstance(message, bytes):
        report("binary", message.hex())
        return
    report("text", message)
    task, _, seconds = message.partition(" ")
    if task == "block":
        time.sleep(float(seconds))
    elif task == "await":
        await asyncio.sleep(float(seconds))


async def main(url):
    async with connect(url) as ws:
        report("open", ws.response.headers.get("Sec-WebSocket-Extensions", ""))
        commands = asyncio.create_task(run_commands(ws))
        with contextlib.suppress(ConnectionClosed):
            async for message in ws:
                await handle(message)
    report("close", ws.close_code, ws.close_reason)
    await commands


asyncio.run(main(sys.argv[1]))
