// Contender "Node loop": the seed's architecture, fetch under a limiter and one audit insert an item.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { ADMIN_CONCURRENCY, ADMIN_SYNC_TOKEN, MONGODB_URI, MONGODB_DB, NODE_DRIVER } = process.env;

// What the package p-limit does: at most `concurrency` of the given functions run at a time.
function limiter(concurrency) {
  const waiting = [];
  let active = 0;
  const next = () => {
    if (active < concurrency && waiting.length > 0) {
      active += 1;
      waiting.shift()();
    }
  };
  return (work) =>
    new Promise((resolve) => {
      waiting.push(resolve);
      next();
    })
      .then(work)
      .finally(() => {
        active -= 1;
        next();
      });
}

async function connect() {
  if (!NODE_DRIVER) return null;
  const { MongoClient } = createRequire(`${NODE_DRIVER}/`)("mongodb");
  return new MongoClient(MONGODB_URI).connect();
}

async function upsert(url, body) {
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${ADMIN_SYNC_TOKEN}` },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok || !answer.ok) throw new Error(JSON.stringify(answer));
  return answer;
}

async function sync(stages, steps) {
  const limit = limiter(Number(ADMIN_CONCURRENCY));
  for (const { entity_type, url, bodies } of stages) {
    const send = async (body) => {
      const { sync_id } = await upsert(url, body);
      const { request_id } = body;
      await steps?.insertOne({ entity_type, request_id, ok: true, sync_id, at: new Date() });
    };
    await Promise.all(bodies.map((body) => limit(() => send(body))));
  }
}

function peakRssBytes() {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
}

const stages = JSON.parse(readFileSync(process.argv[2], "utf8"));
const client = await connect();
const started = performance.now();
const cpuStarted = process.cpuUsage();
await sync(stages, client?.db(MONGODB_DB).collection("node_steps"));
const { user, system } = process.cpuUsage(cpuStarted);
const usage = {
  seconds: (performance.now() - started) / 1000,
  cpu_seconds: (user + system) / 1e6,
  peak_rss_bytes: peakRssBytes(),
};
await client?.close();
console.log(JSON.stringify(usage));
