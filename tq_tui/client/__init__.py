"""The console's only room with IO: one protocol, an implementation over HTTP, a scripted one."""
