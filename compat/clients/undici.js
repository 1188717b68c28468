// A client on undici, whose WebSocket is the one that Node.js has built in.
"use strict";

const readline = require("node:readline");
const { WebSocket } = require("undici");

const say = (...words) => console.log(...words);

function handle({ data }) {
  if (typeof data !== "string") return say("binary", Buffer.from(data).toString("hex"));
  say("text", data);
  const [task, seconds] = data.split(" ");
  if (task === "block") {
    const end = Date.now() + seconds * 1000;
    while (Date.now() < end);
  }
}

const ws = new WebSocket(process.argv[2]);
ws.binaryType = "arraybuffer";
ws.addEventListener("open", () => say("open", ws.extensions));
ws.addEventListener("message", handle);
ws.addEventListener("error", ({ error }) => console.error(error));
ws.addEventListener("close", ({ code, reason }) => say("close", code, reason));

const commands = readline.createInterface({ input: process.stdin });
commands.on("line", (line) => {
  const [, command, rest] = line.match(/^(\w+) ?(.*)$/);
  if (command === "text") ws.send(rest);
  if (command === "binary") ws.send(Buffer.from(rest, "hex"));
  if (command === "close") ws.close(Number(rest.split(" ")[0]), rest.split(" ")[1]);
});
commands.on("close", () => process.exit());
