// A worker of the official Node SDK whose handlers return nothing; started by test_http_null_results.py.
import { registerWorker } from 'iii-sdk'

const iii = registerWorker(process.env.III_URL)

function route(name, handler) {
  iii.registerFunction(`node::${name}`, handler)
  iii.registerTrigger({ type: 'http', function_id: `node::${name}`, config: { api_path: `node/${name}` } })
}

route('none', async () => {})
route('slow', async ({ response }) => {
  setTimeout(() => {
    response.stream.write(Buffer.from('late '))
    response.stream.end(Buffer.from('but whole'))
  }, 2000)
})
