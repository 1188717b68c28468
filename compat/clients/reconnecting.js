// Shared by the reconnecting clients: opens the connections from the command line, with a WebSocket
// that reports the received Close frame.
"use strict";

const WebSocket = require("ws");

const [, , address, ...endings] = process.argv;

const report = (...words) => console.log(...words);

class ReportingWebSocket extends WebSocket {
  constructor(url, ...rest) {
    super(url, ...rest);
    const ending = new URL(url).pathname.split("/")[1];
    this.on("close", (code, reason) => report("closed", ending, code, reason.toString()));
  }
}

// Calls `start` with the address of each connection and with functions that report its state.
function eachEnding(scheme, start) {
  for (const ending of endings) {
    const connected = () => report("connected", ending);
    const gaveUp = () => report("gave_up", ending);
    start(`${scheme}://${address}/${ending}`, { connected, gaveUp });
  }
}

process.stdin.on("end", () => process.exit()).resume();

module.exports = { ReportingWebSocket, eachEnding };
