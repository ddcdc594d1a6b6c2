// Signs tokens with the npm package `jose`, for tokens.py: reads [{key, header, claims}] as JSON, writes a list of tokens.
//
//     node mint.mjs FOLDER-WITH-node_modules  <requests  >tokens
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const require = createRequire(path.join(process.argv[2], "here.js"));
const { SignJWT, importJWK } = await import(pathToFileURL(require.resolve("jose")).href);

let text = "";
for await (const part of process.stdin) text += part;
const tokens = [];
for (const { key, header, claims } of JSON.parse(text)) {
  tokens.push(await new SignJWT(claims).setProtectedHeader(header).sign(await importJWK(key, header.alg)));
}
console.log(JSON.stringify(tokens));
