// The official parser on AsyncAPI documents (files named as arguments). Prints a JSON line for each: what the parser
// found (severity 0 is an error, 1 a warning), and the document as the parser understood it.
import { readFileSync } from "node:fs"
import { Parser } from "@asyncapi/parser"

const parser = new Parser()
for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await parser.parse(readFileSync(file, "utf8"))
  console.log(JSON.stringify({
    diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path: path.join("/") })),
    channels: document?.channels().all().map(channel => channel.address()) ?? [],
    operations: document?.operations().all().map(operation => ({
      id: operation.id(), action: operation.action(), messages: operation.messages().all().map(message => message.name()),
    })) ?? [],
  }))
}
