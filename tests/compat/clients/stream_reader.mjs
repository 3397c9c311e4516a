// A subscriber as browsers are ones: `stream_reader.mjs URL STREAM GROUP`. It joins with a token among the sub-protocols and
// prints what it is told, one message a line, until it is asked to leave by an event of type `bye`.
import { WebSocket } from 'ws'

const [url, streamName, groupId] = process.argv.slice(2)
const socket = new WebSocket(url, ['Authorization', 'a-token'])
const data = { subscriptionId: 'one', streamName, groupId }
socket.on('open', () => {
  console.log(`protocol ${socket.protocol}`)
  socket.send(JSON.stringify({ type: 'join', data }))
})
socket.on('message', (text) => {
  const message = JSON.parse(text)
  console.log(`told ${JSON.stringify({ id: message.id, event: message.event })}`)
  if (message.event.event?.type === 'bye') {
    socket.send(JSON.stringify({ type: 'leave', data }))
    socket.close(1000)
  }
})
socket.on('close', (code) => console.log(`closed ${code}`))
