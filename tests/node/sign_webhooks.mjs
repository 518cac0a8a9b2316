// GitHub's side of a webhook, by GitHub's own library: one JSON line {secret, body} in, one signature out.
import { createInterface } from "node:readline";

import { sign } from "@octokit/webhooks-methods";

for await (const line of createInterface({ input: process.stdin })) {
  const { secret, body } = JSON.parse(line);
  console.log(await sign(secret, body));
}
