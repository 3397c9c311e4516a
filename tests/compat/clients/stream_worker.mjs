// A worker of the official Node SDK that uses streams: `stream_worker.mjs PREFIX`; as stream_worker.py.
import { registerWorker } from 'iii-sdk'

const prefix = process.argv[2]
const iii = registerWorker(process.env.III_URL)
const events = []
const kept = new Map()

const functions = {
  on_event: async (event) => {
    events.push(event)
  },
  call: async (data) => {
    try {
      const result = await iii.trigger({ function_id: data.function_id, payload: data.payload })
      return result === undefined ? { undefined: true } : { result }
    } catch (error) {
      return { raised: String(error) }
    }
  },
  seen: async ({ count }) => {
    while (events.length < count) await new Promise((resolve) => setTimeout(resolve, 10))
    return events
  },
}
for (const [name, handler] of Object.entries(functions)) iii.registerFunction(`${prefix}::${name}`, handler)
iii.registerTrigger({ type: 'stream', function_id: `${prefix}::on_event`, config: { stream_name: prefix } })

// what createStream registers, with the names it uses
const own = {
  get: async (input) => kept.get(input.item_id),
  set: async (input) => {
    const old_value = kept.get(input.item_id) ?? null
    const new_value = { ...input.data, own: true }
    kept.set(input.item_id, new_value)
    return { old_value, new_value }
  },
  delete: async (input) => {
    const old_value = kept.get(input.item_id)
    kept.delete(input.item_id)
    return { old_value }
  },
  list: async () => [...kept.values()],
  listGroups: async () => ['g'],
}
try {
  const { createStream } = await import('iii-sdk/helpers')
  createStream(iii, `${prefix}-own`, own)
} catch {
  iii.createStream(`${prefix}-own`, own)
}
