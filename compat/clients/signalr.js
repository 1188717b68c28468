// A hub's client on SignalR.
"use strict";

const { HubConnectionBuilder, LogLevel } = require("@microsoft/signalr");
const { ReportingWebSocket, eachEnding } = require("./reconnecting.js");

eachEnding("http", (url, { connected, over }) => {
  const connection = new HubConnectionBuilder()
    .withUrl(url, { WebSocket: ReportingWebSocket })
    .withAutomaticReconnect()
    .configureLogging(LogLevel.None)
    .build();
  connection.onreconnected(connected);
  connection.onclose(over);
  connection.start().then(connected);
});
