// A producer with the official CloudEvents SDK. Reads {url, token, events: [{mode, fields}]} from stdin, posts each to
// the agent (those of the mode "batch" in one request) and prints the status of each request and its receipt.
import { readFileSync } from "node:fs"
import { CloudEvent, HTTP } from "cloudevents"

const { url, token, events } = JSON.parse(readFileSync(0, "utf8"))

function made({ data_base64, ...fields }) {
  return new CloudEvent(data_base64 ? { ...fields, data: new Uint8Array(Buffer.from(data_base64, "base64")) } : fields)
}

// HTTP.binary() leaves the percent-encoding of the HTTP binding (3.1.3.2) to its caller.
function encoded(headers) {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, name.startsWith("ce-")
    ? String(value).replace(/[^\x21-\x7e]|["%]/gu, encodeURIComponent) : value]))
}

async function post({ headers, body }) {
  const answer = await fetch(url, { method: "POST", headers: { ...headers, authorization: `Bearer ${token}` }, body })
  console.log(JSON.stringify({ status: answer.status, receipt: await answer.json() }))
}

for (const { mode, fields } of events.filter(({ mode }) => mode !== "batch")) {
  const message = HTTP[mode](made(fields))
  await post({ headers: encoded(message.headers), body: message.body })
}
const batch = events.filter(({ mode }) => mode === "batch").map(({ fields }) => made(fields))
if (batch.length) await post({ headers: { "content-type": "application/cloudevents-batch+json" }, body: JSON.stringify(batch) })
