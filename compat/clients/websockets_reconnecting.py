"""A client on Python's websockets that reconnects as its documentation shows."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def report(*words):
    print(*words, flush=True)


async def session(address, ending):
    async for ws in connect(f"ws://{address}/{ending}"):
        report("connected", ending)
        try:
            await ws.recv()
        except ConnectionClosed:
            report("closed", ending, ws.close_code, ws.close_reason)
            continue
    report("gave_up", ending)


async def main(address, *endings):
    await asyncio.gather(*(session(address, ending) for ending in endings))


asyncio.run(main(*sys.argv[1:]))
