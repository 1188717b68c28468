// A channel on Phoenix' own client.
"use strict";

const { Socket } = require("phoenix");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected }) => {
  const socket = new Socket(url, { transport: ReportingWebSocket });
  socket.connect();
  socket.channel("room:lobby").join().receive("ok", connected);
});
