"""A client on Python's websockets, with threads."""

import contextlib
import sys
import threading
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def say(*words):
    print(*words, flush=True)


def obey(ws):
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
        say("binary", message.hex())
        return
    say("text", message)
    task, _, seconds = message.partition(" ")
    if task == "block":
        time.sleep(float(seconds))


def main(url):
    with connect(url) as ws:
        say("open", ws.response.headers.get("Sec-WebSocket-Extensions", ""))
        threading.Thread(target=obey, args=[ws]).start()
        with contextlib.suppress(ConnectionClosed):
            for message in ws:
                handle(message)
    say("close", ws.close_code, ws.close_reason)


main(sys.argv[1])
