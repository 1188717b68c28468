// Starts the chat example, connects clients, freezes one, kills one, and takes a picture of the page.
const { spawn } = require("node:child_process");
const { once } = require("node:events");
const { chromium } = require("playwright-core");

const [server, picture] = process.argv.slice(2);

// A client in a process of its own, so that it can be frozen and killed.
const CLIENT = `
  const WebSocket = require("ws");
  const socket = new WebSocket(process.argv[1]);
  socket.on("open", () => process.stdout.write("open\\n"));
  process.stdin.on("data", line => socket.send(String(line).trim()));
`;

async function main() {
  const processes = [];
  const start = async (command, args) => {
    const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] });
    processes.push(child);
    const [first] = await once(child.stdout, "data");
    return [child, String(first)];
  };
  try {
    const [, line] = await start(server, ["--addr", "127.0.0.1:0"]);
    const page_url = line.match(/http:\/\/\S+/)[0];
    const join = async name => {
      const url = page_url.replace("http", "ws").replace(/\/$/, "") + "/ws/" + name;
      return (await start(process.execPath, ["-e", CLIENT, url]))[0];
    };
    const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
    const page = await browser.newPage({ viewport: { width: 1000, height: 560 } });
    await page.goto(page_url);
    const say = async text => {
      await page.fill("#line", text);
      await page.press("#line", "Enter");
    };
    await say("ada");
    await page.waitForFunction(() => document.body.innerText.includes("You are ada"));
    const clients = {};
    for (const name of ["bob", "carol", "dave"]) clients[name] = await join(name);
    clients.bob.stdin.write("hello ada\n");
    await page.waitForFunction(() => document.body.innerText.includes("hello ada"));
    await say("hello bob. dave has been killed, carol is frozen");
    clients.dave.kill("SIGKILL");
    clients.carol.kill("SIGSTOP");
    // Before the verdict on carol, whose ping waits for its answer.
    await page.waitForSelector('tr[data-health^="ping unanswered"]', { timeout: 20000 });
    await page.screenshot({ path: picture });
    await browser.close();
  } finally {
    for (const child of processes) child.kill("SIGKILL");
  }
}

main().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
