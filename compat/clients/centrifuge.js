// A client of Centrifugo.
"use strict";

const { Centrifuge } = require("centrifuge");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected, over }) => {
  const centrifuge = new Centrifuge(url, { websocket: ReportingWebSocket });
  centrifuge.on("connected", connected);
  centrifuge.on("disconnected", over);
  centrifuge.connect();
});
