// The hello system with the official Node SDK, unmodified: an HTTP route, the queue `default`, a stored greeting.
//
// First shell, the engine:
//
//     pip install iii-trio
//     python -m iii_trio serve
//
// Second shell, this worker:
//
//     cd examples/hello_node
//     npm ci
//     node hello.mjs
//
// Third shell:
//
//     curl http://localhost:3111/hello
//     python -m iii_trio trigger state::list scope=greetings
//     python -m iii_trio trigger state::get scope=last-greeting key=hello
//
// After `npm ci`, `python -m iii_trio serve examples/hello_node/hello.mjs` does the work of the first two shells in one.

import { randomUUID } from 'node:crypto'
import { registerWorker, TriggerAction } from 'iii-sdk'

const iii = registerWorker(process.env.III_URL ?? 'ws://localhost:49134')

// GET /hello: put a greeting into the queue `default`, which every engine has, and answer at once. The message names
// its function, so no queue trigger is needed.
iii.registerFunction('hello::api', async (request) => {
  const name = request.query_params.name ?? 'World'
  await iii.trigger({
    function_id: 'greet::process',
    payload: { id: randomUUID(), name },
    action: TriggerAction.Enqueue({ queue: 'default' }),
  })
  return {
    status_code: 200,
    body: {
      message: 'Hello request received! Processing in background.',
      status: 'processing',
      appName: 'III App',
    },
  }
})

// Store one greeting. A queue delivers at least once: the id is the key, so a repetition changes nothing.
iii.registerFunction('greet::process', async ({ id, name }) => {
  const value = { id, greeting: `Hello, ${name}!` }
  // Awaited: the greeting is on disk when this returns, and only then is the message taken off the queue.
  await iii.trigger({ function_id: 'state::set', payload: { scope: 'greetings', key: id, value } })
  // Not waited for: nobody needs to know when, or whether, this one is stored.
  await iii.trigger({
    function_id: 'state::set',
    payload: { scope: 'last-greeting', key: 'hello', value },
    action: TriggerAction.Void(),
  })
})

iii.registerTrigger({ type: 'http', function_id: 'hello::api', config: { api_path: 'hello', http_method: 'GET' } })

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, async () => {
    await iii.shutdown()
    process.exit(0)
  })
}
