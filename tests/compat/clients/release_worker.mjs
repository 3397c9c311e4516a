// A worker of the official Node SDK, any release: `release_worker.mjs PREFIX`. The same functions and route as
// release_worker.py, and `null`: here `undefined` is neither a payload nor a result.
import { createHash } from 'node:crypto'
import * as sdk from 'iii-sdk'

const prefix = process.argv[2]
const iii = sdk.registerWorker(process.env.III_URL)
const SdkError = sdk.InvocationError ?? sdk.IIIInvocationError

const functions = {
  echo: async (data) => data,
  nothing: async () => undefined,
  null: async () => null,
  is_null: async (data) => data === null,
  large: async ({ bytes }) => '0123456789'.repeat(Math.floor(bytes / 10) + 1).slice(0, bytes),
  crash: async () => {
    throw new Error('the handler has crashed')
  },
  decline: async () => {
    throw new SdkError({ code: 'card_declined', message: 'not enough money' })
  },
  call: async (data) => {
    try {
      const result = await iii.trigger({ function_id: data.function_id, payload: data.payload })
      if (data.measure) return { length: result.length, sha256: createHash('sha256').update(result).digest('hex') }
      return result === undefined ? { undefined: true } : { result }
    } catch (error) {
      const { name, code, message, stacktrace } = error
      return { raised: name, text: String(error), code, message, stacktrace }
    }
  },
  page: async ({ path_params, query_params, body }) => ({
    status_code: 201,
    headers: { 'x-prefix': prefix },
    body: { id: path_params.id, query: query_params, body },
  }),
}
for (const [name, handler] of Object.entries(functions)) iii.registerFunction(`${prefix}::${name}`, handler)
const config = { api_path: `${prefix}/things/:id`, http_method: 'POST' }
iii.registerTrigger({ type: 'http', function_id: `${prefix}::page`, config })
