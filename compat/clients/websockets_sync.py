"""A client on Python's websockets, with threads."""

import contextlib
import sys
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def report(*words):
    print(*words, flush=True)


def run_commands(ws):
    for line in sys.stdin:
        command, _, rest = line.rstrip("\n").partition(" ")
        if command == "text":
            ws.send(rest)
        elif command == "binary":
            ws.send(bytes.fromhex(rest))
        elif command == "close":
            code, _, reason = rest.partition(" ")
            ws.close(int(code), reason)


def handle(message):
    if isinstance(message, bytes):
        report("binary", message.hex())
        return
    report("text", message)
    task, _, seconds = message.partition(" ")
    if task == "block":
        time.sleep(float(seconds))


def main(url):
    with connect(url) as ws:
        report("open", ws.response.headers.get("Sec-WebSocket-Extensions", ""))
        threading.Thread(target=run_commands, args=[ws]).start()
        with contextlib.suppress(ConnectionClosed):
            for message in ws:
                handle(message)
    report("close", ws.close_code, ws.close_reason)


main(sys.argv[1])
