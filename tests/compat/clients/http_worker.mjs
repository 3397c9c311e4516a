// A worker of the official Node SDK with routes that stream; started by test_http_official.py.
import { registerWorker } from 'iii-sdk'

const iii = registerWorker(process.env.III_URL)

function route(method, path, name, handler) {
  iii.registerFunction(`node::${name}`, handler)
  iii.registerTrigger({ type: 'http', function_id: `node::${name}`, config: { api_path: path, http_method: method } })
}

route('POST', 'node/echo', 'echo', async ({ body, request_body: raw }) => {
  const data = await raw.readAll()
  return { status_code: 201, body: { parsed: body, raw: data.toString() } }
})

route('GET', 'node/download', 'download', async ({ response }) => {
  response.sendMessage(JSON.stringify({ type: 'set_status', status_code: 206 }))
  response.sendMessage(JSON.stringify({ type: 'set_headers', headers: { 'content-type': 'application/pdf' } }))
  for (let i = 0; i < 20; i++) response.stream.write(Buffer.alloc(100_000, i))
  response.stream.end()
})
