// An application with the official CloudEvents SDK, to which an agent pushes. Prints its port, then a JSON line for each
// event: the path it came to, what the SDK made of it, and the trace in the header fields.
import { createServer } from "node:http"
import { HTTP } from "cloudevents"

// HTTP.toEvent() leaves the percent-decoding of the HTTP binding (3.1.3.2) to its caller.
function decoded(headers) {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, name.startsWith("ce-") ? decodeURIComponent(value) : value]))
}

// Text for JSON, for text and for the structured modes; bytes for any other data.
function bodyOf(type, bytes) {
  if (!bytes.length) return undefined
  return /^(text\/|application\/(.*\+)?json)/.test(type) ? bytes.toString() : new Uint8Array(bytes)
}

const server = createServer(async (request, response) => {
  const { url, headers } = request
  const bytes = Buffer.concat(await request.toArray())
  const found = [HTTP.toEvent({ headers: decoded(headers), body: bodyOf(headers["content-type"], bytes) })].flat()
  for (const event of found) {
    const data = ArrayBuffer.isView(event.data) ? { bytes: [...event.data] } : event.data
    const { traceparent, tracestate } = headers
    console.log(JSON.stringify({ path: url, valid: event.validate(), fields: { ...event, data, data_base64: undefined }, traceparent, tracestate }))
  }
  response.writeHead(204).end()
})
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })))
