// A client on reconnecting-websocket.
"use strict";

const WebSocket = require("reconnecting-websocket");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected }) => {
  const ws = new WebSocket(url, [], { WebSocket: ReportingWebSocket });
  ws.addEventListener("open", connected);
});
