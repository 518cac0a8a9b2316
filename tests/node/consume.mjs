// A consumer with the official NATS client: a team's credentials, its inbox prefix and its durable are all it has. Reads
// {url, creds, inboxPrefix, stream, durable, count, tenant, root, may} from stdin and prints a JSON line for each event:
// what verify.mjs says of it, of the same with one bit changed, and the event. Acks what verifies, and ends the rest.
// What it leaves out is the trust statement, so a key that was revoked (V8) is still believed.
import { X509Certificate } from "node:crypto"
import { readFileSync } from "node:fs"
import { jetstream } from "@nats-io/jetstream"
import { connect, credsAuthenticator } from "@nats-io/transport-node"
import { verdict } from "./verify.mjs"

const asked = JSON.parse(readFileSync(0, "utf8")), patience = { timeout: 60_000 } // ms: the machine may be busy
const connection = await connect({ servers: asked.url, inboxPrefix: asked.inboxPrefix, ...patience,
  authenticator: credsAuthenticator(readFileSync(asked.creds)) })
const root = new X509Certificate(readFileSync(asked.root)), known = new Map()

// DER certificates one behind the other: the leaf, then who issued it. Each has its length in bytes 2 and 3.
function chain(der) {
  const length = 4 + der.readUInt16BE(2)
  return [new X509Certificate(der.subarray(0, length)), ...(der.length > length ? chain(der.subarray(length)) : [])]
}

async function signer(kid) {
  if (!known.has(kid)) {
    const entry = await connection.request(`$JS.API.DIRECT.GET.KV_mesh_trust.$KV.mesh_trust.cert.${kid}`, "", patience)
    const certificates = chain(Buffer.from(entry.data)), [leaf] = certificates
    if (!certificates.every((one, at) => one.verify((certificates[at + 1] ?? root).publicKey))) throw new Error("not of this mesh")
    known.set(kid, {
      publicKeyB64: Buffer.from(leaf.publicKey.export({ format: "jwk" }).x, "base64url").toString("base64"),
      spiffeId: leaf.subjectAltName.replace("URI:", ""),
      notBeforeMs: Date.parse(leaf.validFrom), notAfterMs: Date.parse(leaf.validTo),
    })
  }
  return known.get(kid)
}

const consumer = await jetstream(connection).consumers.getConsumerFromInfo({ stream_name: asked.stream, name: asked.durable, config: {} })
let left = asked.count
while (left) {
  for await (const message of await consumer.fetch({ max_messages: left, expires: 5000 })) {
    left -= 1
    const signature = message.headers.get("Mesh-Signature"), body = Buffer.from(message.data), changed = Buffer.from(body)
    changed[changed.indexOf('"source"') + 11] ^= 1 // still a sound CloudEvent
    const said = { subject: message.subject, msgIds: message.headers.values("Nats-Msg-Id"), signature,
      streamMs: Number(BigInt(message.info.timestampNanos) / 1_000_000n), tenant: asked.tenant, ...await signer(signature.split(".")[1]) }
    const one = verdict({ ...said, bodyB64: body.toString("base64"), may: asked.may })
    const other = verdict({ ...said, bodyB64: changed.toString("base64") })
    if (one === "accept") await message.ackAck(patience)
    else message.term(one)
    console.log(JSON.stringify({ verdict: one, changed: other, event: JSON.parse(body), traceparent: message.headers.get("traceparent") }))
  }
}
await connection.drain()
