/** A real HTTP server on loopback that answers by a script: the first request by the first answer, and so on. */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { after } from 'node:test';

export interface Seen {
  method: string;
  path: string;
  headers: IncomingMessage['headers'];
  body: string;
}

export type Reply = (response: ServerResponse, seen: Seen) => void | Promise<void>;

export interface FakeServer {
  url: string;
  seen: Seen[];
  stop(): Promise<void>;
}

/** The last reply answers whatever comes after it. Stopped after the test file at the latest. */
export async function serve(...replies: Reply[]): Promise<FakeServer> {
  const seen: Seen[] = [];
  const sockets = new Set<Socket>();
  const server = createServer(async (request, response) => {
    const reply = replies[Math.min(seen.length, replies.length - 1)];
    const entry: Seen = { method: request.method!, path: request.url!, headers: request.headers, body: '' };
    seen.push(entry);
    request.on('error', () => undefined); // a client that goes away is part of the script
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer);
    } catch {
      return;
    }
    entry.body = Buffer.concat(chunks).toString();
    await reply!(response, entry);
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const stop = (): Promise<void> =>
    new Promise((resolve) => {
      server.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
  after(stop);
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen, stop };
}

export function json(status: number, body: unknown, headers: Record<string, string> = {}): Reply {
  return (response) => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers });
    response.end(JSON.stringify(body));
  };
}

/** Sends a part of what it promised and breaks the connection. */
export function cut(part: string, contentType = 'application/json'): Reply {
  return (response) => {
    response.writeHead(200, { 'content-type': contentType, 'content-length': String(Buffer.byteLength(part) + 100) });
    response.write(part, () => response.destroy());
  };
}

export const hangUp: Reply = (response) => {
  response.destroy();
};

export const silence: Reply = () => undefined;

export async function freeUrl(): Promise<string> {
  const server = await serve(silence);
  await server.stop();
  return server.url;
}
