// A client on ws.
"use strict";

const readline = require("node:readline");
const WebSocket = require("ws");

const say = (...words) => console.log(...words);

function handle(data, isBinary) {
  if (isBinary) return say("binary", data.toString("hex"));
  say("text", data.toString());
  const [task, seconds] = data.toString().split(" ");
  if (task === "block") {
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end);
  }
}

const ws = new WebSocket(process.argv[2]);
ws.on("open", () => say("open", ws.extensions));
ws.on("message", handle);
ws.on("error", (error) => console.error(error));
ws.on("close", (code, reason) => say("close", code, reason.toString()));

const commands = readline.createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const [, command, rest] = line.match(/^(\w+) ?(.*)$/);
  if (command === "text") ws.send(rest);
  if (command === "binary") ws.send(Buffer.from(rest, "hex"));
  if (command === "close") ws.close(Number(rest.split(" ")[0]), rest.split(" ")[1]);
});
commands.on("close", () => process.exit());
