"""A client on Python's aiohttp."""

import asyncio
import sys
import time

import aiohttp
from aiohttp import WSMsgType


def report(*words):
    print(*words, flush=True)


async def run_commands(ws):
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, _, rest = line.rstrip("\n").partition(" ")
        if command == "text":
            await ws.send_str(rest)
        elif command == "binary":
            await ws.send_bytes(bytes.fromhex(rest))
        elif command == "close":
            code, _, reason = rest.partition(" ")
            await ws.close(code=int(code), message=reason.encode())
            return


async def handle(text):
    report("text", text)
    task, _, seconds = text.partition(" ")
    if task == "block":
        time.sleep(float(seconds))
    elif task == "await":
        await asyncio.sleep(float(seconds))


async def main(url):
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as ws:
        report("open", "permessage-deflate" if ws.compress else "")
        commands = asyncio.create_task(run_commands(ws))
        while True:
            message = await ws.receive()
            if message.type is WSMsgType.TEXT:
                await handle(message.data)
            elif message.type is WSMsgType.BINARY:
                report("binary", message.data.hex())
            else:
                break
        if message.type is WSMsgType.CLOSING:
            await commands  # completes the close command
        report("close", ws.close_code, message.extra or "")
        await commands


asyncio.run(main(sys.argv[1]))
