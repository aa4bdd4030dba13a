// A peer: `ws` of node. Topics, phx_join and fan-out, and nothing else.
//
// node ws.mjs PORT

import { WebSocketServer } from "ws";

const members = new Map();
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  backlog: 4096,
  perMessageDeflate: false,
});

server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("close", () => {
    for (const some of members.values()) some.delete(socket);
  });
  socket.on("message", (data) => {
    const text = data.toString();
    const message = JSON.parse(text);
    if (!members.has(message.topic)) members.set(message.topic, new Set());
    const topic = members.get(message.topic);
    if (message.event === "phx_join") {
      topic.add(socket);
      socket.send(JSON.stringify({ topic: message.topic, event: "phx_reply", payload: {} }));
      return;
    }
    for (const one of topic) if (one !== socket) one.send(text);
  });
});
