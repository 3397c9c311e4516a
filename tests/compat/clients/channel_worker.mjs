// A worker of the official Node SDK that streams: `channel_worker.mjs PREFIX`. The same functions as channel_worker.py.
import { createHash } from 'node:crypto'
import { registerWorker } from 'iii-sdk'
import { createChannel } from 'iii-sdk/helpers'

const prefix = process.argv[2]
const iii = registerWorker(process.env.III_URL)

function dataOf(size) {
  const data = Buffer.alloc(size)
  for (let i = 0; i < size; i++) data[i] = i % 251
  return data
}

async function write(writer, size) {
  writer.sendMessage('begin ä€🙂')
  await new Promise((resolve, reject) => writer.stream.write(dataOf(size), (error) => (error ? reject(error) : resolve())))
  writer.sendMessage('end')
  await new Promise((resolve) => writer.stream.end(resolve))
}

async function read(reader) {
  const texts = []
  reader.onMessage((text) => texts.push(text))
  const data = await reader.readAll()
  return { bytes: data.length, sha256: createHash('sha256').update(data).digest('hex'), texts }
}

const functions = {
  produce: async ({ target, bytes }) => {
    await write(target, bytes)
    return 'produced'
  },
  consume: async ({ source }) => read(source),
  give: async ({ to, bytes }) => {
    const channel = await createChannel(iii, 8)
    const call = iii.trigger({ function_id: to, payload: { source: channel.readerRef } })
    const [result] = await Promise.all([call, write(channel.writer, bytes)])
    return result
  },
  fetch: async (data) => {
    const channel = await createChannel(iii, 8)
    const call = iii.trigger({ function_id: data.from, payload: { target: channel.writerRef, bytes: data.bytes } })
    const [, result] = await Promise.all([call, read(channel.reader)])
    return result
  },
  leave: async ({ target }) => {
    target.stream.write(Buffer.from('half'))
    await new Promise((resolve) => setTimeout(resolve, 200))
    process.exit(3)
  },
}
for (const [name, handler] of Object.entries(functions)) iii.registerFunction(`${prefix}::${name}`, handler)
