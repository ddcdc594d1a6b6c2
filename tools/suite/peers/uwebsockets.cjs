// uWebSockets publish/subscribe: /sub/<session> and /pub/<session>. Arguments: port, path of the module.
const uWS = require(process.argv[3]);

const upgrade = (res, req, context) =>
  res.upgrade(
    { session: req.getParameter(0) },
    req.getHeader('sec-websocket-key'),
    req.getHeader('sec-websocket-protocol'),
    req.getHeader('sec-websocket-extensions'),
    context,
  );

const app = uWS.App();
app
  .ws('/sub/:session', {
    upgrade,
    idleTimeout: 0,
    maxBackpressure: 64 << 20,
    open: (socket) => socket.subscribe(socket.getUserData().session),
    message: () => {},
  })
  .ws('/pub/:session', {
    upgrade,
    idleTimeout: 0,
    message: (socket, message, binary) => app.publish(socket.getUserData().session, message, binary),
  })
  .listen('127.0.0.1', +process.argv[2], (listening) => {
    if (!listening) process.exit(1);
  });
