// A hub's client on SignalR.
"use strict";

const { HubConnectionBuilder, LogLevel } = require("@microsoft/signalr");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("http", (url, { connected, gaveUp }) => {
  const connection = new HubConnectionBuilder()
    .withUrl(url, { WebSocket: ReportingWebSocket })
    .withAutomaticReconnect()
    .configureLogging(LogLevel.None)
    .build();
  connection.onreconnected(connected);
  connection.onclose(gaveUp);
  connection.start().then(connected);
});
