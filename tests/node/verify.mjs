// A consumer in another language: V1 to V9 with node:crypto alone. Reads JSON lines (a file, or stdin) of
// {subject, msgIds, signature, bodyB64, streamMs, tenant?, publicKeyB64, spiffeId, notBeforeMs, notAfterMs,
// revokedFromMs?, may?: [[spiffeId, type, source]]} and prints "accept" or "refuse V<n> <code>" for each.
import { createHash, createPublicKey, verify } from "node:crypto"
import { readFileSync, realpathSync } from "node:fs"

const CODES = ["", "bad-envelope", "signature-missing", "unknown-key", "outside-certificate", "publisher-not-allowed",
  "bad-message-id", "not-fresh", "key-revoked", "bad-signature"]
const HEADER = /^1\.([\w-]{22})\.(0|[1-9]\d{0,14})\.([\w-]{22})\.(0|[1-9]\d{0,2})\.([1-9]\d{0,2})\.([\w-]{0,342})\.([\w-]{86})$/
const SUBJECT = /^ev\.([a-z0-9]+(?:-[a-z0-9]+)*)\.([a-z0-9]+(?:-[a-z0-9]+)*)\.s(?:0\d|1[0-5])((?:\.[a-z0-9_-]{1,64}){2,9})$/
const SMALL_ORDER = ["00", "01", "ec", "ed", "ee"].map((b, i) => b + (i < 2 ? "00" : "ff").repeat(30) + (i < 2 ? "00" : "7f"))
  .concat("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest()
const decode = text => { const raw = Buffer.from(text, "base64url"); return raw.toString("base64url") === text ? raw : null }

export function verifyEvent(event) { // returns the number of the failed step, or 0
  const parts = HEADER.exec(event.signature ?? ""), body = Buffer.from(event.bodyB64, "base64")
  const [, site, view, tail] = SUBJECT.exec(event.subject) ?? [], type = tail?.slice(1).replace(/\.v0$/, "")
  if (!type || /\.v\d{1,9}$/.test(type) === tail.endsWith(".v0") || type.split(".").length < 2 || type.split(".").length > 8) return 1
  let fields
  try { fields = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body)) } catch { return 1 }
  if (fields?.type !== type || fields.view !== view || fields.specversion !== "1.0") return 1
  if (![fields.id, fields.source].every(name => typeof name === "string" && name) || (event.tenant ?? fields.tenant) !== fields.tenant) return 1
  if (event.signature === null || event.signature === undefined) return 2
  if (!parts || event.signature.length > 1024) return 1
  const [, kid, signedMs, salt, index, size, proof, signature] = parts, hashes = decode(proof), key = Buffer.from(event.publicKeyB64, "base64")
  if (![kid, salt, signature].every(decode) || !hashes || hashes.length % 32 || +index >= +size || +size > 256) return 1
  const spki = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), key])
  const unsigned = Buffer.from(key); unsigned[31] &= 0x7f // OpenSSL takes keys of small order: refuse both signs of each
  if (sha256(spki).subarray(0, 16).toString("base64url") !== kid || SMALL_ORDER.includes(unsigned.toString("hex"))) return 3
  if (+signedMs < event.notBeforeMs || +signedMs > event.notAfterMs) return 4
  if (event.may && !event.may.some(([who, what, source]) => who === event.spiffeId && what === type && source === fields.source)) return 5
  if (event.msgIds.length !== 1 || !/^[\w-]{21}[AQgw]$/.test(event.msgIds[0])) return 6
  if (event.streamMs - signedMs < -30_000 || event.streamMs - signedMs > 120_000) return 7
  if (event.streamMs >= (event.revokedFromMs ?? Infinity)) return 8
  let node = sha256("\0", `mesh-event-v1\n${event.subject}\n${event.msgIds[0]}\n${salt}\n`, body), at = 0
  for (let i = +index, n = +size; n > 1; i >>= 1, n = (n + 1) >> 1) {
    if (!(i & 1) && i + 1 >= n) continue // the last node of an odd level moves up alone
    const sibling = hashes.subarray(at, at += 32)
    node = i & 1 ? sha256("\x01", sibling, node) : sha256("\x01", node, sibling)
  }
  const root = `mesh-root-v1\n${event.spiffeId}\n${kid}\n${signedMs}\n${size}\n${node.toString("base64url")}\n`
  const signed = Buffer.from(`DSSEv1 28 application/vnd.mesh.root.v1 ${Buffer.byteLength(root)} ${root}`)
  return at === hashes.length && verify(null, signed, createPublicKey({ key: spki, format: "der", type: "spki" }), decode(signature)) ? 0 : 9
}

export function verdict(event) {
  const step = verifyEvent(event)
  return step ? `refuse V${step} ${CODES[step]}` : "accept"
}

if (process.argv[1] && realpathSync(process.argv[1]) === import.meta.filename) { // run, not imported
  for (const line of readFileSync(process.argv[2] ?? 0, "utf8").split("\n").filter(Boolean)) console.log(verdict(JSON.parse(line)))
}
