// A subscription over graphql-ws.
"use strict";

const { createClient } = require("graphql-ws");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("ws", (url, { connected, over }) => {
  const client = createClient({ url, webSocketImpl: ReportingWebSocket, on: { connected } });
  const sink = { next() {}, error: over, complete: over };
  client.subscribe({ query: "subscription { news }" }, sink);
});
