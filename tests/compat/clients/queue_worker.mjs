// A worker of the official Node SDK that uses queues: `queue_worker.mjs PREFIX`; as queue_worker.py.
import { registerWorker, TriggerAction } from 'iii-sdk'

const prefix = process.argv[2]
const iii = registerWorker(process.env.III_URL)
const noted = { work: [], camel: [], snake: [] }
const same = (one) => (other) => JSON.stringify(one) === JSON.stringify(other)

const handler = (name) => async (data) => {
  const before = noted[name].filter(same(data)).length
  noted[name].push(data)
  if (before < (data?.fail ?? 0)) throw new Error('as often as wanted')
  return { done: data }
}

const functions = {
  call: async ({ function_id, payload, queue, void: isVoid }) => {
    const action = queue ? TriggerAction.Enqueue({ queue }) : isVoid ? TriggerAction.Void() : undefined
    try {
      const result = await iii.trigger({ function_id, payload, action })
      return { result: result ?? null }
    } catch (error) {
      return { raised: String(error) }
    }
  },
  seen: async ({ name, count }) => {
    while (noted[name].length < count) await new Promise((resolve) => setTimeout(resolve, 10))
    return noted[name]
  },
  work: handler('work'),
}
const tuning = {
  camel: { type: 'standard', maxRetries: 1, backoffDelayMs: 10, concurrency: 2 },
  snake: { type: 'fifo', max_retries: 1, backoff_delay_ms: 10 },
}
for (const [name, run] of Object.entries(functions)) iii.registerFunction(`${prefix}::${name}`, run)
for (const [name, queue_config] of Object.entries(tuning)) {
  iii.registerFunction(`${prefix}::${name}`, handler(name))
  const config = { topic: `${prefix}-${name}`, queue_config }
  iii.registerTrigger({ type: 'durable:subscriber', function_id: `${prefix}::${name}`, config })
}
iii.registerFunction(`${prefix}::ready`, handler('work'))
