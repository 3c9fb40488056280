// MQTT.js against a broker: every QoS, retained, will, persistent session, MQTT 5 properties.
//
// One JSON object as the argument: url, version (4, 5), and optionally ca, cert, key (files), user,
// password. Prints `ok` or dies.
'use strict'
const assert = require('node:assert/strict')
const fs = require('node:fs')
const { randomUUID } = require('node:crypto')
const mqtt = require('mqtt')

const args = JSON.parse(process.argv[2])
const v5 = args.version === 5
const root = `matrix/${randomUUID()}`
const patience = setTimeout(() => { throw new Error('too long') }, 60_000)
const file = (path) => path && fs.readFileSync(path)

async function connect (name, { clean = true, will } = {}) {
  const client = mqtt.connect(args.url, {
    clientId: `${root}-${name}`,
    protocolVersion: args.version,
    clean,
    properties: v5 ? { sessionExpiryInterval: clean ? 0 : 600 } : undefined,
    will: will && { topic: will, payload: Buffer.from('gone'), qos: 1 },
    username: args.user,
    password: args.password,
    ca: file(args.ca),
    cert: file(args.cert),
    key: file(args.key),
    reconnectPeriod: 0
  })
  const messages = []
  const waiting = []
  client.on('message', (topic, payload, packet) => {
    const message = { topic, payload, packet }
    const next = waiting.shift()
    next ? next(message) : messages.push(message)
  })
  client.next = () => messages.length > 0
    ? Promise.resolve(messages.shift())
    : new Promise((resolve) => waiting.push(resolve))
  await new Promise((resolve, reject) => {
    client.once('connect', resolve)
    client.once('error', reject)
  })
  return client
}

async function main () {
  const publisher = await connect('publisher')
  const reader = await connect('reader')
  const [granted] = await reader.subscribeAsync(`${root}/live/#`, { qos: 2 })
  assert.equal(granted.qos, 2)
  for (const qos of [0, 1, 2]) {
    for (const size of [0, 100, 60_000]) {
      await publisher.publishAsync(`${root}/live/${qos}`, Buffer.alloc(size), { qos })
      const { topic, payload, packet } = await reader.next()
      assert.deepEqual([topic, payload.length, packet.qos], [`${root}/live/${qos}`, size, qos])
    }
  }
  await publisher.publishAsync(`${root}/kept`, 'kept', { qos: 1, retain: true })
  await reader.subscribeAsync(`${root}/kept`, { qos: 1 })
  assert.equal((await reader.next()).packet.retain, true)
  await publisher.publishAsync(`${root}/kept`, '', { qos: 1, retain: true })
  assert.equal((await reader.next()).payload.length, 0)
  if (v5) {
    await publisher.publishAsync(`${root}/live/props`, 'p', {
      qos: 1,
      properties: {
        messageExpiryInterval: 60,
        userProperties: { unit: 'C' },
        responseTopic: `${root}/answers`,
        correlationData: Buffer.from('7'),
        topicAlias: 3
      }
    })
    const { properties } = (await reader.next()).packet
    assert.equal(properties.userProperties.unit, 'C')
    assert.equal(properties.responseTopic, `${root}/answers`)
    assert.equal(properties.topicAlias, undefined)
    assert.ok(properties.messageExpiryInterval <= 60)
  }
  await reader.subscribeAsync(`${root}/will`, { qos: 1 })
  const mortal = await connect('mortal', { will: `${root}/will` })
  mortal.stream.destroy()
  assert.equal((await reader.next()).payload.toString(), 'gone')

  let sleeper = await connect('sleeper', { clean: false })
  await sleeper.subscribeAsync(`${root}/later`, { qos: 1 })
  await sleeper.endAsync()
  for (let n = 0; n < 20; n++) await publisher.publishAsync(`${root}/later`, String(n), { qos: 1 })
  sleeper = await connect('sleeper', { clean: false })
  for (let n = 0; n < 20; n++) assert.equal((await sleeper.next()).payload.toString(), String(n))
  await sleeper.endAsync()
  await (await connect('sleeper')).endAsync()
  await publisher.endAsync()
  await reader.endAsync()
  clearTimeout(patience)
  console.log('ok')
}

main().catch((error) => { console.error(error); process.exit(1) })
