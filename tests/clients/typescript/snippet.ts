// What docs/agent.md shows: a test runs it, and holds it against the page.
import { createClient } from "redis";

const id = "from-typescript";
// snippet:begin
const client = createClient({ url: process.env.REDIS_URL }); // redis://127.0.0.1:6379
client.on("error", (error) => console.error(error)); // it reconnects by itself, and repeats nothing
await client.connect();
const value = JSON.stringify({ user: "alice" });
await client.set("mcp:" + id, value, { condition: "NX", expiration: { type: "EX", value: 1800 } }); // null: it is there
const session = await client.getEx("mcp:" + id, { type: "EX", value: 1800 }); // null: it has ended
// snippet:end
console.log(session);
await client.close();
