// A worker of the official Node SDK: `reconnect_worker.mjs PREFIX`. The same functions and routes as reconnect_worker.py.
import { registerWorker } from 'iii-sdk'

const prefix = process.argv[2]
const iii = registerWorker(process.env.III_URL)

for (let number = 0; number < 10; number++) {
  iii.registerFunction(`${prefix}::f${number}`, async (data) =>
    data?.query_params ? { status_code: 200, body: { number } } : { number, data },
  )
}
for (let number = 0; number < 2; number++) {
  const config = { api_path: `${prefix}/${number}`, http_method: 'GET' }
  iii.registerTrigger({ type: 'http', function_id: `${prefix}::f${number}`, config })
}
