// A subscription over graphql-ws.
"use strict";

const { createClient } = require("graphql-ws");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected, gaveUp }) => {
  const client = createClient({ url, webSocketImpl: ReportingWebSocket, on: { connected } });
  const sink = { next() {}, error: gaveUp, complete: gaveUp };
  client.subscribe({ query: "subscription { messages }" }, sink);
});
