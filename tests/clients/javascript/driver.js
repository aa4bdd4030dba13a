// Runs the unmodified JavaScript clients. A line on stdin is a command, `{id, client, do, …}`; lines
// on stdout are its answer, `{id, result}` or `{id, error}`, and what the application was told,
// `{client, kind, …}`. The same commands as in ../python/driver.py; see conftest.py for the caller.

import { createInterface } from 'node:readline'

import { RealtimeClient } from '@supabase/realtime-js'
import { createClient } from '@supabase/supabase-js'
import WebSocket from 'ws'

const clients = new Map()

function print(line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

// Bytes are `{"hex": "…"}` on stdin and stdout.
function toPayload(value) {
  return value?.hex === undefined ? value : Uint8Array.from(Buffer.from(value.hex, 'hex')).buffer
}

function fromPayload(value) {
  return value instanceof ArrayBuffer ? { hex: Buffer.from(value).toString('hex') } : value
}

class Client {
  constructor({ client, library, url, key, token, options }) {
    this.name = client
    this.channels = new Map()
    this.token = token
    const realtime = { transport: WebSocket, ...options }
    if (library === 'supabase-js') {
      const accessToken = token === null ? {} : { accessToken: async () => this.token }
      this.client = createClient(url, key, { realtime, ...accessToken })
      this.realtime = this.client.realtime
    } else {
      const socket = url.replace('http', 'ws') + '/socket'
      this.client = new RealtimeClient(socket, { params: { apikey: key }, ...realtime })
      this.realtime = this.client
    }
  }

  // Users of supabase-js give a callback; those of realtime-js give the token itself.
  async setAuth({ token }) {
    this.token = token
    await this.realtime.setAuth(this.client === this.realtime ? token : null)
  }

  channel({ topic, config }) {
    if (!this.channels.has(topic)) {
      this.channels.set(topic, this.client.channel(topic, { config }))
    }
    return this.channels.get(topic)
  }

  // As docs/server.md has it. A client that joins again sends this config again.
  resume({ topic, config, cursor }) {
    const channel = this.channel({ topic, config })
    const goOn = (cursor) => {
      if (cursor) channel.params.config.broadcast.replay = { cursor }
    }
    goOn(cursor)
    channel.joinPush.receive('ok', (reply) => goOn(reply.cursor))
    channel.on('broadcast', { event: '*' }, ({ meta }) => goOn(meta?.cursor))
  }

  subscribe({ topic, config }) {
    const tell = (kind, line) => print({ client: this.name, kind, topic, ...line })
    const onStatus = (status, error) => {
      // A channel can be joined once; after its end a new one must be made.
      if (status === 'CLOSED') this.channels.delete(topic)
      tell('status', { status, error: error?.message ?? null })
    }
    this.channel({ topic, config })
      .on('broadcast', { event: '*' }, (message) => {
        tell('message', { message: { ...message, payload: fromPayload(message.payload) } })
      })
      .on('system', {}, (message) => tell('system', { message }))
      .subscribe(onStatus)
  }

  send({ topic, event, payload, persist }) {
    return this.channel({ topic }).send({
      type: 'broadcast',
      event,
      payload: toPayload(payload),
      persist,
    })
  }

  httpSend({ topic, config, event, payload, persist }) {
    return this.channel({ topic, config }).httpSend(event, toPayload(payload), { persist })
  }

  track({ topic, payload }) {
    return this.channel({ topic }).track(payload)
  }

  unsubscribe({ topic }) {
    return this.client.removeChannel(this.channel({ topic }))
  }

  close() {
    clients.delete(this.name)
    this.realtime.disconnect()
  }
}

async function run(command) {
  if (command.do === 'open') {
    const client = new Client(command)
    clients.set(command.client, client)
    if (command.token !== null) await client.setAuth(command)
    return null
  }
  return (await clients.get(command.client)[command.do](command)) ?? null
}

createInterface({ input: process.stdin })
  .on('line', (line) => {
    const command = JSON.parse(line)
    run(command).then(
      (result) => print({ id: command.id, result }),
      (error) => print({ id: command.id, error: error.message }),
    )
  })
  .on('close', () => process.exit())
