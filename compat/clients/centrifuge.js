// A client on Centrifuge, for Centrifugo's protocol.
"use strict";

const { Centrifuge } = require("centrifuge");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected, gaveUp }) => {
  const centrifuge = new Centrifuge(url, { websocket: ReportingWebSocket });
  centrifuge.on("connected", connected);
  centrifuge.on("disconnected", gaveUp);
  centrifuge.connect();
});
