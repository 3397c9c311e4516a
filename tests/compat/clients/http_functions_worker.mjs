// A worker of the official Node SDK with HTTP-invoked functions: `http_functions_worker.mjs PREFIX URL`. The same
// functions as http_functions_worker.py.
import { registerWorker } from 'iii-sdk'

const [prefix, url] = process.argv.slice(2)
const iii = registerWorker(process.env.III_URL)

const signed = iii.registerFunction(
  `${prefix}::signed`,
  {
    url,
    method: 'PUT',
    timeout_ms: 5000,
    headers: { 'X-Team': 'a' },
    auth: { type: 'hmac', secret_key: 'WEBHOOK_SECRET' },
  },
  { description: 'an endpoint' },
)
iii.registerFunction(`${prefix}::refused`, { url, auth: { type: 'bearer', token_key: 'NO_SUCH_TOKEN' } })
iii.registerFunction(`${prefix}::forget`, async () => {
  signed.unregister()
  return null
})
iii.registerFunction(`${prefix}::call`, async ({ function_id, payload }) => {
  try {
    return { result: await iii.trigger({ function_id, payload }) }
  } catch (error) {
    return { code: error.code, message: error.message }
  }
})
