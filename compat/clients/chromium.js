// A page in headless Chromium, with a profile in the current directory.
"use strict";

const { spawn } = require("node:child_process");
const { once } = require("node:events");
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const readline = require("node:readline");
const CDP = require("chrome-remote-interface");

const FLAGS = [
  "--headless",
  "--no-sandbox", // otherwise Chromium refuses to run as root
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--remote-debugging-port=0",
  `--user-data-dir=${path.resolve("profile")}`,
];

// Starts the browser and resolves to the port of its DevTools.
async function start() {
  const browser = spawn("chromium", FLAGS, { stdio: ["ignore", "ignore", "pipe"] });
  process.on("exit", () => browser.kill("SIGKILL"));
  browser.on("error", (error) => {
    console.error(error.message);
    process.exit(1);
  });
  for await (const line of readline.createInterface({ input: browser.stderr })) {
    const listening = line.match(/^DevTools listening on ws:\/\/[^:]+:(\d+)\//);
    if (listening) {
      browser.stderr.resume();
      return Number(listening[1]);
    }
  }
  throw new Error("Chromium did not start");
}

// Serves the page and resolves to its address.
async function serve() {
  const page = fs.readFileSync(path.join(__dirname, "page.html"));
  const server = http.createServer((_, response) => response.end(page));
  await once(server.listen(0, "127.0.0.1"), "listening");
  return `http://127.0.0.1:${server.address().port}/`;
}

// Stops every process that runs a page.
async function stopRenderers(port) {
  const { webSocketDebuggerUrl } = await CDP.Version({ port });
  const browser = await CDP({ target: webSocketDebuggerUrl });
  const { processInfo } = await browser.SystemInfo.getProcessInfo();
  for (const { type, id } of processInfo) {
    if (type === "renderer") process.kill(id, "SIGSTOP");
  }
  console.log("stopped");
}

async function main(url) {
  const port = await start();
  const { Page, Runtime } = await CDP({ port });
  const evaluate = (expression) => Runtime.evaluate({ expression });

  const commands = {
    text: (text) => evaluate(`ws.send(${JSON.stringify(text)})`),
    binary: (hex) => evaluate(`ws.send(Uint8Array.fromHex("${hex}"))`),
    close: (rest) => evaluate(`ws.close(${rest.split(" ")[0]}, "${rest.split(" ")[1]}")`),
    // Opens another tab in front of this one.
    hide: () => CDP.New({ port }),
    freeze: () => Page.setWebLifecycleState({ state: "frozen" }),
    resume: () => Page.setWebLifecycleState({ state: "active" }),
    stop: () => stopRenderers(port),
    leave: async () => {
      await Page.navigate({ url: "about:blank" });
      const { result } = await evaluate("location.href");
      console.log("at", result.value);
    },
    close_tab: () => Page.close(),
  };

  Runtime.on("bindingCalled", ({ payload }) => console.log(payload));
  await Runtime.enable();
  await Runtime.addBinding({ name: "printLine" });
  await Page.navigate({ url: `${await serve()}?url=${encodeURIComponent(url)}` });

  const lines = readline.createInterface({ input: process.stdin });
  lines.on("line", (line) => {
    const [, command, rest] = line.match(/^(\w+) ?(.*)$/);
    commands[command](rest);
  });
  lines.on("close", () => process.exit());
}

main(process.argv[2]);
