// A client of Node's own TLS, for secure.py: upgrades, sends one command, prints the answer as JSON.
//
//     node secure.mjs PORT CA.pem COMMAND
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import tls from "node:tls";

const [port, ca, command] = process.argv.slice(2);
const socket = tls.connect({ port: Number(port), host: "127.0.0.1", servername: "localhost", ca: readFileSync(ca), ALPNProtocols: ["http/1.1"] });
let buffer = Buffer.alloc(0);
let open = false;

/** A masked text frame of less than 126 bytes. */
function frame(text) {
  const payload = Buffer.from(text);
  const mask = randomBytes(4);
  return Buffer.concat([Buffer.from([0x81, 0x80 | payload.length]), mask, payload.map((byte, at) => byte ^ mask[at & 3])]);
}

socket.on("secureConnect", () => {
  const key = randomBytes(16).toString("base64");
  socket.write(`GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`);
});
socket.on("data", (bytes) => {
  buffer = Buffer.concat([buffer, bytes]);
  if (!open) {
    const end = buffer.indexOf("\r\n\r\n");
    if (end < 0) return;
    if (!buffer.subarray(0, end).toString().startsWith("HTTP/1.1 101")) throw new Error(buffer.toString());
    buffer = buffer.subarray(end + 4);
    open = true;
    socket.write(frame(command));
  }
  while (buffer.length >= 2) {
    const short = buffer[1] & 0x7f;
    const head = short < 126 ? 2 : 4;
    if (buffer.length < head) return;
    const length = short < 126 ? short : buffer.readUInt16BE(2);
    if (buffer.length < head + length) return;
    const answer = JSON.parse(buffer.subarray(head, head + length).toString());
    buffer = buffer.subarray(head + length);
    if (answer.id !== undefined) {
      console.log(JSON.stringify({ answer, protocol: socket.getProtocol(), alpn: socket.alpnProtocol }));
      socket.end();
      return;
    }
  }
});
socket.on("error", (why) => {
  console.error(why.message);
  process.exit(1);
});
