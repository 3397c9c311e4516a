// A worker of the official Node SDK: `official_worker.mjs PREFIX`. The same functions as official_worker.py, as far as
// they differ here: `undefined` is neither a payload nor a result.
import { registerWorker } from 'iii-sdk'

const prefix = process.argv[2]
const iii = registerWorker(process.env.III_URL)

const functions = {
  echo: async (data) => data,
  nothing: async () => undefined,
  is_null: async (data) => data === null,
  large: async ({ bytes }) => 'x'.repeat(bytes),
  crash: async () => {
    throw new Error('the handler has crashed')
  },
  call: async (data) => {
    try {
      const result = await iii.trigger({ function_id: data.function_id, payload: data.payload })
      if (data.measure) return { length: result.length }
      return result === undefined ? { undefined: true } : { result }
    } catch (error) {
      return { raised: error.name, text: String(error), code: error.code, stacktrace: error.stacktrace }
    }
  },
  page: async () => ({ status_code: 200, body: { prefix } }),
}
for (const [name, handler] of Object.entries(functions)) iii.registerFunction(`${prefix}::${name}`, handler)
iii.registerTrigger({ type: 'http', function_id: `${prefix}::page`, config: { api_path: prefix, http_method: 'GET' } })
