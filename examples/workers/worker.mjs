// A worker in Node.js, without dependencies: node worker.mjs http://localhost:8080 http://localhost:8081
// It claims tasks of its types, runs up to SLOTS at once, extends their leases, and says how they ended.
import { randomUUID } from "node:crypto";

const handlers = {
  // A handler gets the payload and a context; what it returns is the task's result.
  greet: async (payload) => `Hello, ${payload}!`,
  wait: async (seconds, context) => {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    return context.attempt;
  },
};
const nodes = process.argv.slice(2), worker = process.env.WORKER ?? `node-${process.pid}`;
const SLOTS = 8, LEASE = 15, held = new Map(); // token -> {task_id, token, cancelled, until}
let place = 0, stopping = false, state = "run";

// Asks one node after the other: every call here is safe to send again.
async function post(path, body) {
  for (let pause = 200; ; pause = Math.min(pause * 2, 5000)) {
    const headers = { "Content-Type": "application/json" };
    if (process.env.TQ_TOKEN) headers.Authorization = `Bearer ${process.env.TQ_TOKEN}`;
    try {
      const answer = await fetch(nodes[place] + path, { method: "POST", headers, body: JSON.stringify({ worker, ...body }) });
      if (answer.ok) return await answer.json();
      if (answer.status < 500 && answer.status !== 429) throw new TypeError(`refused: ${await answer.text()}`);
    } catch (error) {
      if (error instanceof TypeError && error.message.startsWith("refused")) throw error;
    }
    place = (place + 1) % nodes.length;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

async function run(claim, until) {
  const attempt = { task_id: claim.task_id, token: claim.token, attempt: claim.attempt, cancelled: false, until };
  held.set(claim.token, attempt);
  let end;
  try {
    const result = (await handlers[claim.type](claim.payload, attempt)) ?? null;
    end = { outcome: "completed", result };
  } catch (error) {
    end = { outcome: "failed", error: { type: error.name, message: String(error.message), traceback: error.stack } };
  }
  held.delete(claim.token);
  if (!attempt.cancelled && Date.now() < attempt.until)
    await post("/work/finish", { claims: [{ task_id: claim.task_id, token: claim.token, ...end }] });
}

setInterval(async () => { // A lease counts from when the request was sent.
  const claims = [...held.values()], sent = Date.now();
  if (!claims.length) return;
  const { results } = await post("/work/extend", { claims: claims.map(({ task_id, token }) => ({ task_id, token })) });
  results.forEach(({ lease }, i) => (lease ? (claims[i].until = sent + lease * 1000) : (claims[i].cancelled = true)));
}, (LEASE / 4) * 1000).unref();

process.on("SIGTERM", () => { stopping = true; if (!held.size) process.exit(0); });
while (!stopping && state !== "stop") {
  const free = SLOTS - held.size, sent = Date.now(), claim_id = randomUUID();
  if (!free) { await new Promise((resolve) => setTimeout(resolve, 50)); continue; }
  const answer = await post("/work/claim", { claim_id, types: Object.keys(handlers), limit: free, slots: SLOTS, wait: 20, lease: LEASE });
  state = answer.state;
  for (const claim of answer.claims) run(claim, sent + (answer.waited + claim.lease) * 1000);
}
while (held.size) await new Promise((resolve) => setTimeout(resolve, 50));
process.exit(0);
