// Reads sessions, pages and problems with openapi-fetch and the types that openapi-typescript generates.
import createClient from "openapi-fetch";
import type { components, paths } from "./weir.js";

declare const process: { env: Record<string, string | undefined> };

type Session = components["schemas"]["Session"];
// These do not compile if the generated types can have no members.
const metadata: Session["metadata"] = { team: "support", level: 3 };
const native: Session["native"] = { key: "ase_1", labels: ["a"] };

function check(right: boolean, what: unknown): asserts right {
  if (!right) throw new Error(JSON.stringify(what));
}

const client = (key: string) =>
  createClient<paths>({ baseUrl: `http://${process.env["WEIR"]}`, headers: { "X-API-Key": key } });
const weir = client("open");
const agent = "agt_customer_support";

const list = async (limit: number, page_token?: string) => {
  const query = page_token === undefined ? { limit } : { limit, page_token };
  const { data, error } = await weir.GET("/v1/agents/{agent}/sessions", { params: { path: { agent }, query } });
  check(data !== undefined, error);
  return data;
};
const walk = async (limit: number) => {
  const found: string[] = [];
  let pages = 0;
  for (let token: string | null | undefined; pages === 0 || token; pages++) {
    const page = await list(limit, token ?? undefined);
    found.push(...page.sessions.map((session) => session.id));
    token = page.next_page_token;
    check(pages < 50, pages);
  }
  return { found, pages };
};
const first = (await list(25)).sessions.map((session) => session.id);
const expected = (await walk(100)).found;
check(expected.length > 25 && JSON.stringify(first) === JSON.stringify(expected.slice(0, 25)), first);
const walked = await walk(10);
check(JSON.stringify(walked.found) === JSON.stringify(expected) && walked.pages > 2, walked);

const id = expected[0]!;
const read = (from: typeof weir, id: string) =>
  from.GET("/v1/sessions/{id}", { params: { path: { id }, query: { include: "native" } } });
const { data, error } = await read(weir, id);
check(data !== undefined, error);
// These do not compile if a field of a session can be undefined.
const whole: Pick<Session, "id" | "status" | "modality" | "agent" | "connection" | "metadata"> = data;
const times: (string | null)[] = [data.created_at, data.ended_at, data.expires_at];
check(times.every((time) => time !== undefined) && whole.status.length > 0 && data.provider.length > 0, data);
check(data.id === id && typeof data.metadata === "object" && Object.keys(data.native ?? {}).length > 0, data);

const part = await weir.GET("/v1/sessions/{id}", { params: { path: { id }, query: { fields: ["id", "status"] } } });
check(Object.keys(part.data ?? {}).join() === "id,status", part.data ?? part.error);

const missing = await read(weir, "vectara:agt_customer_support:ase_missing");
check(missing.response.status === 404 && missing.error?.code === "session_not_found", missing.error);

const once = client("once");
check((await read(once, id)).data?.id === id, "the first request is admitted");
const limited = await read(once, id);
check(limited.response.status === 429 && limited.error?.code === "rate_limit_exceeded", limited.error);
check((limited.error.retry_after ?? 0) > 0, limited.error);
console.log("ok", Object.keys(metadata).length, Object.keys(native).length);
