// A js-libp2p peer. `node peer.js ADDRESS PINGS` dials, identifies and pings; `node peer.js find PEER_ID` waits until mDNS tells of it,
// and dials what it heard. One JSON line for each thing that happened.

// Node 20 lacks it.
Promise.withResolvers ??= function () {
  const parts = {}
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }))
  return parts
}

const { createLibp2p } = await import('libp2p')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { mdns } = await import('@libp2p/mdns')
const { ping } = await import('@libp2p/ping')
const { tcp } = await import('@libp2p/tcp')
const { webSockets } = await import('@libp2p/websockets')
const { multiaddr } = await import('@multiformats/multiaddr')

const [what, argument] = process.argv.slice(2)
const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }))

const node = await createLibp2p({
  transports: [tcp(), webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  peerDiscovery: what === 'find' ? [mdns({ serviceTag: '_p2p._udp.local', interval: 1000 })] : [],
  services: { identify: identify(), ping: ping() }
})

const identified = Promise.withResolvers()
node.addEventListener('peer:identify', ({ detail }) => identified.resolve({
  peer_id: detail.peerId.toString(),
  agent: detail.agentVersion,
  protocols: detail.protocols,
  addresses: detail.listenAddrs.map(String),
  observed: detail.observedAddr?.toString(),
  signed: detail.signedPeerRecord !== undefined
}))

const firstFrame = async (stream) => {
  for await (const bytes of stream.source) {
    const frame = bytes.subarray()
    return { announced: new DataView(frame.buffer, frame.byteOffset).getUint32(0), length: frame.length - 4 }
  }
}

const meet = async (addresses, pings) => {
  const connection = await node.dial(addresses)
  say('connected', { address: connection.remoteAddr.toString() })
  say('identified', await identified.promise)
  for (let count = 0; count < pings; count++) {
    say('ping', { milliseconds: await node.services.ping.ping(connection.remotePeer) })
  }
  const stream = await connection.newStream('/infermesh/link/1.0.0')
  say('link', await firstFrame(stream))
  await stream.close()
  say('done', { open: connection.status === 'open', connections: node.getConnections().length })
}

if (what === 'find') {
  const found = Promise.withResolvers()
  node.addEventListener('peer:discovery', ({ detail }) => {
    if (detail.id.toString() === argument) found.resolve(detail.multiaddrs)
  })
  const addresses = await found.promise
  say('found', { addresses: addresses.map(String) })
  await meet(addresses.map((one) => one.getPeerId() ? one : one.encapsulate(`/p2p/${argument}`)), 1)
} else {
  await meet(multiaddr(what), Number(argument))
}
await node.stop()
