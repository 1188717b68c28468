// A client on ws.
"use strict";

const readline = require("node:readline");
const WebSocket = require("ws");

const report = (...words) => console.log(...words);

function handle(data, isBinary) {
  if (isBinary) return report("binary", data.toString("hex"));
  report("text", data.toString());
  const [task, seconds] = data.toString().split(" ");
  if (task === "block") {
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end);
  }
}

const ws = new WebSocket(process.argv[2]);
ws.on("open", () => report("open", ws.extensions));
ws.on("message", handle);
ws.on("error", (error) => console.error(error));
ws.on("close", (code, reason) => report("close", code, reason.toString()));

const commands = readline.createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const [, command, rest] = line.match(/^(\w+) ?(.*)$/);
  if (command === "text") ws.send(rest);
  if (command === "binary") ws.send(Buffer.from(rest, "hex"));
  if (command === "close") ws.close(Number(rest.split(" ")[0]), rest.split(" ")[1]);
});
commands.on("close", () => process.exit());
