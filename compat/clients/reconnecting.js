// What the reconnecting clients share: the connections that are asked for on the command line, and a
// WebSocket that reports the Close frame it received.
"use strict";

const WebSocket = require("ws");

const [, , address, ...endings] = process.argv;

const say = (...words) => console.log(...words);

class ReportingWebSocket extends WebSocket {
  constructor(url, ...rest) {
    super(url, ...rest);
    const ending = new URL(url).pathname.split("/")[1];
    this.on("close", (code, reason) => say("closed", ending, code, reason.toString()));
  }
}

// Calls `start` with the address of each connection, and with functions that report its states.
function eachEnding(scheme, start) {
  for (const ending of endings) {
    const connected = () => say("connected", ending);
    const over = () => say("over", ending);
    start(`${scheme}://${address}/${ending}`, { connected, over });
  }
}

process.stdin.on("end", () => process.exit()).resume();

module.exports = { ReportingWebSocket, eachEnding };
