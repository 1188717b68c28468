// A client on undici, which implements the built-in WebSocket of Node.js.
"use strict";

const readline = require("node:readline");
const { WebSocket } = require("undici");

const report = (...words) => console.log(...words);

function handle({ data }) {
  if (typeof data !== "string") return report("binary", Buffer.from(data).toString("hex"));
  report("text", data);
  const [task, seconds] = data.split(" ");
  if (task === "block") {
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end);
  }
}

const ws = new WebSocket(process.argv[2]);
ws.binaryType = "arraybuffer";
ws.addEventListener("open", () => report("open", ws.extensions));
ws.addEventListener("message", handle);
ws.addEventListener("error", ({ error }) => console.error(error));
ws.addEventListener("close", ({ code, reason }) => report("close", code, reason));

const commands = readline.createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const [, command, rest] = line.match(/^(\w+) ?(.*)$/);
  if (command === "text") ws.send(rest);
  if (command === "binary") ws.send(Buffer.from(rest, "hex"));
  if (command === "close") ws.close(Number(rest.split(" ")[0]), rest.split(" ")[1]);
});
commands.on("close", () => process.exit());
